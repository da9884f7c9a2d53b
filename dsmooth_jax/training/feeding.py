"""How steps get their images, and how many of them one call to the device takes.

A set of arrays that fits stays on every device, as uint8: a call is told the rows of
its batches, and takes its steps in one compiled loop. Any other set comes batch by
batch, the next one on its way while a step runs. The length of a call is an argument of
one program, so no result depends on where calls end: a run that is killed and goes on
ends with the same bits.

On CPUs a call is one step: XLA computes convolutions in loops much more slowly there.
"""

import concurrent.futures
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial
from jaxtyping import Array, Float32, Int, UInt8

from dsmooth_jax import compiling, distributed
from dsmooth_jax.data import Batch
from dsmooth_jax.training.metrics import Measured
from dsmooth_jax.training.step import TrainState, TrainStep

MEMORY_SHARE = 0.25
"""Of a device's memory, that images may take to stay there."""

MOST_STEPS = 100
"""In a call, where nobody says how many."""

CALL_SECONDS = 0.5
"""About so long a call takes then."""

Take = Callable[[TrainState, int, int], tuple[TrainState, Measured]]
"""(state, steps taken, steps to take) -> (state, metrics of each of them)."""


@dataclass(frozen=True, eq=False)
class Resident:
    """Images that stay on every device.

    Attributes:
      images: of the training set.
      labels: theirs, or soft ones.
      rows: (first step, one more than the last) -> the images of each batch, of all
        processes together.
    """

    images: UInt8[np.ndarray, "N H W C"]
    labels: Int[np.ndarray, " N"] | Float32[np.ndarray, "N K"]
    rows: Callable[[int, int], Int[np.ndarray, "n B"]]

    def start(
        self, step: TrainStep, mesh: Mesh, key_data: Array, steps: range, most: int
    ) -> Take:
        """Sends the images; a call takes at most `most` steps."""
        everywhere = NamedSharding(mesh, PartitionSpec())
        shares = NamedSharding(mesh, PartitionSpec("batch"))
        is_hard = self.labels.ndim == 1
        labels = self.labels.astype(np.int32) if is_hard else self.labels
        step = distributed.replicate(_as_tree(step), mesh)
        images, labels = (
            jax.make_array_from_process_local_data(everywhere, array, array.shape)
            for array in (self.images, labels)
        )

        # All are arguments, a teacher's arrays in the step, too: no constants.
        given = step, images, labels, key_data

        def one(state: Any, given: Any, rows: Any) -> Any:
            step, images, labels, key_data = given
            found = [jnp.take(all, rows, 0, mode="clip") for all in (images, labels)]
            inputs, targets = jax.lax.with_sharding_constraint(found, shares)
            key = jax.random.wrap_key_data(key_data)
            state, metrics = step(state, inputs, targets, key)
            return state, Measured.of(metrics)

        def several(state, given, rows, count):
            _, first = jax.eval_shape(one, state, given, rows[0])
            nothing = jnp.zeros((most, len(first.names)), first.values.dtype)

            def body(index, carry):
                state, values = carry
                state, measured = one(state, given, rows[index])
                return state, values.at[index].set(measured.values[0])

            state, values = jax.lax.fori_loop(0, count, body, (state, nothing))
            return state, Measured(values, first.names)

        program = jax.jit(
            one if most == 1 else several,
            donate_argnums=0,
            out_shardings=everywhere,
            compiler_options=compiling.compiler_options(),
        )

        def take(state: TrainState, first: int, count: int) -> Any:
            rows = self.rows(first, first + count).astype(np.int32)
            if most == 1:
                return program(state, given, rows[0])
            rows = np.pad(rows, [(0, most - count), (0, 0)])
            return program(state, given, rows, np.int32(count))

        return take


@dataclass(frozen=True, eq=False)
class Streamed:
    """Images that come batch by batch.

    Attributes:
      batches: (first step, one more than the last) -> this process's part of each.
    """

    batches: Callable[[int, int], Iterator[Batch]]

    def start(
        self, step: TrainStep, mesh: Mesh, key_data: Array, steps: range, most: int
    ) -> Take:
        """Begins to read; a call takes one step, in order."""
        everywhere = NamedSharding(mesh, PartitionSpec())
        step = distributed.replicate(_as_tree(step), mesh)

        def one(state, step, images, labels, key_data):
            key = jax.random.wrap_key_data(key_data)
            state, metrics = step(state, images, labels, key)
            return state, Measured.of(metrics)

        program = jax.jit(
            one,
            donate_argnums=0,
            out_shardings=everywhere,
            compiler_options=compiling.compiler_options(),
        )

        def send(batch: Batch) -> Any:
            images, labels = batch
            return distributed.spread((images, labels.astype(np.int32)), mesh)

        sent = _ahead(self.batches(steps.start, steps.stop), send)

        def take(state: TrainState, first: int, count: int) -> Any:
            return program(state, step, *next(sent), key_data)

        return take


def fits(images: np.ndarray) -> bool:
    """Whether images may stay on each device.

    They may where JAX does not say how much memory there is: on CPUs, whose memory they
    are in already.
    """
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return limit is None or images.nbytes <= MEMORY_SHARE * limit


class Pace:
    """How many steps a call takes.

    As many as asked; or twice as many as the last, until a call takes long enough that
    what the host does between two of them is nothing, and it can still be stopped soon.

    Attributes:
      most: steps of any call.
      length: steps of the next one.
    """

    def __init__(self, feed: Resident | Streamed, asked: int | None):
        is_one = isinstance(feed, Streamed) or jax.default_backend() == "cpu"
        self.most = 1 if isinstance(feed, Streamed) else asked or MOST_STEPS
        if asked is None and is_one:
            self.most = 1
        self.length = self.most if asked else 1
        self._begun: float | None = None  # when a call began, if it compiles nothing

    def follow(self, measured: Any) -> None:
        """Looks how long a call took, given what it measured."""
        if self.length >= self.most:
            return
        jax.block_until_ready(measured)
        now = time.monotonic()
        if self._begun is not None:
            is_short = now - self._begun < CALL_SECONDS / 2
            is_short = distributed.agreed(is_short)
            self.length = min(2 * self.length, self.most) if is_short else self.length
            self.most = self.most if is_short else self.length
        self._begun = now


def _as_tree(step: TrainStep) -> Partial:
    """The step as an argument of a program, its arrays its leaves."""
    return step if isinstance(step, Partial) else Partial(step)


def _ahead(items: Iterable[Any], send: Callable[[Any], Any]) -> Iterator[Any]:
    """Yields what `send` makes of each; the next is made meanwhile, by a thread."""
    left = iter(items)

    def make() -> Any:
        for item in left:
            return send(item)
        return None

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pending = pool.submit(make)
        while (made := pending.result()) is not None:
            pending = pool.submit(make)
            yield made
