"""What validation chose: it can be compared, printed, and kept with a checkpoint."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dsmooth_jax.smoothed import Decision
from dsmooth_jax.voting import Voting


@dataclasses.dataclass(frozen=True)
class Choice:
    """A decision with its settings, and what it reaches on validation images.

    Attributes:
      voting: "threshold" or "graded"; None, as are the next two, where masks of pixels
        decide.
      threshold: of threshold votes.
      strength: of graded votes.
      patch: (height, width) in pixels, that they were chosen for.
      clean_accuracy: in [0, 1], as are the others.
      certified_accuracy: against the patch.
      base_accuracy: of single ablations, or with a single mask.
      decision: "votes", or "double_masking" by masks made for the patch.
      detected_accuracy: right where all single masks agree; of masks of pixels.
      step: the steps taken by then; 0 before it is known.
    """

    voting: Voting | None
    threshold: float | None
    strength: float | None
    patch: tuple[int, ...]
    clean_accuracy: float
    certified_accuracy: float
    base_accuracy: float
    decision: Decision = "votes"
    detected_accuracy: float | None = None
    step: int = 0

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Choice":
        """Reads what `to_json` gave."""
        none = {"voting": None, "threshold": None, "strength": None}
        return cls(**{**none, **record, "patch": tuple(record["patch"])})

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint keeps, and a line of metrics.jsonl."""
        record = {k: v for k, v in vars(self).items() if v is not None}
        return {"step": record.pop("step"), **record, "patch": list(self.patch)}

    def is_at_least(self, other: "Choice") -> bool:
        """Whether it certifies more; where as much, whether it is right as often."""
        one, two = (
            (choice.certified_accuracy, choice.clean_accuracy)
            for choice in (self, other)
        )
        return one >= two

    def __str__(self) -> str:
        patch = "x".join(map(str, self.patch))
        if self.decision == "double_masking":
            how = "double masking"
        else:
            setting = "strength" if self.voting == "graded" else "threshold"
            how = f"{self.voting}, {setting} {getattr(self, setting):g}"
        if self.detected_accuracy is not None:
            how += f", detected {100 * self.detected_accuracy:.1f} %"
        return (
            f"validation: clean {100 * self.clean_accuracy:.1f} %, "
            f"certified {100 * self.certified_accuracy:.1f} % at {patch} ({how})"
        )
