"""Counter-based random words, and the maps from words to noise.

The words are Threefry-2x32-20 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") of the counter
`(0, i)` under a JAX key, written out elementwise so that XLA fuses them with what follows. They depend on no JAX
setting.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

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


def random_words(key: jax.Array, size: int) -> jax.Array:
    """Return `u32[size]`, random words that depend on the key, the size and their position alone."""
    half = (size + 1) // 2
    first, second = jax.random.key_data(key)
    words = threefry2x32((first, second), (jnp.zeros(half, jnp.uint32), jnp.arange(half, dtype=jnp.uint32)))
    # Without the barrier XLA computes the rounds once for each half of the concatenation.
    return jnp.concatenate(jax.lax.optimization_barrier(words))[:size]


def threefry2x32(key: tuple[jax.Array, jax.Array], counter: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Encrypt a counter of two 32-bit words under a key of two, by Threefry with 20 rounds."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ _PARITY)
    left, right = counter[0] + schedule[0], counter[1] + schedule[1]
    for block in range(5):
        for rotation in _ROTATIONS[block % 2]:
            left = left + right
            right = ((right << np.uint32(rotation)) | (right >> np.uint32(32 - rotation))) ^ left
        left = left + schedule[(block + 1) % 3]
        right = right + schedule[(block + 2) % 3] + np.uint32(block + 1)
    return left, right


def normal(words: jax.Array, scale: ArrayLike = 1.0) -> jax.Array:
    """Map words to `f32` normals, symmetric, tails to 6.3 scales, relative error of the quantile at most 5e-7."""
    tail, centre = _tail_and_centre(words)
    w = -jnp.log(4 * tail * (1 - tail))
    near = w < 5.5
    t = jnp.where(near, w - 2.75, jnp.sqrt(w) - 3.5)
    ratio = jnp.where(near, *_COEFFICIENTS[0])
    for row in _COEFFICIENTS[1:]:
        ratio = ratio * t + jnp.where(near, *row)
    return _signed(words, ratio * centre * scale)


def laplace(words: jax.Array, scale: ArrayLike = 1.0) -> jax.Array:
    """Map words to `f32` Laplace variables (density exp(-|z| / scale) / (2 scale)), symmetric, tails to 22.1 scales."""
    tail, centre = _tail_and_centre(words)
    return _signed(words, jnp.where(tail < 0.25, -jnp.log(2 * tail), -jnp.log1p(-centre)) * scale)


def uniform(words: jax.Array, scale: ArrayLike = 1.0) -> jax.Array:
    """Map words to `f32` uniforms on [-scale, scale], symmetric."""
    _, centre = _tail_and_centre(words)
    return _signed(words, centre * scale)


def _tail_and_centre(words: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the tail probability p = (m + 1/2) / 2^32 of the lower 31 bits m, and 1 - 2p, each to f32 precision."""
    m = (words & np.uint32(0x7FFFFFFF)).astype(jnp.int32)
    tail = (m.astype(jnp.float32) + np.float32(0.5)) * np.float32(2.0**-32)
    centre = ((np.int32(0x7FFFFFFF) - m).astype(jnp.float32) + np.float32(0.5)) * np.float32(2.0**-31)
    return tail, centre


def _signed(words: jax.Array, magnitude: jax.Array) -> jax.Array:
    # Last, so that between the product with the scale and the sum with x there is more than rounding: as neighbours
    # some programs would make one operation of them, with one rounding, and others not.
    return jnp.where(words >> np.uint32(31) == 0, magnitude, -magnitude)
