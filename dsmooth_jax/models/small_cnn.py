"""The small network of the paper's MNIST experiments.

Levine & Feizi, "(De)Randomized Smoothing", NeurIPS 2020: two 4x4 convolutions with
stride 2 (64 and 128 channels), dense layers of 500 and 100, ReLU in between.
"""

from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array, Float

from dsmooth_jax.models.base import Network, check_task, network


def small_cnn(*, image_shape: Sequence[int], num_classes: int) -> Network:
    """The small CNN for NULL-encoded images, which have twice the image's channels.

    Args:
      image_shape: (H, W, C) of the images, in pixels and color channels.
      num_classes: K.

    Returns:
      The network, from [M, H, W, 2C] to logits [M, K]. Its first dense layer fixes
      H and W.

    Raises:
      ValueError: an argument is none of these.
    """
    check_task(image_shape, num_classes)
    return network(lambda rngs: SmallCNN(image_shape, num_classes, rngs=rngs))


class SmallCNN(nnx.Module):
    """[M, H, W, 2C] -> logits [M, num_classes]. Arguments as in `small_cnn`."""

    def __init__(self, image_shape: Sequence[int], num_classes: int, *, rngs: nnx.Rngs):
        height, width, channels = image_shape
        # "SAME" with stride 2 halves, rounding up; here twice.
        num_features = -(-height // 4) * -(-width // 4) * 128
        # Few inputs are not NULL, so activations are small to begin with: He's
        # initialisation at least does not shrink them further.
        he = nnx.initializers.he_normal()
        self.conv1 = nnx.Conv(
            2 * channels, 64, (4, 4), strides=2, kernel_init=he, rngs=rngs
        )
        self.conv2 = nnx.Conv(64, 128, (4, 4), strides=2, kernel_init=he, rngs=rngs)
        self.dense1 = nnx.Linear(num_features, 500, kernel_init=he, rngs=rngs)
        self.dense2 = nnx.Linear(500, 100, kernel_init=he, rngs=rngs)
        self.head = nnx.Linear(100, num_classes, rngs=rngs)

    def __call__(self, x: Float[Array, "M H W C2"]) -> Float[Array, "M K"]:  # noqa: D102
        x = jax.nn.relu(self.conv1(x))
        x = jax.nn.relu(self.conv2(x))
        x = x.reshape(x.shape[0], -1)  # [M, h * w * 128]
        x = jax.nn.relu(self.dense1(x))
        x = jax.nn.relu(self.dense2(x))
        return self.head(x)
