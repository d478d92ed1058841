"""Noise distributions: what is added to an input, and the radius that a probability under it certifies.

A noise is a named tuple, hence a pytree: its scale may be traced, and `jax.vmap` over it works.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from scipy import special

from jaxsmooth import _draws as draws
from jaxsmooth.arguments import as_float_dtype, as_key, as_scale

ABSENT: Any = object()


def one_of(name: str, value: Any, scale: Any) -> Any:
    """Return the argument of a noise that may be given by its own name or as `scale`, the name that all noises share.

    Raises:
        TypeError: both are given, or neither.
    """
    if (value is ABSENT) == (scale is ABSENT):
        given = "neither" if value is ABSENT else "both"
        raise TypeError(f"{name} must be given as {name}= or as scale=, got {given}")
    return scale if value is ABSENT else value


class _Sigma(NamedTuple):
    sigma: ArrayLike


class Gaussian(_Sigma):
    """Normal noise N(0, sigma^2) on every feature; certifies L2 radii (Cohen et al. 2019, arXiv:1902.02918).

    An L2 radius R also certifies every L1 perturbation up to R, and every L-infinity one up to R / sqrt(d).

    Args:
        sigma: standard deviation, a positive scalar in the units of `x`; `scale` is another name for it.

    Raises:
        TypeError: sigma is given twice or not at all. The functions that take a noise refuse a sigma that is not
            positive.

    Example:
        >>> import jax
        >>> noise = Gaussian(sigma=0.5)
        >>> noise.sample(jax.random.key(0), (2, 3)).shape
        (2, 3)
        >>> float(noise.sigma * noise.unit_radius(0.99))
        1.16317...
    """

    __slots__ = ()
    norm = 2
    scale = _Sigma.sigma

    def __new__(cls, sigma: ArrayLike = ABSENT, *, scale: ArrayLike = ABSENT) -> "Gaussian":
        """Make a noise."""
        if sigma is ABSENT or scale is not ABSENT:
            sigma = one_of("sigma", sigma, scale)
        return super().__new__(cls, sigma)

    def sample(self, key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
        """Draw independent noise of this shape, in float32 and then cast to `dtype`."""
        return _sample(draws.normal, "sigma", self.sigma, key, shape, dtype)

    @staticmethod
    def unit_radius(probability: ArrayLike) -> np.ndarray:
        """Return Phi^-1(p), at least 0, in float64 on the host."""
        return -special.ndtri(miss(probability))

    def cdf(self, values: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Return P(Z < z) and P(Z <= z) of one feature's noise, in float64 on the host."""
        return _twice(special.ndtr(_in_scales(values, self.sigma)))


class Laplace(NamedTuple):
    """Laplace noise of density `exp(-|z| / scale) / (2 scale)` on every feature; certifies L1 radii.

    The radius is -scale * log(2 (1 - p)) (Teng et al. 2019; Yang et al. 2020, arXiv:2002.08118).

    Args:
        scale: a positive scalar in the units of `x`; the standard deviation is sqrt(2) times it.

    Example:
        >>> float(Laplace(0.5).unit_radius(0.99))
        3.91202...
    """

    scale: ArrayLike

    norm = 1

    def sample(self, key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
        """Draw independent noise of this shape, in float32 and then cast to `dtype`."""
        return _sample(draws.laplace, "scale", self.scale, key, shape, dtype)

    @staticmethod
    def unit_radius(probability: ArrayLike) -> np.ndarray:
        """Return -log(2 (1 - p)), at least 0, in float64 on the host."""
        with np.errstate(divide="ignore"):
            return -np.log(2 * miss(probability))

    def cdf(self, values: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Return P(Z < z) and P(Z <= z) of one feature's noise, in float64 on the host."""
        z = _in_scales(values, self.scale)
        tail = np.exp(-np.abs(z)) / 2
        return _twice(np.where(z < 0, tail, 1 - tail))


class _HalfWidth(NamedTuple):
    half_width: ArrayLike


class Uniform(_HalfWidth):
    """Uniform noise on [-half_width, half_width] on every feature; certifies L1 radii.

    The radius is 2 half_width (p - 1/2) (Yang et al. 2020, arXiv:2002.08118).

    Args:
        half_width: a positive scalar in the units of `x`; `scale` is another name for it. The standard deviation is
            1 / sqrt(3) of it.

    Raises:
        TypeError: as for `Gaussian`.

    Example:
        >>> float(Uniform(0.5).unit_radius(0.75))
        0.5
    """

    __slots__ = ()
    norm = 1
    scale = _HalfWidth.half_width

    def __new__(cls, half_width: ArrayLike = ABSENT, *, scale: ArrayLike = ABSENT) -> "Uniform":
        """Make a noise."""
        return super().__new__(cls, one_of("half_width", half_width, scale))

    def sample(self, key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
        """Draw independent noise of this shape, in float32 and then cast to `dtype`."""
        return _sample(draws.uniform, "half_width", self.half_width, key, shape, dtype)

    @staticmethod
    def unit_radius(probability: ArrayLike) -> np.ndarray:
        """Return 2 (p - 1/2), at least 0, in float64 on the host."""
        return 1 - 2 * miss(probability)

    def cdf(self, values: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Return P(Z < z) and P(Z <= z) of one feature's noise, in float64 on the host."""
        return _twice(np.clip((1 + _in_scales(values, self.half_width)) / 2, 0, 1))


class Splitting(Uniform):
    """Cuts at a uniform point of each feature, and at every 2 half_width from there; certifies L1 radii.

    The classifier sees the middle of the piece of [0, 1] that each feature is in. The radius is that of `Uniform`,
    2 half_width (p - 1/2), and for a half_width of at least 1/2 the classifier sees more (Levine & Feizi 2021,
    arXiv:2103.10834, Theorem 1). Inputs are meant to be in [0, 1]: what is beyond counts as the end of it.
    `certify_splitting` certifies without chance; every other function that takes a noise draws the cuts.

    What the classifier sees moves in steps, so that a gradient in x is 0 almost everywhere.

    Args:
        half_width: half the distance between two cuts of a feature, a positive scalar in the units of `x`; `scale` is
            another name for it. It is the lambda of the paper, and may be above 1/2.

    Raises:
        TypeError: as for `Gaussian`.

    Example:
        >>> noise = Splitting(half_width=0.5)
        >>> noise.add(jnp.array([0.1, 0.4, 0.9]), jnp.array([0.3, 0.3, 0.3]))  # cuts at 0.3, -0.7 and 1.3
        Array([0.15, 0.65, 0.65], dtype=float32)
    """

    __slots__ = ()

    def add(self, x: jax.Array, noise: jax.Array) -> jax.Array:
        """Return the middle of the piece of [0, 1] that each feature is in, given one cut of it."""
        x = jnp.clip(x, 0, 1)
        width = 2 * jnp.asarray(self.half_width, noise.dtype)
        upper = noise + width * jnp.ceil((x - noise) / width)
        return (jnp.maximum(upper - width, 0) + jnp.minimum(upper, 1)) / 2


def _sample(
    distribution: Callable[[jax.Array, ArrayLike], jax.Array],
    name: str,
    scale: ArrayLike,
    key: jax.Array,
    shape: Sequence[int],
    dtype: DTypeLike,
) -> jax.Array:
    dtype = as_float_dtype(dtype)
    words = draws.random_words(as_key(key), math.prod(shape))
    return distribution(words, as_scale(name, scale)).reshape(shape).astype(dtype)


def _in_scales(values: ArrayLike, scale: ArrayLike) -> np.ndarray:
    return np.asarray(values, np.float64) / np.float64(np.asarray(scale, np.float32))


def _twice(probability: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return probability, probability


def miss(probability: ArrayLike) -> np.ndarray:
    """Return 1 - p, but at most 1/2, because a bound of 1/2 or less certifies nothing."""
    p = np.asarray(probability, np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"probability must lie in [0, 1], got {probability}")
    return np.minimum(1 - p, 0.5)
