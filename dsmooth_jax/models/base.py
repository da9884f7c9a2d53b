"""From an NNX module to plain functions, and from those to a base classifier.

This is the only file in which a Flax module meets arrays: `network` turns a module
into functions of nested dicts, and everything that trains, scores or saves a model
sees those functions alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, Key

from dsmooth_jax import masking, scoring
from dsmooth_jax.ablation import Ablation, thinned
from dsmooth_jax.hiding import HidingConfig, draw_hidden

Variables = dict[str, Any]
"""{"params": {...}, "batch_stats": {...}}: nested dicts of arrays, nothing of Flax.
"batch_stats" is {} for a network without batch normalisation."""

Logits = Float[Array, "M K"]


@dataclass(frozen=True)
class Network:
    """A neural network as pure functions of its variables.

    Attributes:
      init: key -> variables. Compiled, without optimisation (the random numbers are
        the same and compile 4 times faster), unless it is called while tracing.
      logits: (variables, inputs [M, ...]) -> [M, K], in evaluation mode: the running
        batch statistics are used and no input sees another.
      train_logits: (variables, inputs [M, ...]) -> (logits [M, K], batch_stats), in
        training mode: the statistics of these inputs are used, and the running ones,
        updated, are returned in the form of `variables["batch_stats"]`. Parameters in
        bfloat16 are computed with in bfloat16, and batch statistics in float32.
      quick_logits: as logits, of parameters in bfloat16 as train_logits: to teach, and
        not to certify.

    All but init can be traced (jit, grad, vmap) and raise ValueError for variables that
    are not this network's.
    """

    init: Callable[[Array], Variables]
    logits: Callable[[Variables, Array], Array]
    train_logits: Callable[[Variables, Array], tuple[Array, dict[str, Any]]]
    quick_logits: Callable[[Variables, Array], Array]


@dataclass(frozen=True)
class BaseClassifier:
    """What training and certification need to know of a model, whatever it is made of.

    Attributes:
      init: key -> variables, see `Network`.
      train_logits: (variables, images [B, H, W, C] float32 in [0, 1], key) ->
        (logits [B, n, K], batch_stats): the logits of n random ablations of each
        image, and the updated batch statistics.
      drawn_logits: (variables, images, key) -> logits [B, n, K] of the ablations that
        train_logits draws with this key, in evaluation mode.
      train_all_logits: (variables, images, every) -> likewise the logits of all P
        ablations of `thinned(ablation, every)`, [B, P, K].
      scores_fn: variables -> a function of images [B, H, W, C] that returns the
        softmax scores [B, P, K] of every ablation, in evaluation mode.
    """

    init: Callable[[Array], Variables]
    train_logits: Callable[[Variables, Array, Array], tuple[Array, dict[str, Any]]]
    drawn_logits: Callable[[Variables, Array, Array], Array]
    train_all_logits: Callable[[Variables, Array, int], tuple[Array, dict[str, Any]]]
    scores_fn: Callable[[Variables], Callable[[Array], Array]]


@dataclass(frozen=True)
class ImageClassifier:
    """What training and certification under masks of pixels need to know of a model.

    Attributes:
      init: key -> variables, see `Network`.
      train_logits: (variables, images [B, H, W, C] float32 in [0, 1], labels [B], key)
        -> (logits [B, 1, K], batch_stats): of each image with windows hidden at random,
        and the updated batch statistics.
      logits_fn: variables -> a function of NULL-encoded images [B, H, W, 2C] that
        returns logits [B, K], in evaluation mode, as `mask_labels` takes it.
    """

    init: Callable[[Array], Variables]
    train_logits: Callable[
        [Variables, Array, Array, Array], tuple[Array, dict[str, Any]]
    ]
    logits_fn: Callable[[Variables], Callable[[Array], Array]]


def network(make: Callable[[nnx.Rngs], nnx.Module]) -> Network:
    """Turns an NNX module into a `Network`.

    Args:
      make: builds the module, which maps inputs [M, ...] to logits [M, K]. Its
        variables must be `nnx.Param` and `nnx.BatchStat` (so no `nnx.Dropout`, which
        carries random state).

    Returns:
      The network. No array is allocated before `init` is called.

    Raises:
      ValueError: the module has other kinds of variables.
    """
    module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    abstract = _variables(module)
    module.train()
    train_graph = nnx.graphdef(module)
    module.eval()
    eval_graph = nnx.graphdef(module)

    def merge(graph: Any, variables: Variables, kept: Variables) -> Any:
        # nnx.merge pairs leaves by order and looks neither at names nor at shapes.
        _check_variables(kept, abstract)
        return nnx.merge(graph, variables["params"], variables["batch_stats"])

    def quick(
        graph: Any, variables: Variables, inputs: Float[Array, "M ..."]
    ) -> tuple[Logits, Any]:
        if not _is_bfloat16(variables):
            module = merge(graph, variables, variables)
            return module(inputs), module
        module = merge(graph, variables, _kept(variables))
        # Statistics in float32 meet what is normalised, on purpose.
        with jax.numpy_dtype_promotion("standard"):
            return module(inputs.astype(jnp.bfloat16)), module

    def init(key: Key[Array, ""]) -> Variables:
        return _variables(make(nnx.Rngs(key)))

    def logits(variables: Variables, inputs: Float[Array, "M ..."]) -> Logits:
        return merge(eval_graph, variables, variables)(inputs)

    def quick_logits(variables: Variables, inputs: Float[Array, "M ..."]) -> Logits:
        return quick(eval_graph, variables, inputs)[0]

    def train_logits(
        variables: Variables, inputs: Float[Array, "M ..."]
    ) -> tuple[Logits, dict[str, Any]]:
        outputs, module = quick(train_graph, variables, inputs)
        return outputs, _variables(module)["batch_stats"]

    # XLA takes options for outermost functions only.
    options = {"xla_backend_optimization_level": 0}
    compiled = jax.jit(init, compiler_options=options)

    def init_anywhere(key: Key[Array, ""]) -> Variables:
        return (init if isinstance(key, jax.core.Tracer) else compiled)(key)

    return Network(init_anywhere, logits, train_logits, quick_logits)


def masked_classifier(
    network: Network, ablation: Ablation, *, chunk_size: int
) -> BaseClassifier:
    """The paper's base classifier: full-size images, NULL where hidden.

    Trains on one random ablation per image (n = 1; the paper draws one per batch) and
    scores all P with P passes.

    Args:
      network: maps NULL-encoded images [M, H, W, 2C] to logits [M, K].
      ablation: what is kept of an image.
      chunk_size: ablations of each image scored at a time; bounds memory, see
        `scoring.masked_scores`.
    """

    def train_logits(
        variables: Variables, images: Float[Array, "B H W C"], key: Key[Array, ""]
    ) -> tuple[Float[Array, "B 1 K"], dict[str, Any]]:
        ablated = masking.random_ablate(key, images, ablation)
        logits, batch_stats = network.train_logits(variables, ablated)
        return logits[:, None, :], batch_stats

    def drawn_logits(
        variables: Variables, images: Float[Array, "B H W C"], key: Key[Array, ""]
    ) -> Float[Array, "B 1 K"]:
        ablated = masking.random_ablate(key, images, ablation)
        return network.quick_logits(variables, ablated)[:, None, :]

    def train_all_logits(
        variables: Variables, images: Float[Array, "B H W C"], every: int
    ) -> tuple[Float[Array, "B P K"], dict[str, Any]]:
        ablated = masking.ablate(images, thinned(ablation, every))  # [B, P, H, W, 2C]
        num = ablated.shape[:2]
        logits, batch_stats = network.train_logits(
            variables, ablated.reshape(-1, *ablated.shape[2:])
        )
        return logits.reshape(*num, -1), batch_stats

    def scores_fn(variables: Variables) -> Callable[[Array], Array]:
        # The variables are arguments: scoring compiles once, however often they change.
        logits_fn = Partial(network.logits, variables)
        return scoring.masked_scores(logits_fn, ablation, chunk_size=chunk_size)

    return BaseClassifier(
        network.init, train_logits, drawn_logits, train_all_logits, scores_fn
    )


def image_classifier(network: Network, hiding: HidingConfig) -> ImageClassifier:
    """A classifier of whole images that learns with windows of them hidden.

    Args:
      network: maps NULL-encoded images [M, H, W, 2C] to logits [M, K].
      hiding: what is hidden in training. Where the worst of several is taken, that is
        the one of the largest cross-entropy in a pass of all of them.
    """

    def train_logits(
        variables: Variables,
        images: Float[Array, "B H W C"],
        labels: Int[Array, " B"],
        key: Key[Array, ""],
    ) -> tuple[Float[Array, "B 1 K"], dict[str, Any]]:
        hidden = draw_hidden(key, hiding, len(images), images.shape[1:3])
        inputs = jnp.where(
            hidden[..., None], jnp.float32(0), masking.encode(images)[None]
        )  # [n, B, H, W, 2C]
        if hiding.worst_of == 1:
            worst = inputs[0]
        else:
            logits, _ = network.train_logits(
                variables, inputs.reshape(-1, *inputs.shape[2:])
            )
            logits = logits.astype(jnp.float32).reshape(*inputs.shape[:2], -1)
            own = jnp.take_along_axis(logits, labels[None, :, None], axis=2)[..., 0]
            loss = jax.nn.logsumexp(logits, axis=2) - own  # [n, B]
            chosen = jax.lax.stop_gradient(loss.argmax(axis=0))
            worst = inputs[chosen, jnp.arange(len(images))]
        logits, batch_stats = network.train_logits(variables, worst)
        return logits[:, None, :], batch_stats

    def logits_fn(variables: Variables) -> Callable[[Array], Array]:
        return Partial(network.logits, variables)

    return ImageClassifier(network.init, train_logits, logits_fn)


def check_task(image_shape: Sequence[int], num_classes: int) -> None:
    """Refuses, with a ValueError, what no network can be built for.

    Args:
      image_shape: must be (H, W, C), all >= 1.
      num_classes: must be >= 2.
    """
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(
            f"image_shape={image_shape!r} must be (height, width, channels), all >= 1"
        )
    if num_classes < 2:
        raise ValueError(f"num_classes={num_classes} must be >= 2")


def keep_dtypes(arrays: Any, /, *, dtype: Any = None, inexact: bool = True) -> Any:
    """For `nnx.BatchNorm`: float32 statistics do not make float32 of bfloat16."""
    return arrays


def _is_bfloat16(variables: Variables) -> bool:
    """Whether these are to compute with in bfloat16: all parameters are."""
    leaves = jax.tree.leaves(variables.get("params"))
    return bool(leaves) and all(
        getattr(leaf, "dtype", None) == jnp.bfloat16 for leaf in leaves
    )


def _kept(variables: Variables) -> Variables:
    """The form in which these variables are kept: parameters in float32."""
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), variables["params"]
    )
    return {**variables, "params": params}


def _variables(module: nnx.Module) -> Variables:
    """The module's variables as plain dicts; ValueError for any other kind."""
    _, *states = nnx.split(module, nnx.Param, nnx.BatchStat, ...)
    params, batch_stats, others = states
    if others:
        raise ValueError(
            f"the module has variables at {list(nnx.to_flat_state(others).paths)}; "
            "only nnx.Param and nnx.BatchStat can be carried (nnx.Dropout has others)"
        )
    return {
        "params": nnx.to_pure_dict(params),
        "batch_stats": nnx.to_pure_dict(batch_stats),
    }


def _check_variables(variables: Variables, expected: Variables) -> None:
    """Raises ValueError at the first name, shape or dtype that differs."""
    given, wanted = _leaves(variables), _leaves(expected)
    for path in [*wanted, *given]:
        if given.get(path) != wanted.get(path):
            raise ValueError(
                f"variables{path} is {given.get(path, 'missing')}, but in the network "
                f"it is {wanted.get(path, 'missing')}: these variables belong to "
                "another model; build the network they were made for"
            )
    form: Any = jax.tree.structure(expected)  # Any: jaxlib does not type its operators
    if form != jax.tree.structure(variables):
        raise ValueError(
            "variables must be plain nested dicts with exactly the keys 'params' and "
            "'batch_stats' ({} where there is none), as `init` returns them"
        )


def _leaves(variables: Any) -> dict[str, str]:
    """Where each array is and what it looks like: {"['params']['a']": "float32[3]"}."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(variables)
    return {
        jax.tree_util.keystr(path): (
            f"{getattr(leaf, 'dtype', type(leaf).__name__)}{list(np.shape(leaf))}"
        )
        for path, leaf in leaves
    }
