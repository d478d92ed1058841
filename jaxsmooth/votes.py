"""Votes: run a classifier on noisy copies of the inputs and count the classes it returns.

This is the only place that runs a model for a decision. What it is run on is drawn in `jaxsmooth.samples`.
"""

from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxsmooth.callables import StaticCallable, merge_callable, split_callable
from jaxsmooth.checks import check_callable, check_integer, check_key, check_scores, check_untraced
from jaxsmooth.progress import progress_bar
from jaxsmooth.samples import (
    Position,
    Stream,
    Task,
    both_keys,
    check_scan,
    check_stream,
    count_classes,
    draw,
    scan_chunks,
)
from jaxsmooth.types import Classifier, Noise


def count_votes(
    f: Classifier,
    noise: Noise,
    key: jax.Array,
    x: ArrayLike,
    *,
    n: int,
    batch_size: int = 256,
    ids: ArrayLike | None = None,
    first: int | jax.Array = 0,
) -> jax.Array:
    """Count the classes of `n` noisy copies of each input, in one compiled scan over chunks.

    Entry (i, c) of the result is the number of samples s in [first, first + n) with argmax f(x_i + e_is) = c, ties
    going to the lowest index. The noise e_is depends on the key, `ids[i]` and s alone, so that counts of disjoint
    ranges of samples add up, and do not depend on the batch size, the other inputs, or the number of devices, provided
    that a row of f(x) depends on that row of x alone. A sample with a non-finite score votes for no class.

    Works inside and outside of `jax.jit`, `jax.vmap`, `jax.lax.map` and `jax.shard_map`. It compiles once for each f,
    shape, n and batch size. Memory does not grow with n.

    Args:
        f: base classifier, `[B, *event] -> [B, K]` scores, traceable by JAX; see `jaxsmooth.Classifier`.
        noise: `Gaussian`, `Laplace`, `Uniform` or another `jaxsmooth.Noise`; its scale is in the units of `x`.
        key: one Threefry key. Using it elsewhere too makes those random numbers depend on these.
        x: inputs `[N, *event]`, floating-point. Noise is float32; the sum is cast back to the dtype of `x`.
        n: number of samples for each input, static, at least 1.
        batch_size: rows in one call of f, static, at most: fewer where as many batches of fewer rows do.
        ids: `N` integers in [0, 2^32) that name the inputs to the noise; 0..N-1 by default.
        first: index of the first sample.

    Returns:
        `i32[N, K]`. A row adds up to n less the samples with non-finite scores.

    Raises:
        ValueError, TypeError: an argument is not as described; x or the scale is not finite. Where values are traced
            they cannot be refused: a non-finite input gets no votes, ids and first are taken modulo 2^32.

    Example:
        >>> from jaxsmooth import Gaussian
        >>> f = lambda x: jnp.stack([x.sum(-1), -x.sum(-1)], -1)
        >>> count_votes(f, Gaussian(1.0), jax.random.key(0), jnp.array([[9.0, 0.0], [0.0, 0.0]]), n=1000)
        Array([[1000,    0],
               [ 492,  508]], dtype=int32)
    """
    check_callable(f)
    task, n, batch_size = check_scan(noise, key, x, n, batch_size, ids, first)
    if task.x.shape[0] == 0:
        return jnp.zeros((0, count_classes(f, task, batch_size)), jnp.int32)
    arrays, static = split_callable(f)
    (counts,) = _scan(arrays, task, static=static, n0=0, n=n, batch_size=batch_size)
    return counts


def count_both(
    f: Classifier,
    noise: Noise,
    key: jax.Array,
    x: ArrayLike,
    *,
    n0: int,
    n: int,
    batch_size: int = 256,
    ids: ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Count n0 selection votes and n estimation votes as `count_votes` does under each of `decision_keys`.

    One scan counts both, so that f is compiled once.

    Args:
        f, noise, key, x, batch_size, ids: as for `count_votes`.
        n0, n: numbers of samples for each input, static, at least 1, of at most 2^30 together.

    Returns:
        Two arrays `i32[N, K]`.

    Raises:
        ValueError, TypeError: as `count_votes`.

    Example:
        >>> from jaxsmooth import Gaussian
        >>> f = lambda x: jnp.stack([x.sum(-1), -x.sum(-1)], -1)
        >>> count_both(f, Gaussian(1.0), jax.random.key(0), jnp.array([[9.0, 0.0]]), n0=10, n=1000)
        (Array([[10,  0]], dtype=int32), Array([[1000,    0]], dtype=int32))
    """
    check_callable(f)
    n0, n = check_both(n0, n)
    task, _, batch_size = check_scan(noise, key, x, n0 + n, batch_size, ids, 0)
    if task.x.shape[0] == 0:
        empty = jnp.zeros((0, count_classes(f, task, batch_size)), jnp.int32)
        return empty, empty
    arrays, static = split_callable(f)
    selection, counts = _scan(arrays, task, static=static, n0=n0, n=n, batch_size=batch_size)
    return selection, counts


def stream_votes(
    f: Classifier,
    noise: Noise,
    key: jax.Array,
    x: ArrayLike,
    *,
    n: int,
    batch_size: int = 256,
    ids: ArrayLike | None = None,
    first: int | jax.Array = 0,
    progress: bool = False,
) -> jax.Array:
    """Count the classes of `n` noisy copies of each input, in a host loop that calls `f` eagerly.

    The same arguments, guarantee, noise and result as `count_votes`, for any callable f that takes a JAX array and
    returns an array, and outside of `jax.jit` alone. The noise of the next chunk is made while f runs on this one.
    Calls with other numbers of inputs than before compile little or nothing where x is NumPy's: see `stream_samples`.

    Args:
        f, noise, key, x, n, batch_size, ids, first: as for `count_votes`.
        progress: show a bar over the chunks (needs tqdm, the extra `progress`).

    Returns:
        `i32[N, K]`.

    Raises:
        ValueError, TypeError: as `count_votes`. ImportError: `progress` without tqdm.

    Example:
        >>> import numpy as np
        >>> from jaxsmooth import Gaussian
        >>> f = lambda x: np.stack([x.sum(-1), -x.sum(-1)], -1)
        >>> stream_votes(f, Gaussian(1.0), jax.random.key(0), jnp.array([[9.0, 0.0], [0.0, 0.0]]), n=1000)
        Array([[1000,    0],
               [ 492,  508]], dtype=int32)
    """
    check_callable(f)
    stream = check_stream(noise, key, x, n, batch_size, ids, first)
    check_untraced("stream_votes", (f, stream.task))
    counts = _add_up(f, stream, progress)
    return counts if len(counts) == stream.number else jnp.asarray(np.asarray(counts)[: stream.number])


def stream_both(
    f: Classifier,
    noise: Noise,
    key: jax.Array,
    x: ArrayLike,
    *,
    n0: int,
    n: int,
    batch_size: int = 256,
    ids: ArrayLike | None = None,
    progress: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Count n0 selection votes and n estimation votes as `stream_votes` does under each of `decision_keys`.

    The same votes as `count_both`, in one loop on the host.

    Args:
        f, noise, key, x, batch_size, ids, progress: as for `stream_votes`.
        n0, n: numbers of samples for each input, at least 1, of at most 2^30 together.

    Returns:
        Two arrays `i32[N, K]`.

    Raises:
        ValueError, TypeError, ImportError: as `stream_votes`.

    Example:
        >>> from jaxsmooth import Gaussian
        >>> f = lambda x: np.stack([x.sum(-1), -x.sum(-1)], -1)
        >>> stream_both(f, Gaussian(1.0), jax.random.key(0), jnp.array([[9.0, 0.0]]), n0=10, n=1000)
        (array([[10,  0]], dtype=int32), array([[1000,    0]], dtype=int32))
    """
    check_callable(f)
    n0, n = check_both(n0, n)
    stream = check_stream(noise, key, x, n, batch_size, ids, 0, n0)
    check_untraced("stream_both", (f, stream.task))
    counts = np.asarray(_add_up(f, stream, progress))[: 2 * stream.number]
    return counts[::2], counts[1::2]


def check_both(n0: Any, n: Any) -> tuple[int, int]:
    """Return numbers of selection and of estimation votes."""
    n = check_integer("n", n, 1, 2**30 - 1)
    return check_integer("n0", n0, 1, 2**30 - n), n


def _add_up(f: Any, stream: Stream, progress: bool) -> jax.Array:
    """Return the votes of what `stream` draws, a row of them for each number that tells its samples apart."""
    places, counts = len(stream.task.x) * (2 if stream.n0 else 1), None
    if stream.number == 0:
        scores = jnp.asarray(f(jnp.zeros((stream.batch_size, *stream.task.x.shape[1:]), stream.task.x.dtype)))
        return jnp.zeros((0, check_scores(scores, stream.batch_size)), jnp.int32)
    with progress_bar("votes", stream.pairs, progress) as advance:
        for done, (noisy, rows) in enumerate(stream.draw(), start=1):
            scores: Any = f(noisy)
            if not isinstance(scores, (jax.Array, np.ndarray)):
                scores = jnp.asarray(scores)
            check_scores(scores, stream.batch_size)
            # Waiting here keeps the dispatch one chunk ahead: memory stays constant and an interrupt takes effect.
            counts = jax.block_until_ready(add_votes_jit(counts, scores, rows, places))
            advance(min(done * stream.batch_size, stream.pairs))
    return cast(jax.Array, counts)


def decision_keys(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the keys under which `certify` draws its selection votes and its estimation votes.

    Example:
        >>> selection_key, estimation_key = decision_keys(jax.random.key(0))
    """
    return _decision_keys(check_key(key))


@jax.jit
def _decision_keys(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    keys = both_keys(key)
    return keys[0], keys[1]


@partial(jax.jit, static_argnames=("static", "n0", "n", "batch_size"))
def _scan(
    arrays: list[Any], task: Task, *, static: StaticCallable, n0: int, n: int, batch_size: int
) -> list[jax.Array]:
    """Return the votes, `i32[N, K]`, and before them the selection votes where n0 is not 0."""
    f, number = merge_callable(arrays, static), task.x.shape[0]
    if n0:
        task = task._replace(key=both_keys(task.key))

    def add_chunk(counts: jax.Array | None, position: Position) -> jax.Array:
        noisy, rows = draw(task, position, n, batch_size, n0)
        scores = f(noisy)
        check_scores(scores, batch_size)
        return add_votes(counts, scores, rows, 2 * number if n0 else number)

    counts = scan_chunks(add_chunk, number, n0 + n, batch_size)
    finite = jnp.isfinite(task.x).all(axis=tuple(range(1, task.x.ndim)))
    sets = [counts[::2], counts[1::2]] if n0 else [counts]
    return [jnp.where(finite[:, None], votes, 0) for votes in sets]


def add_votes(counts: jax.Array | None, scores: jax.Array, rows: jax.Array, number: int) -> jax.Array:
    """Add the classes of one chunk to the counts; padding and non-finite scores are out of range and dropped."""
    if counts is None:
        counts = jnp.zeros((number, scores.shape[1]), jnp.int32)
    rows = jnp.where(jnp.isfinite(scores).all(axis=1), rows, number)
    return counts.at[rows, jnp.argmax(scores, axis=1)].add(1, mode="drop")


add_votes_jit = partial(jax.jit, static_argnums=3)(add_votes)
