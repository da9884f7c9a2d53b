"""The network behind a defence, without it: what the defence buys is the difference."""

import dataclasses

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array

from dsmooth_jax.labeling import LogitsFn
from dsmooth_jax.masked import MaskedClassifier
from dsmooth_jax.masking import encode
from dsmooth_jax.scoring import bound, is_masked
from dsmooth_jax.smoothed import SmoothedClassifier


def undefended(classifier: SmoothedClassifier | MaskedClassifier) -> LogitsFn:
    """The network behind a defence, shown the whole image and simply believed.

    Args:
      classifier: what is left undefended.

    Returns:
      float32 images [B, H, W, C] in [0, 1] -> logits [B, K]: of the network on all of
      the image; where it sees no more than a window (`one_pass_scores`), the mean of
      the log scores of all windows.

    Raises:
      TypeError: the classifier is none of the two.
    """
    if not isinstance(classifier, SmoothedClassifier | MaskedClassifier):
        raise TypeError(
            f"classifier={classifier!r} must be a SmoothedClassifier or a "
            "MaskedClassifier; any other function is attacked as it is"
        )
    if isinstance(classifier, MaskedClassifier):
        return Partial(Shown(classifier.fill), classifier.logits_fn)
    scores_fn = bound("scores_fn", classifier.scores_fn)
    if is_masked(scores_fn):
        return Partial(Shown(None), scores_fn.args[0])
    return Partial(_mean_log_scores, scores_fn)


@dataclasses.dataclass(frozen=True)
class Shown:
    """A network of whole images, shown plain ones in the form that it is used to.

    Attributes:
      fill: None where it takes colors and their complements; see `MaskedClassifier`.
    """

    fill: float | None

    def __call__(self, logits_fn: LogitsFn, images: Array) -> Array:
        """Logits [B, K] of float32 images [B, H, W, C] in [0, 1]."""
        return logits_fn(encode(images) if self.fill is None else images)


def _mean_log_scores(scores_fn: Partial, images: Array) -> Array:
    return jnp.log(jnp.maximum(scores_fn(images), 1e-30)).mean(axis=1)
