"""The stream of noisy samples that votes, probabilities and gradients are made from.

All pairs (input, sample) form one stream, which is cut into chunks of `batch_size`, so that many inputs with few
samples share a batch and one input with many needs no more memory. Sample `s` of the input with id `i` depends on
`(key, i, s)` alone, whatever the chunks.
"""

import math
import operator
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxsmooth.checks import (
    check_first,
    check_host_inputs,
    check_ids,
    check_inputs,
    check_integer,
    check_key,
    check_noise,
    check_scores,
    to_jax,
)
from jaxsmooth.draws import fold_words
from jaxsmooth.types import Classifier, Noise
from jaxsmooth.vectors import WideJit

_FEW = 2**10  # inputs; with more of them compiling is short beside the rest


def stream_samples(
    noise: Noise,
    key: jax.Array,
    x: ArrayLike,
    *,
    n: int,
    batch_size: int = 256,
    ids: ArrayLike | None = None,
    first: int | jax.Array = 0,
) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Return the batches that `stream_votes` calls its classifier with, one after the other.

    The programs that draw them are compiled for a number of rows and a batch size. For up to 1,024 inputs of NumPy's
    these are among 1, 2, 3, 4, 6, 8, 12, ... whatever N is, with up to a half more rows than N * n in a single batch.

    Args:
        noise, key, x, n, batch_size, ids, first: as for `count_votes`.

    Returns:
        An iterator over pairs of noisy inputs `[B, *event]` and `i32[B]`, the row of x that each was made from. The
        rows that fill up the last batch are marked with N or more.

    Raises:
        ValueError, TypeError: as `count_votes`.

    Example:
        >>> from jaxsmooth import Gaussian
        >>> samples = stream_samples(Gaussian(1.0), jax.random.key(0), jnp.zeros((2, 5)), n=3, batch_size=4)
        >>> [rows.tolist() for noisy, rows in samples]
        [[0, 0, 0, 1], [1, 1, 2, 2]]
    """
    return check_stream(noise, key, x, n, batch_size, ids, first).draw()


class Task(NamedTuple):
    """What the samples are drawn from."""

    noise: Noise
    key: jax.Array
    x: Any
    """NumPy's where one draw of a loop on the host is to take it to the device."""
    ids: ArrayLike
    first: ArrayLike


class Position(NamedTuple):
    """Where a chunk starts in the stream of pairs. Two 32-bit numbers, so that N * n may exceed 32 bits."""

    row: Any
    sample: Any


def check_task(noise: Any, key: Any, x: Any, n: Any, batch_size: Any, ids: Any, first: Any) -> tuple[Task, int, int]:
    """Return what samples are drawn from, their number for each input, and how many make a chunk."""
    task, n, batch_size = _check_task(noise, key, check_inputs(x), n, batch_size, ids, first)
    return task, n, _chunk(task.x.shape[0], n, batch_size)


def _check_task(
    noise: Any, key: Any, inputs: Any, n: Any, batch_size: Any, ids: Any, first: Any
) -> tuple[Task, int, int]:
    n = check_integer("n", n, 1, 2**30)
    batch_size = check_integer("batch_size", batch_size, 1, 2**30)
    task = Task(check_noise(noise), check_key(key), inputs, check_ids(ids, inputs.shape[0]), check_first(first, n))
    return task, n, batch_size


def _chunk(number: int, n: int, batch_size: int) -> int:
    """Return how many samples make a chunk: no more than there are, but of no inputs as many as of one."""
    return min(batch_size, max(number, 1) * n)


def check_scan(noise: Any, key: Any, x: Any, n: Any, batch_size: Any, ids: Any, first: Any) -> tuple[Task, int, int]:
    """Return what `check_task` does, with chunks no larger than they must be for their number, in eights.

    Full ones but for the last would have up to twice as many rows as there are samples. The program of a scan is
    compiled for n in any case, so that chunks of another size for another n cost nothing.
    """
    task, n, batch_size = check_task(noise, key, x, n, batch_size, ids, first)
    return task, n, min(batch_size, -(-equal_part(task.x.shape[0] * n, batch_size) // 8) * 8)


class Stream(NamedTuple):
    """The samples of a loop on the host, in chunks: n, or n0 and n, for each of the first `number` rows of `task.x`."""

    task: Task
    number: int
    n0: int
    n: int
    batch_size: int

    @property
    def pairs(self) -> int:
        """The number of samples in all."""
        return self.number * (self.n0 + self.n)

    def draw(self) -> Iterator[tuple[jax.Array, jax.Array]]:
        """Draw the chunks in turn, each while the caller works on the one before."""
        upcoming = None
        for start in range(0, self.pairs, self.batch_size):
            position = Position(*map(np.int32, divmod(start, self.n0 + self.n)))
            drawn = _draw_jit(self.task, position, self.n, self.batch_size, self.n0)
            if upcoming is not None:
                yield upcoming
            upcoming = drawn
        if upcoming is not None:
            yield upcoming


def check_stream(noise: Any, key: Any, x: Any, n: Any, batch_size: Any, ids: Any, first: Any, n0: int = 0) -> Stream:
    """Return the samples of a loop on the host."""
    asked = n0 + n if n0 else n  # n alone is not known to be a number yet
    task, total, batch_size = _check_task(noise, key, check_host_inputs(x), asked, batch_size, ids, first)
    return stream_of(task, total - n0, batch_size, n0)


def stream_of(task: Task, n: int, batch_size: int, n0: int = 0) -> Stream:
    """Return what `check_stream` does, of what was checked already. A few inputs of NumPy's are filled up with zeros.

    There are few numbers of rows then. Else calls with ever other numbers of inputs, which attacks make, would each
    compile programs of their own.
    """
    number = len(task.x)
    rows = _chunk(number, n0 + n, batch_size)
    if n0:
        task = task._replace(key=both_keys(task.key))
    if isinstance(task.x, np.ndarray) and number <= _FEW and isinstance(task.ids, np.ndarray):
        # Copies, which the caller cannot change before they are drawn from.
        task = task._replace(x=fill_rows(task.x), ids=fill_rows(task.ids))
        rows = min(batch_size, few_sizes(rows))
        if number * (n0 + n) <= rows:  # a single draw takes them to the device faster itself
            return Stream(task, number, n0, n, rows)
    return Stream(task._replace(x=to_jax(task.x)), number, n0, n, rows)


def fill_rows(array: np.ndarray) -> np.ndarray:
    """Return an array with rows of zeros after its own, up to one of few sizes.

    Example:
        >>> fill_rows(np.ones((5, 2))).shape
        (6, 2)
    """
    filled = np.zeros((few_sizes(len(array)), *array.shape[1:]), array.dtype)
    filled[: len(array)] = array
    return filled


def few_sizes(number: int) -> int:
    """Return the least number 2^k or 3 * 2^k that is not below a number.

    Example:
        >>> [few_sizes(number) for number in (1, 3, 5, 7, 100, 130)]
        [1, 3, 6, 8, 128, 192]
    """
    power = 1 << max(0, number - 1).bit_length()
    return power * 3 // 4 if number <= power * 3 // 4 else power


def equal_part(total: int, most: int) -> int:
    """Return the size of the fewest equal parts of at most so many, the last of which may be smaller; at least 1.

    Example:
        >>> equal_part(10, most=6)
        5
    """
    return max(1, -(-total // max(1, -(-total // most))))


def count_classes(f: Classifier, task: Task, batch_size: int) -> int:
    """Return the number of classes K of a classifier, without running it."""
    batch = jax.ShapeDtypeStruct((batch_size, *task.x.shape[1:]), task.x.dtype)
    return check_scores(jax.eval_shape(f, batch), batch_size)


def scan_chunks(add: Callable[[Any, Position], Any], number: int, n: int, batch_size: int) -> Any:
    """Return the sum over all chunks: `add(total, position)` adds one chunk, to None the first."""

    def step(state: tuple[Any, Position], _: None) -> tuple[tuple[Any, Position], None]:
        total, position = state
        sample = position.sample + batch_size
        return (add(total, position), Position(position.row + sample // n, sample % n)), None

    start, chunks = Position(jnp.int32(0), jnp.int32(0)), -(-number * n // batch_size)
    if chunks == 1:  # lax.scan makes a loop even of one step
        return add(None, start)
    # Zeros like the result of one chunk, not plain ones: under shard_map they vary over the mesh as the result does.
    total = jax.tree.map(jnp.zeros_like, jax.eval_shape(partial(add, None), start))
    (total, _), _ = lax.scan(step, (total, start), length=chunks)
    return total


def draw(task: Task, position: Position, n: int, batch_size: int, n0: int = 0) -> tuple[jax.Array, jax.Array]:
    """Return the noisy inputs of one chunk and the row of `x` that each belongs to, N or more for padding.

    Where n0 is not 0, inputs have n0 samples under the first of `both_keys`, which are the task's, and n under the
    second. Row and key are then told by one number: twice the row, and one more under the second key.
    """
    if n0 == 0:
        noise, rows = draw_noise(task, position, n, batch_size)
        return add_noise(task, noise, rows), rows
    rows, samples = _pairs(position, n0 + n, batch_size)
    second = (samples >= np.uint32(n0)).astype(jnp.int32)
    chosen = task._replace(key=task.key[second])
    noise = noise_of(chosen, rows, samples - np.uint32(n0) * second.astype(jnp.uint32))
    return add_noise(task, noise, rows), 2 * rows + second


@jax.jit
def both_keys(key: jax.Array) -> jax.Array:
    """Return, as an array of two, the keys under which selection votes and estimation votes are drawn."""
    return jnp.stack([jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)])


def add_noise(task: Task, noise: jax.Array, rows: jax.Array) -> jax.Array:
    """Return rows of `x` with noise, in the dtype of `x`."""
    add = getattr(task.noise, "add", operator.add)
    noisy = add(task.x.at[rows].get(mode="clip").astype(noise.dtype), noise).astype(task.x.dtype)
    # The barrier makes f see the same rounded sum in every program, however XLA would fuse it. A loop over flat rows is
    # faster than one over the last axis of an image.
    return lax.optimization_barrier(noisy.reshape(len(noisy), math.prod(noisy.shape[1:]))).reshape(noisy.shape)


def draw_noise(task: Task, position: Position, n: int, batch_size: int) -> tuple[jax.Array, jax.Array]:
    """Return the noise of one chunk, float32 or wider, and the row of `x` that each belongs to."""
    rows, samples = _pairs(position, n, batch_size)
    return noise_of(task, rows, jnp.asarray(task.first) + samples), rows


def _pairs(position: Position, n: int, batch_size: int) -> tuple[jax.Array, jax.Array]:
    """Return row and sample of each pair of one chunk, `i32[B]` and `u32[B]`."""
    offset = position.sample + jnp.arange(batch_size, dtype=jnp.int32)
    passed = lax.div(offset, jnp.int32(n))  # no number is negative: `//` and `%` would compute more
    return position.row + passed, (offset - passed * n).astype(jnp.uint32)


def noise_of(task: Task, rows: jax.Array, samples: jax.Array) -> jax.Array:
    """Return the noise of pairs (row, sample), float32 or wider."""
    keys = fold_words(task.key, jnp.stack([jnp.asarray(task.ids).at[rows].get(mode="clip"), samples]))
    event, wide = task.x.shape[1:], task.x.dtype if task.x.dtype.itemsize > 4 else np.dtype(np.float32)
    return jax.vmap(lambda key: task.noise.sample(key, event, wide))(keys)


_draw_jit = WideJit(draw, static_argnums=(2, 3, 4))
