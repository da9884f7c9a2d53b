"""Weights of other libraries in our networks, and ours in theirs.

A table for each family says what torchvision and timm call each of our layers, so one
table serves both ways; what other files call them is an alias. Layouts follow from the
number of axes: convolutions are [out, in, height, width] there and [height, width, in,
out] here, dense layers [out, in] there and [in, out] here.

The first layer is the only one that differs. Other networks see (x - mean) / std; ours
see NULL-encoded pixels, (x, 1 - x), or (0, 0) where hidden. With weights
w (1 - mean) / std for x and -w mean / std for 1 - x the sum is w (x - mean) / std for
every visible pixel, and 0 where hidden, which is what the network would make of a pixel
of the mean color. So a 3-channel network carries over exactly.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from dsmooth_jax.checks import check_choice, user_path
from dsmooth_jax.models.base import (
    BaseClassifier,
    ImageClassifier,
    Network,
    Variables,
)
from dsmooth_jax.models.weight_files import read_tensors
from dsmooth_jax.storage.files import write_whole

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Tensors = dict[str, np.ndarray]
"""Arrays by the names, and in the layouts, of PyTorch."""

_PREFIXES = r"^(module\.|model\.|net\.|backbone\.|encoder\.|_orig_mod\.)+"
"""What wrappers put before every name."""

_IGNORED = r"num_batches_tracked$|^attacker\.|^normalizer\.|^mask_token$"
"""Counters, copies and tokens that no prediction needs."""

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


@dataclasses.dataclass(frozen=True)
class _Family:
    """How a family's layers are called elsewhere.

    Attributes:
      marker: a layer that this family alone has.
      first: the layer that sees the image.
      names: (pattern of our name, theirs), applied one after the other.
      aliases: (pattern of a name in a file, the name that `names` would give).
    """

    marker: str
    first: str
    names: tuple[tuple[str, str | Callable[[re.Match], str]], ...]
    aliases: tuple[tuple[str, str | Callable[[re.Match], str]], ...] = ()


def _one_less(text: str) -> Callable[[re.Match], str]:
    """Fills {0}, {1} with the numbers found; the last of them counts from 0 there."""
    return lambda match: text.format(*match.groups()[:-1], int(match.groups()[-1]) - 1)


_RESNET = _Family(
    marker="stage1_block01.conv1.kernel",
    first="stem_conv",
    names=(
        (r"^stage(\d)_block(\d+)", _one_less("layer{}.{}")),
        (r"\.norm(\d)", r".bn\1"),
        (r"\.shortcut_conv", ".downsample.0"),
        (r"\.shortcut_norm", ".downsample.1"),
        (r"^stem_conv", "conv1"),
        (r"^stem_norm", "bn1"),
        (r"^head", "fc"),
    ),
    aliases=((r"\.shortcut\.", ".downsample."), (r"^linear\.", "fc.")),
)
_VIT = _Family(
    marker="patch_embed.kernel",
    first="patch_embed",
    names=(
        (r"^block(\d+)", _one_less("blocks.{}")),
        (r"\.(qkv|proj)\.", r".attn.\1."),
        (r"\.(fc\d)\.", r".mlp.\1."),
        (r"\.scale(\d)$", r".ls\1.gamma"),
        (r"^patch_embed\.", "patch_embed.proj."),
    ),
    aliases=((r"^register_tokens$", "reg_token"),),
)
_EFFICIENTNET_LITE = _Family(
    marker="conv_stem.kernel",
    first="conv_stem",
    names=(
        (r"^block(\d+)", _one_less("_blocks.{}")),
        (r"\.conv_(expand|depthwise|project)", r"._\1_conv"),
        (r"\.norm_expand", "._bn0"),
        (r"\.norm_depthwise", "._bn1"),
        (r"\.norm_project", "._bn2"),
        (r"^norm_stem", "_bn0"),
        (r"^norm_head", "_bn1"),
        (r"^(conv_stem|conv_head)", r"_\1"),
        (r"^head", "_fc"),
    ),
)
_OURS = _Family(marker="", first="", names=())


def load_weights(
    path: str | pathlib.Path,
    model: Network | BaseClassifier | ImageClassifier,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    has_head: bool = True,
) -> Variables:
    """Reads weights that PyTorch, torchvision or timm saved, or `save_weights`.

    Known are ResNets (torchvision, timm, and the CIFAR variant with names as
    "shortcut.0"), vision transformers (timm, DeiT, DINOv2), EfficientNet-Lite0, and
    whatever `save_weights` wrote. Names may be wrapped ("module.", "model.", ...).

    Args:
      path: a .safetensors file, or a .pth, .pt or .bin file of `torch.save`. PyTorch is
        not needed, and no code in the file is run.
      model: what the weights are for, from `models.build` or a network's function.
      mean: of each color, in [0, 1], as the network's images were normalised. It
        counts only where the file's first layer sees C channels and the model's 2C.
      std: likewise, the divisor of each color.
      has_head: False leaves the file's last layer out, for example because it tells
        other classes apart; the model's then starts at zero.

    Returns:
      The variables of the model, float32. Position embeddings are resized to its grid.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is none of these, or does not fit; every name that is
        missing, left over or of another shape is told.
    """
    target = jax.eval_shape(model.init, jax.random.key(0))
    wanted = _flat(target)
    family = _family(wanted)
    tensors, problems = _canonical(read_tensors(path), family)
    if family is _VIT:
        _split_positions(tensors, wanted)
    found: dict[str, np.ndarray] = {}
    for ours, leaf in wanted.items():
        theirs = _name(ours, family)
        tensor = tensors.pop(theirs, None)
        if ours.startswith("head.") and not has_head:
            found[ours] = np.zeros(leaf.shape, np.float32)
        elif tensor is None:
            problems.append(f"{theirs!r} is missing")
        else:
            array = _to_ours(tensor, ours)
            if ours == f"{family.first}.kernel":
                array = _null_encoded(array, leaf.shape, mean, std)
            if problem := _difference(tensor, array, ours, leaf.shape):
                problems.append(f"{theirs!r} {problem}")
            found[ours] = array
    problems += [f"{name!r} has no place in the model" for name in tensors]
    if problems:
        more = f"; and {len(problems) - 12} more" if len(problems) > 12 else ""
        raise ValueError(
            f"{path} does not fit the model: {'; '.join(problems[:12])}{more}; build "
            "the model that the file was made for (has_head=False takes other classes)"
        )
    leaves = [jnp.asarray(found[ours], jnp.float32) for ours in wanted]
    return jax.tree.unflatten(jax.tree.structure(target), leaves)


def save_weights(
    path: str | pathlib.Path, variables: Variables, *, format: str = "safetensors"
) -> None:
    """Writes weights for others, by the names and in the layouts of PyTorch.

    ResNets and vision transformers are named as timm names them: it loads the file into
    a model with `in_chans` of twice the image's channels, which then expects
    NULL-encoded images. Other networks keep our names.

    Args:
      path: the file to write, which must not be there.
      variables: a model's, as `load_weights` or `init` return them.
      format: "safetensors".

    Raises:
      FileExistsError: there is something.
      ValueError: another format.
    """
    check_choice("format", format, ("safetensors",))
    path = user_path("path", path)
    if path.exists():
        raise FileExistsError(f"{path} is there already; name another file")
    ours = _flat(variables)
    family = _family(ours)
    tensors = {_name(name, family): _to_theirs(a, name) for name, a in ours.items()}
    if family is _VIT:
        _join_positions(tensors)
    content = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    write_whole(path, content)


# Names.


def _flat(variables: Variables) -> dict[str, Any]:
    """Leaves by our names, "params" and "batch_stats" together."""
    return {
        jax.tree_util.keystr(path[1:], simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]
    }


def _family(leaves: Mapping[str, Any]) -> _Family:
    for family in (_RESNET, _VIT, _EFFICIENTNET_LITE):
        if family.marker in leaves:
            return family
    return _OURS


def _name(ours: str, family: _Family) -> str:
    """What the others call one of our leaves."""
    theirs = _renamed(ours, family.names)
    layer, _, leaf = theirs.rpartition(".")
    return f"{layer}.{_LEAVES[leaf]}" if leaf in _LEAVES else theirs


def _renamed(name: str, table: Sequence[tuple[str, Any]]) -> str:
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name


def _canonical(tensors: Tensors, family: _Family) -> tuple[Tensors, list[str]]:
    """The tensors of a file by the names of the table, and what is wrong with them."""
    found: Tensors = {}
    problems = []
    for name, tensor in tensors.items():
        bare = re.sub(_PREFIXES, "", name)
        if re.search(_IGNORED, bare):
            continue
        bare = _renamed(bare, family.aliases)
        if bare in found:
            problems.append(f"{name!r} is there twice")
        found[bare] = tensor
    return found, problems


# Layouts.


def _to_ours(tensor: np.ndarray, ours: str) -> np.ndarray:
    """A kernel with its axes as here; all else as it is."""
    if not ours.endswith("kernel"):
        return tensor
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T


def _to_theirs(array: Any, ours: str) -> np.ndarray:
    """A kernel with its axes as there; contiguous, as files must be."""
    array = np.asarray(array)
    if ours.endswith("kernel"):
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    return np.ascontiguousarray(array)


def _null_encoded(
    kernel: np.ndarray,
    shape: tuple[int, ...],
    mean: Sequence[float],
    std: Sequence[float],
) -> np.ndarray:
    """The kernel [h, w, C, o] of normalised images for NULL-encoded ones."""
    if kernel.ndim != 4 or 2 * kernel.shape[2] != shape[2]:
        return kernel
    channels = kernel.shape[2]
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise ValueError(
            f"mean={mean!r} and std={std!r} must have {channels} numbers each, one for "
            "each channel of the file's first layer, and std must be positive"
        )
    scaled = kernel.astype(np.float64) / np.reshape(std, (-1, 1))
    offset = np.reshape(mean, (-1, 1))
    both = np.concatenate([scaled * (1 - offset), -scaled * offset], axis=2)
    return both.astype(np.float32)


def _difference(
    tensor: np.ndarray, array: np.ndarray, ours: str, shape: tuple[int, ...]
) -> str:
    """What keeps a file's tensor, here an array, from its place; "" where nothing."""
    if not np.issubdtype(tensor.dtype, np.floating):
        return f"has dtype {tensor.dtype}, which is no weight's"
    if array.shape != shape:
        needed = _to_theirs(np.broadcast_to(0.0, shape), ours).shape
        return f"has shape {list(tensor.shape)}, not {list(needed)}"
    return "" if np.isfinite(array).all() else "has values that are not finite"


# Tokens and positions of vision transformers: [1, n, D] and [1, prefix + N, D] there;
# here the grid's positions alone, [rows, columns, D], and those of class token and
# registers added to them.

_PREFIX = {"cls_token": "class_token", "reg_token": "registers"}


def _split_positions(tensors: Tensors, wanted: Mapping[str, Any]) -> None:
    """Turns the tokens and positions of timm into ours, in place."""
    positions = tensors.get("pos_embed")
    tokens = {name: tensors[name] for name in _PREFIX if name in tensors}
    if positions is None or any(
        array.ndim != 3 or len(array) != 1 or array.shape[2] != positions.shape[2]
        for array in (positions, *tokens.values())
    ):
        return  # not timm's: told as of another shape
    grid = wanted["pos_embed"].shape[:2]
    num_prefix = sum(token.shape[1] for token in tokens.values())
    count = positions.shape[1]
    # timm's models with registers, and DeiT III, have no positions for the prefix.
    is_bare = count == math.prod(grid) or (
        count - num_prefix != math.prod(grid) and math.isqrt(count) ** 2 == count
    )
    start = 0
    for name, token in tokens.items():
        end = start + token.shape[1]
        tensors[_PREFIX[name]] = (
            token[0] if is_bare else (token + positions[:, start:end])[0]
        )
        del tensors[name]
        start = end
    tensors["pos_embed"] = _on_grid(positions[0, 0 if is_bare else num_prefix :], grid)


def _on_grid(positions: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """[N, D] -> [rows, columns, D], resized from a square where N is another."""
    if len(positions) == math.prod(grid):
        return positions.reshape(*grid, -1)
    side = math.isqrt(len(positions))
    if side * side != len(positions):
        return positions
    square = positions.reshape(side, side, -1).astype(np.float32)
    return np.asarray(jax.image.resize(square, (*grid, square.shape[2]), "cubic"))


def _join_positions(tensors: Tensors) -> None:
    """The inverse, in place; the positions of the class token are zero."""
    positions = tensors["pos_embed"]
    positions = positions.reshape(1, -1, positions.shape[2])
    for theirs, ours in _PREFIX.items():
        if ours in tensors:
            tensors[theirs] = tensors.pop(ours)[None]
    if "cls_token" in tensors and "reg_token" not in tensors:
        zeros = np.zeros_like(positions[:, :1])
        positions = np.concatenate([zeros, positions], axis=1)
    tensors["pos_embed"] = positions
