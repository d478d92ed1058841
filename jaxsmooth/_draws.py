"""Counter-based random words, and the maps from words to noise.

The words are Threefry-2x32-20 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") of the counter
`(0, i)` under a JAX key, written out elementwise so that XLA fuses them with what follows. They depend on no JAX
setting.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

# Keys are made with one of these as the first word of the counter. JAX's own functions put 0 there, or the place in an
# array of as many elements, so that neither `jax.random.split` nor any other of them makes such a key.
STREAM_TAG = np.uint32(0x6A787374)
SAMPLE_TAG = np.uint32(0x6A787361)
CLASSIFIER_TAG = np.uint32(0x6A787363)

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)

# -Phi^-1(p) / (1 - 2p) as a polynomial of degree 8 in w - 2.75 for w < 5.5, in sqrt(w) - 3.5 from there on, with
# w = -log(4 p (1 - p)). Chebyshev fits on w <= 22.2, which is p >= 2^-33; relative error at most 2e-7.
# One row a power, the highest first: centre, tail.
_COEFFICIENTS = np.array(
    [
        (1.8438508e-08, 1.9334095e-05),
        (4.9990012e-07, -2.6514396e-04),
        (-3.8830294e-06, 7.3978456e-04),
        (-1.2424502e-05, -1.0393182e-03),
        (2.9655930e-04, 1.4692509e-03),
        (-1.4707723e-03, -2.8849505e-03),
        (-7.1230931e-03, 4.6508261e-03),
        (3.4553623e-01, 1.4246312e00),
        (2.2101185e00, 4.7170887e00),
    ],
    np.float32,
)

# (log(1 + t) - t) / t^2 as a polynomial of degree 6, the highest power first: a minimax fit for log(1 + t) on
# [sqrt(1/2) - 1, sqrt(2) - 1], relative error at most 1.9e-7.
_LOGARITHM = np.array(
    [-1.0082386e-01, 1.6180503e-01, -1.7243223e-01, 1.9906883e-01, -2.4971229e-01, 3.3334714e-01, -5.0000322e-01],
    np.float32,
)
_LOG_2 = np.float32(355 / 512), np.float32(-56961 / 2**28)  # a sum of two: whole multiples below 2^8 are exact
_ROOT_HALF = np.float32(np.sqrt(0.5)).view(np.int32)


def random_words(key: jax.Array, size: int) -> jax.Array:
    """Return `u32[size]`, random words that depend only on the key, the size and their position."""
    half = (size + 1) // 2
    first, second = jax.random.key_data(key)
    words = threefry2x32((first, second), (jnp.zeros(half, jnp.uint32), jnp.arange(half, dtype=jnp.uint32)))
    # Without the barrier XLA computes the rounds once for each half of the concatenation.
    return jnp.concatenate(jax.lax.optimization_barrier(words))[:size]


def fold_words(key: jax.Array, words: jax.Array, tag: np.uint32) -> jax.Array:
    """Return one key for each column of `u32[W, B]`: the words are folded into the key in turn.

    One word is folded in as `jax.random.fold_in` does it, with the counter `(tag, word)` in place of `(0, word)`.

    Args:
        key: one key for all columns, or `B` keys.
        words: `u32[W, B]`.
        tag: `STREAM_TAG` or `SAMPLE_TAG`.

    Example:
        >>> key = jax.random.key(0)
        >>> keys = fold_words(key, jnp.uint32([[5], [9]]), np.uint32(0))
        >>> bool(keys[0] == jax.random.fold_in(jax.random.fold_in(key, 5), 9))
        True
    """
    tags = jnp.full_like(words[0], tag)

    def fold(keys: jax.Array, word: jax.Array) -> tuple[jax.Array, None]:
        return jnp.stack(threefry2x32((keys[0], keys[1]), (tags, word))), None

    # A loop over the words: without it XLA would compute the keys again wherever they are used. JAX's own loop, over
    # the rounds, has more steps, and the threads meet after each, which is slow while a network's threads are busy.
    keys, _ = jax.lax.scan(fold, jax.random.key_data(key).reshape(-1, 2).T + jnp.zeros_like(tags)[None], words)
    return jax.random.wrap_key_data(keys.T, impl="threefry2x32")


def fold_host(keys: np.ndarray, words: np.ndarray, tag: np.uint32) -> np.ndarray:
    """Fold one word into each key as `fold_words` does, without compiling: `u32[B, 2]` key data.

    Example:
        >>> key, word = jax.random.key(3), np.array([5], np.uint32)
        >>> data = fold_host(np.asarray(jax.random.key_data(key))[None], word, STREAM_TAG)
        >>> bool((data == jax.random.key_data(fold_words(key, word[None], STREAM_TAG))).all())
        True
    """
    keys = np.broadcast_to(keys, (len(words), 2))
    return np.stack(threefry2x32((keys[:, 0], keys[:, 1]), (np.full_like(words, tag), words)), axis=1)


def threefry2x32(key: tuple[Any, Any], counter: tuple[Any, Any]) -> tuple[Any, Any]:
    """Encrypt a counter of two 32-bit words under a key of two, by Threefry with 20 rounds; arrays of JAX or NumPy."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ _PARITY)
    left = counter[0] + schedule[0]
    right = counter[1] + schedule[1]
    for block in range(5):
        for rotation in _ROTATIONS[block % 2]:
            left = left + right
            right = ((right << np.uint32(rotation)) | (right >> np.uint32(32 - rotation))) ^ left
        left = left + schedule[(block + 1) % 3]
        right = right + schedule[(block + 2) % 3] + np.uint32(block + 1)
    return left, right


def normal(words: jax.Array, scale: ArrayLike = 1.0) -> jax.Array:
    """Map words to `f32` normals, symmetric, tails to 6.3 scales, relative error of the quantile at most 5e-7."""
    tail, centre, zero = _tail_and_centre(words)
    w = -_log(4 * tail * (1 - tail), -centre * centre, zero)
    near = w < 5.5
    t = jnp.where(near, w - 2.75, jnp.sqrt(w) - 3.5)
    ratio = _polynomial([jnp.where(near, *row) for row in _COEFFICIENTS], t, zero)
    return _signed(words, ratio * centre * scale)


def laplace(words: jax.Array, scale: ArrayLike = 1.0) -> jax.Array:
    """Map words to `f32` Laplace variables (density exp(-|z| / scale) / (2 scale)), symmetric, tails to 22.1 scales."""
    tail, centre, zero = _tail_and_centre(words)
    return _signed(words, -_log(2 * tail, -centre, zero) * scale)


def uniform(words: jax.Array, scale: ArrayLike = 1.0) -> jax.Array:
    """Map words to `f32` uniforms on [-scale, scale], symmetric."""
    _, centre, _ = _tail_and_centre(words)
    return _signed(words, centre * scale)


def _tail_and_centre(words: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return p = (m + 1/2) / 2^32 of the lower 31 bits m, 1 - 2p, both to f32 precision, and a zero unknown to XLA."""
    m = (words & np.uint32(0x7FFFFFFF)).astype(jnp.int32)
    tail = (m.astype(jnp.float32) + np.float32(0.5)) * np.float32(2.0**-32)
    centre = ((np.int32(0x7FFFFFFF) - m).astype(jnp.float32) + np.float32(0.5)) * np.float32(2.0**-31)
    return tail, centre, centre * 0


def _log(y: jax.Array, excess: jax.Array, zero: jax.Array) -> jax.Array:
    """Return log(y) of normal numbers y in (0, 1], given y - 1 to f32 precision; relative error at most 5e-7.

    XLA's own logarithm rounds differently in a loop over vectors than in a loop over scalars.
    """
    bits = jax.lax.bitcast_convert_type(y, jnp.int32)
    exponent = (bits - _ROOT_HALF) >> 23  # y is 2^exponent times a number in [sqrt(1/2), sqrt(2))
    mantissa = jax.lax.bitcast_convert_type(bits - (exponent << 23), jnp.float32)
    t = jnp.where(exponent == 0, excess, mantissa - 1)
    # Two short chains of operations are faster than one long one.
    even, odd = (_polynomial(_LOGARITHM[first::2], t * t, zero) for first in (0, 1))
    curve = _polynomial([odd, even], t, zero)
    power = exponent.astype(jnp.float32)
    return _polynomial([curve, power * _LOG_2[1] + t], t * t, zero) + power * _LOG_2[0]


def _polynomial(coefficients: Sequence[Any] | np.ndarray, t: jax.Array, zero: jax.Array) -> jax.Array:
    """Return the polynomial with these coefficients, the highest power first, in t.

    Adding a zero rounds each product before it meets the next coefficient. Otherwise LLVM fuses the two into one FMA in
    some loops and not in others, and the noise would depend on the program.
    """
    value = coefficients[0]
    for coefficient in coefficients[1:]:
        value = (value * t + zero) + coefficient
    return value


def _signed(words: jax.Array, magnitude: jax.Array) -> jax.Array:
    # The sign goes last, so that XLA cannot fuse `scale * z + x` into one FMA in some programs and not in others.
    return jnp.where(words >> np.uint32(31) == 0, magnitude, -magnitude)
