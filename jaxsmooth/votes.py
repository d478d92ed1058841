"""Votes: run a classifier on noisy copies of the inputs and count the classes that it returns.

Two drivers give the same votes: one compiled scan, and a loop on the host that calls any classifier.
"""

import jax
import numpy as np
from jax.typing import ArrayLike

from jaxsmooth._checks import as_batch_size, as_first, as_n
from jaxsmooth._host_loop import as_host_task, count_requests, key_data, make_step, samples_of_each
from jaxsmooth._sampling import as_task, scan_votes
from jaxsmooth.arguments import refuse_traced, refuse_uncallable
from jaxsmooth.progress import progress_bar
from jaxsmooth.types import Classifier, Noise

__all__ = ["count_votes", "stream_votes"]


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

    Entry (i, c) of the result is the number of samples s in [first, first + n) with argmax f(x_i + e_is) = c, where
    ties go to the lowest index. The noise e_is depends only on the key, `ids[i]` and s. So counts of disjoint ranges of
    samples add up, and they do not depend on the batch size, the other inputs, or the number of devices, provided that
    a row of f(x) depends only on that row of x. A sample with a non-finite score votes for no class. A loop over single
    inputs gives each the id 0, and so the same noise under one key: give it `ids=[i]`.

    It works inside and outside of `jax.jit`, `jax.vmap`, `jax.lax.map` and `jax.shard_map`. It compiles once for each
    f, shape, n and batch size. Memory does not grow with n.

    Args:
        f: base classifier, `[B, *event] -> [B, *components, K]` scores, traceable by JAX; see `jaxsmooth.Classifier`.
        noise: `Gaussian`, `Laplace`, `Uniform` or another `jaxsmooth.Noise`; its scale is in the units of `x`.
        key: one Threefry key. If you use it elsewhere too, those random numbers depend on these.
        x: inputs `[N, *event]`, floating-point. Noise is float32; the sum is cast back to the dtype of `x`. For noises
            of norm 0, such as `Ablation`, x may hold integers, which stay exact.
        n: number of samples for each input, static, at least 1.
        batch_size: most rows in one call of f, static; fewer where that leaves fewer rows unused.
        ids: `N` integers in [0, 2^32) that name the inputs to the noise; 0..N-1 by default.
        first: index of the first sample.

    Returns:
        `i32[N, *components, K]`. A row adds up to n less the samples with non-finite scores.

    Raises:
        ValueError, TypeError: an argument is not as described; x or the scale is not finite. Traced values cannot be
            refused: a non-finite input gets no votes, ids and first are taken modulo 2^32.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsmooth import Gaussian
        >>> f = lambda x: jnp.stack([x.sum(-1), -x.sum(-1)], -1)
        >>> count_votes(f, Gaussian(1.0), jax.random.key(0), jnp.array([[9.0, 0.0], [0.0, 0.0]]), n=1000)
        Array([[1000,    0],
               [ 469,  531]], dtype=int32)
    """
    n = as_n(n)
    batch_size = as_batch_size(batch_size)
    refuse_uncallable(f)
    return scan_votes(f, as_task(noise, key, x, ids, as_first(first, n)), (n,), batch_size)[:, 0]


def stream_votes(
    f: Classifier,
    noise: Noise,
    key: jax.Array,
    x: ArrayLike,
    *,
    n: int,
    batch_size: int = 256,
    ids: ArrayLike | None = None,
    first: int = 0,
    progress: bool = False,
) -> np.ndarray:
    """Count the classes of `n` noisy copies of each input, in a loop on the host that calls `f`.

    The arguments, guarantee, noise and result are those of `count_votes`. f may be any callable that takes a JAX array
    and returns an array; this function does not run under `jax.jit`. The next batch is drawn while f works on this
    one. Its programs depend on the batch size only: another number of inputs compiles nothing.

    Args:
        f, noise, key, x, n, ids, first: as for `count_votes`.
        batch_size: rows in each call of f. The last batch is filled up with rows whose scores do not count.
        progress: show a bar over the votes; without tqdm (the extra `progress`), a line every few seconds.

    Returns:
        `i32[N, *components, K]`, a NumPy array.

    Raises:
        ValueError, TypeError: as `count_votes`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsmooth import Gaussian
        >>> f = lambda x: np.stack([x.sum(-1), -x.sum(-1)], -1)
        >>> stream_votes(f, Gaussian(1.0), jax.random.key(0), jnp.array([[9.0, 0.0], [0.0, 0.0]]), n=1000)
        array([[1000,    0],
               [ 469,  531]], dtype=int32)
    """
    step = make_step(f, compiled=False)
    n = as_n(n)
    batch_size = as_batch_size(batch_size)
    first = as_first(first, n)
    refuse_traced("stream_votes", first)
    task = as_host_task(noise, key_data(key), x, ids)
    requests = samples_of_each(len(task.x), n, int(first))
    with progress_bar("votes", len(task.x) * n, progress) as advance:
        return count_requests(step, task, requests, batch_size, advance)
