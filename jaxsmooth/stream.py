"""The streams of a key, by name, and the noisy samples of an input.

Sample `s` of the input with id `i` depends on `(key, i, s)` only. Different uses of one key draw from different streams
of it, so that no random number is used twice.
"""

import secrets
from collections.abc import Iterator
from enum import IntEnum

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxsmooth._checks import as_batch_size, as_first, as_host_inputs, as_n, as_noise
from jaxsmooth._draws import STREAM_TAG, fold_words
from jaxsmooth._host_loop import as_host_task, draw_requests, key_data, own_inputs, samples_of_each
from jaxsmooth._programs import WideJit
from jaxsmooth._sampling import noise_dtype, with_noise
from jaxsmooth.arguments import as_integer, as_key, refuse_traced
from jaxsmooth.types import Noise

__all__ = ["Stream", "add_noise", "decision_keys", "key_of_seed", "stream_key", "stream_samples"]


class Stream(IntEnum):
    """The numbered streams of a key.

    No function of JAX makes the key of a stream: `jax.random.split(key)` gives other keys, so that whoever trains under
    one of its halves does not train on the noise of a certificate.
    """

    SELECTION = 0
    """Votes of `certify` that choose the class."""
    ESTIMATION = 1
    """Votes of `certify` that bound its probability."""
    PREDICTION = 2
    """Votes of the ART-compatible classes' `predict`."""
    TRAINING = 3
    """Noise of their `fit`."""
    GRADIENTS = 4
    """Noisy copies of their sampled gradients."""
    ORDER = 5
    """Order of the inputs in their `fit`."""
    MODULE = 6
    """Dropout and fresh weights of a Flax module."""
    LEVELS = 7
    """The key of the selector's votes in `certify_levels`."""
    SPLITTING = 8
    """Offsets of the cuts in `certify_splitting`."""


def key_of_seed(seed: int | jax.Array | np.ndarray | None = None) -> jax.Array:
    """Return the Threefry key of a seed, whatever implementation JAX's default is.

    A certificate holds for an input and a classifier that were chosen without looking at the noise. Draw the seed
    after them, and publish it with the result and not before. The default does so.

    Args:
        seed: an integer in [0, 2^64), the key that `jax.random.key(seed, impl="threefry2x32")` makes of it where it is
            below 2^32; a key or its data `u32[2]`; None for 64 random bits of the operating system.

    Raises:
        ValueError, TypeError: the seed is none of these.

    Example:
        >>> bool(key_of_seed(5) == jax.random.key(5, impl="threefry2x32"))
        True
        >>> bool(key_of_seed() == key_of_seed())
        False
    """
    if seed is None:
        seed = secrets.randbits(64)
    if isinstance(seed, (jax.Array, np.ndarray)) and not (seed.ndim == 0 and jnp.issubdtype(seed.dtype, jnp.integer)):
        return as_key(seed)
    # The words of the key, without a program to compile.
    return as_key(np.array(divmod(as_integer("seed", seed, 0, 2**64 - 1), 2**32), np.uint32))


def stream_key(key: jax.Array, stream: int, turn: int | None = None) -> jax.Array:
    """Return the key of one stream of a key, or of one turn in it.

    Args:
        key: one Threefry key.
        stream: a number of `Stream`.
        turn: which of several draws that follow each other, at least 0.

    Example:
        >>> step_key = stream_key(jax.random.key(0), Stream.TRAINING, turn=5)
    """
    words = [as_integer("stream", stream, 0, 2**32 - 1)]
    if turn is not None:
        words.append(as_integer("turn", turn, 0, 2**32 - 1))
    return _fold(as_key(key), np.array(words, np.uint32))


@jax.jit
def _fold(key: jax.Array, words: jax.Array) -> jax.Array:
    return fold_words(key, words[:, None], STREAM_TAG)[0]


def decision_keys(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the keys under which `certify` draws its selection votes and its estimation votes.

    Example:
        >>> selection_key, estimation_key = decision_keys(jax.random.key(0))
    """
    return stream_key(key, Stream.SELECTION), stream_key(key, Stream.ESTIMATION)


def add_noise(noise: Noise, key: jax.Array, x: ArrayLike) -> jax.Array:
    """Return inputs with independent noise, for training: one compiled program for each shape of x.

    Args:
        noise: the noise, in the units of x.
        key: one Threefry key; another key draws other noise.
        x: inputs `[N, *event]`, floating-point; integers, too, for noises of norm 0.

    Raises:
        ValueError, TypeError: an argument is not as described.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsmooth import Gaussian
        >>> add_noise(Gaussian(0.5), jax.random.key(0), jnp.zeros((2, 3))).shape
        (2, 3)
    """
    noise = as_noise(noise)
    x = as_host_inputs(x, noise)
    # A copy, because JAX reads NumPy's memory later, and the caller may have written to it by then.
    return _add(noise, as_key(key), x.copy() if isinstance(x, np.ndarray) else x)


@WideJit
def _add(noise: Noise, key: jax.Array, x: jax.Array) -> jax.Array:
    return with_noise(noise, x, noise.sample(key, x.shape, noise_dtype(x.dtype)))


def stream_samples(
    noise: Noise,
    key: jax.Array,
    x: ArrayLike,
    *,
    n: int,
    batch_size: int = 256,
    ids: ArrayLike | None = None,
    first: int = 0,
) -> Iterator[tuple[jax.Array, np.ndarray]]:
    """Return the noisy batches that `stream_votes` calls its classifier with, one after the other.

    The next batch is drawn while the caller works on this one. The programs that draw depend on the batch size only,
    not on the number of inputs.

    Args:
        noise, key, x, n, ids, first: as for `count_votes`.
        batch_size: rows of each batch.

    Returns:
        An iterator over pairs of noisy inputs `[B, *event]` and `i32[B]`, the row of x that each was made from. Rows
        that fill up the last batch are marked with N.

    Raises:
        ValueError, TypeError: as `count_votes`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsmooth import Gaussian
        >>> samples = stream_samples(Gaussian(1.0), jax.random.key(0), jnp.zeros((2, 5)), n=3, batch_size=4)
        >>> [rows.tolist() for noisy, rows in samples]
        [[0, 0, 0, 1], [1, 1, 2, 2]]
    """
    n = as_n(n)
    batch_size = as_batch_size(batch_size)
    first = as_first(first, n)
    refuse_traced("stream_samples", first)
    task = own_inputs(as_host_task(noise, key_data(key), x, ids))
    return draw_requests(task, samples_of_each(len(task.x), n, int(first)), batch_size)
