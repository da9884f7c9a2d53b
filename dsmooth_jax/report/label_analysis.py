"""Everything that a report says of a classifier with masks of pixels.

Asked of a store of tables, shard by shard, with no forward pass: any patch that the
masks cover. The answers of a table do not depend on how early its images stopped.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

from dsmooth_jax.double_masking import (
    NOT_COMPUTED,
    UNSURE,
    MaskedCertificate,
    certify_double_masking,
    join,
    nominal,
)
from dsmooth_jax.evaluation import Accuracy, Evaluation, evaluate, tally
from dsmooth_jax.masks import Masks, covered_placements, covering
from dsmooth_jax.storage.label_store import LabelStore
from dsmooth_jax.threat import Patch
from dsmooth_jax.types import ImageSize, PerImage

Watch: TypeAlias = Callable[
    [Iterator[tuple[slice, np.ndarray]]], Iterable[tuple[slice, np.ndarray]]
]
"""Passes on groups of images, (which, their tables), and shows how far it is."""


@dataclasses.dataclass(frozen=True)
class Break:
    """Where a certificate fails: two masks that together change the class.

    Attributes:
      corner: (row, column) of a placement that no believed mask covers.
      first: a mask that covers it.
      second: with both hidden, the classifier says another class, or is not sure; may
        equal first.
      label: which one; None where it is not sure.
    """

    corner: tuple[int, int]
    first: int
    second: int
    label: int | None


@dataclasses.dataclass(frozen=True, eq=False)
class LabelAnalysis:
    """What `analyze_labels` found about N images.

    Attributes:
      store: their tables.
      patches: what was asked, in the order of the table.
      certificates: {patch: certificate}, of the patches and of the squares that the
        masks cover.
      squares: the sides of these squares.
      num_passes: int64 [N], passes of the classifier.
      singles: int64 [N, M], the class with each mask alone.
      breaks: {image: where its certificate against `patch` fails}, of the sample.
      sample: int64 [n], increasing, the images that a page shows.
    """

    store: LabelStore
    patches: tuple[Patch, ...]
    certificates: dict[Patch, MaskedCertificate]
    squares: tuple[int, ...]
    num_passes: PerImage
    singles: np.ndarray
    breaks: dict[int, Break]
    sample: np.ndarray

    @property
    def patch(self) -> Patch:
        """The patch that figures of a single one are about: the middle one by area."""
        ordered = sorted(self.patches, key=lambda patch: patch.height * patch.width)
        return ordered[len(ordered) // 2]

    @property
    def base_accuracy(self) -> float:
        """With one mask hidden, the mean over images and masks; NaN of no images."""
        is_right = self.singles == self.store.labels[:, None]
        return float(is_right.mean()) if is_right.size else float("nan")

    def result(self, patch: Patch) -> Evaluation:
        """Accuracies against a patch, by the condition of each placement."""
        return evaluate(self.certificates[patch], self.store.labels)

    def unanimous(self, patch: Patch) -> Evaluation:
        """Likewise, by the published condition: all pairs agree."""
        found = self.certificates[patch]
        return tally(found.prediction == self.store.labels, found.is_unanimous)

    @property
    def detected(self) -> Accuracy:
        """Images right on which all single masks agree; of any patch they cover."""
        found = next(iter(self.certificates.values()))
        is_right = found.prediction == self.store.labels
        return Accuracy(int((found.is_detected & is_right).sum()), len(is_right))


def check_covered(masks: Masks, patches: Sequence[Patch], size: ImageSize) -> None:
    """Raises ValueError unless the masks cover each patch, before anything is done."""
    for patch in patches:
        covering(masks, patch, size)


def analyze_labels(
    store: LabelStore,
    patches: Sequence[Patch],
    *,
    sample: np.ndarray | None = None,
    watch: Watch = iter,
) -> LabelAnalysis:
    """Certifies the images of a store against patches.

    Args:
      store: the tables.
      patches: one or more, each covered by the store's masks.
      sample: the images of which `breaks` are wanted, increasing; None: none.
      watch: passes on what it is given, images (which, tables), to show how far it is.

    Returns:
      The analysis, of all images of the store.

    Raises:
      ValueError: a patch that the masks do not cover.
      StoreError: a shard is missing or damaged.
    """
    size, masks = store.image_size, store.masks
    check_covered(masks, patches, size)
    squares = _covered_squares(masks, size)
    asked = dict.fromkeys([*patches, *(Patch(side, side) for side in squares)])
    covers = {patch: covering(masks, patch, size) for patch in asked}
    kept = np.zeros(0, np.int64) if sample is None else sample
    found: dict[Patch, list[MaskedCertificate]] = {patch: [] for patch in asked}
    num_passes = np.zeros(len(store), np.int64)
    singles = np.zeros((len(store), store.entry_shape[0]), np.int64)
    breaks: dict[int, Break] = {}
    analysis = LabelAnalysis(
        store, tuple(patches), {}, tuple(squares), num_passes, singles, breaks, kept
    )
    placed = covered_placements(masks, analysis.patch, size)
    empty = slice(0, 0), np.empty((0, *store.entry_shape), np.int16)
    for span, tables in (empty, *watch(iter(store))):
        for patch, rows in covers.items():
            found[patch].append(certify_double_masking(tables, rows))
        # Each pair stands twice in a table, each single mask once.
        is_known = tables != NOT_COMPUTED
        num_passes[span] = np.triu(is_known).sum(axis=(1, 2))
        singles[span] = nominal(np.diagonal(tables, axis1=1, axis2=2))
        certified = found[analysis.patch][-1]
        for image in kept[(kept >= span.start) & (kept < span.stop)]:
            at = image - span.start
            if not certified.is_certified[at]:
                breaks[int(image)] = find_break(
                    tables[at], int(certified.prediction[at]), *placed
                )
    return dataclasses.replace(
        analysis,
        certificates={patch: join(parts) for patch, parts in found.items()},
    )


def find_break(
    table: np.ndarray, prediction: int, covers: np.ndarray, row_of: np.ndarray
) -> Break:
    """Where the certificate of one image fails, of a table in which it does.

    Args:
      table: int16 [M, M].
      prediction: of that image.
      covers: bool [L, M], from `covered_placements`, as is
      row_of: int64 [Dh, Dw].

    Returns:
      The first placement without a mask whose row agrees, of which a covering mask has
      a pair that is known to disagree.
    """
    disagrees = (table != prediction) & (table != NOT_COMPUTED)
    is_believed = (table == prediction).all(axis=1)
    is_bare = ~(covers & is_believed).any(axis=1)
    broken = covers & disagrees.any(axis=1)
    at = is_bare & broken.any(axis=1)
    row, column = np.argwhere(at[row_of])[0]
    first, second = broken_pair(disagrees, covers[row_of[row, column]])
    return Break((int(row), int(column)), first, second, said(table[first, second]))


def said(entry: int | np.integer) -> int | None:
    """The class that an entry of a table says; None where it is not sure."""
    return None if entry == UNSURE else int(nominal(np.asarray(entry)))


def broken_pair(disagrees: np.ndarray, is_covering: np.ndarray) -> tuple[int, int]:
    """Why no mask that covers a placement is believed there, in two masks.

    Args:
      disagrees: bool [M, M], pairs with which another class was said.
      is_covering: bool [M], of which one at least disagrees, alone or with another.

    Returns:
      The first covering mask that does, and the first with which it does; itself where
      it does so alone.
    """
    first = int((is_covering & disagrees.any(axis=1)).argmax())
    is_alone = disagrees[first, first]
    return first, first if is_alone else int(disagrees[first].argmax())


def _covered_squares(masks: Masks, size: ImageSize) -> list[int]:
    """Sides of the squares that the masks cover: all up to the largest."""
    sides = []
    for side in range(1, min(*size, *masks.shape) + 1):
        try:
            covering(masks, Patch(side, side), size)
        except ValueError:
            break
        sides.append(side)
    return sides
