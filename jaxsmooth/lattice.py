"""Gaussian noise on a lattice, whose certificates hold for what a computer computes.

Rounding x + noise to floating-point numbers leaks x, and radii certified under such noise have been broken (Voracek &
Hein, ICLR 2023; Jin et al. 2024). Here x is rounded to step * (integers), the noise is step * (integers), and their sum
is one integer addition and one multiplication: what the classifier sees depends only on the lattice point.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from scipy import special

from jaxsmooth._draws import random_words
from jaxsmooth.arguments import as_float_dtype, as_key, as_scale, is_traced
from jaxsmooth.noise import ABSENT, miss, one_of

_BITS = 64  # of a draw
_REACH = 9.5  # standard deviations in a table; the mass beyond is below 2.2e-21
_MOST_CELLS = 2**20
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)
_VARIATION = 1e-15  # of a table's distribution from the exact one, in total variation; tables above it are refused
_MOST_FEATURES = 2**20
_LARGEST = 2**22  # multiple of step; sums with noise stay exact in float32
_TOLERANCE = 1 / 64  # of a step, within which an input counts as a lattice point that float32 rounded


@jax.tree_util.register_pytree_node_class
class LatticeGaussian:
    """Normal noise, rounded to multiples of `step`; certifies L2 radii (Cohen et al. 2019, arXiv:1902.02918).

    The smoothed classifier is defined on the lattice of multiples of step: x is rounded to it, and f sees
    step * (integer of x + integer noise), where the noise is that of N(0, sigma^2) rounded to the lattice. As a rounded
    Gaussian plus an integer is a rounded sum, Cohen's theorem holds for f after rounding, with no error of
    floating-point arithmetic: two ways to reach a lattice point give the same bits. For 8-bit images with pixels in
    [0, 1], step = 1/255.

    The noise comes from a table by 64-bit draws (Walker's alias method in exact integers). Its distance from the
    rounded Gaussian, at most 1e-15 in total variation for a feature and 1.1e-9 for 2^20 of them, is taken off the
    probability before a radius is computed. More features are not supported.

    A radius for an input on the lattice holds for every perturbed input on the lattice. An input counts as on it if
    each feature is within step / 64 of a lattice point, as 8-bit and 16-bit pixels in float32 are. How far it is away,
    at most, times sqrt(features), is taken off the radius. Another input is off the lattice. Then step * sqrt(features)
    is taken off the radius, which holds for every perturbed input. Both are in `votes.lost`, and `rounded` is true
    where something was taken off. Distances are computed without any error of floating-point arithmetic.

    Give inputs in the units of the lattice, in float32. Pixels that were normalised, or cast to float16 or bfloat16,
    are no multiples of a step: put the normalisation or the cast inside f.

    Args:
        sigma: standard deviation, a concrete positive number in the units of `x`; at most about 1,500 steps. `scale`
            is another name for it.
        step: of the lattice, a concrete number in the units of `x`, at least 1e-30.

    An input beyond 2^22 steps, or with more than 2^20 features, is not certified.

    Raises:
        ValueError, TypeError: sigma or step is not as described.

    Example:
        >>> noise = LatticeGaussian(sigma=0.5, step=1 / 255)
        >>> noise.sample_integers(jax.random.key(1), (2, 3))
        Array([[-121,  -46,   -5],
               [  95,  -81,   63]], dtype=int32)
    """

    norm = 2

    def __init__(self, sigma: ArrayLike = ABSENT, step: ArrayLike = ABSENT, *, scale: ArrayLike = ABSENT) -> None:
        sigma = one_of("sigma", sigma, scale)
        if step is ABSENT:
            raise TypeError("step must be given: what the inputs are multiples of, 1/255 for 8-bit images")
        for name, value in (("sigma", sigma), ("step", step)):
            if is_traced(value):
                raise TypeError(f"{name} must be a concrete number: the table of the noise is made from it")
        scales: Any = as_scale("sigma", sigma), as_scale("step", step)
        self.sigma, self.step = scales
        if not 1e-30 <= float(self.step) <= 1e30:  # where products of parts of it could be rounded
            raise ValueError(f"step must lie in [1e-30, 1e30], got {step}")
        self._table = _alias_table(float(self.sigma) / float(self.step))

    @property
    def scale(self) -> ArrayLike:
        """The standard deviation."""
        return self.sigma

    def sample(self, key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
        """Draw independent noise of this shape: multiples of step in float32, then cast to `dtype`."""
        dtype = as_float_dtype(dtype)
        return (self.sample_integers(key, shape).astype(jnp.float32) * self.step).astype(dtype)

    def sample_integers(self, key: jax.Array, shape: Sequence[int]) -> jax.Array:
        """Draw independent noise of this shape as `i32` multiples of step."""
        size = math.prod(shape)
        words = random_words(as_key(key), 2 * size)
        first = words[:size]
        second = words[size:]
        low, high, alias, least = map(jnp.asarray, self._table)
        bits = len(low).bit_length() - 1
        # The leading bits choose a column, the 64 - bits others whether it keeps its outcome or gives its alias.
        column = (first >> np.uint32(32 - bits)).astype(jnp.int32)
        rest = first & np.uint32(2 ** (32 - bits) - 1)
        bar = high[column]
        keeps = (rest < bar) | ((rest == bar) & (second < low[column]))
        return jnp.where(keeps, column + least, alias[column]).reshape(shape)

    def add(self, x: jax.Array, noise: jax.Array) -> jax.Array:
        """Return the lattice point of x plus the noise, `f32`; the gradient in x is that of the plain sum."""
        return _lattice_sum(x, noise, jnp.asarray(self.step))

    def lost_radius(self, x: ArrayLike) -> jax.Array:
        """Return what is taken off the radius of each input, `f32[N]`: 0 on the lattice, infinite beyond its reach."""
        inputs = jnp.asarray(x)
        step = jnp.asarray(self.step)
        _, residual = _nearest(inputs, step)
        worst = jnp.abs(residual).max(axis=tuple(range(1, inputs.ndim))).astype(jnp.float32)
        features = math.prod(inputs.shape[1:])
        # Rounded up: the root, the product and a cast from float64 err by less than 1e-6 together.
        root = jnp.float32(math.sqrt(features) * (1 + 1e-6))
        beyond = ~(worst <= 0.501 * step) | jnp.bool_(features > _MOST_FEATURES)
        # Off the lattice, an input and a perturbed one may each be half a step away from their lattice points.
        return jnp.where(beyond, jnp.inf, root * jnp.where(worst <= _TOLERANCE * step, worst, step))

    @staticmethod
    def unit_radius(probability: ArrayLike) -> np.ndarray:
        """Return Phi^-1 of p less the error of the table, in float64 on the host; below 0 where p - error < 1/2."""
        return -special.ndtri(miss(probability) + _VARIATION * _MOST_FEATURES)

    def cdf(self, values: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Return P(Z < z) and P(Z <= z) of one feature's noise at multiples of step, in float64 on the host."""
        step = float(np.asarray(self.step))
        sigma = float(np.asarray(self.sigma))
        integers = np.round(np.asarray(values, np.float64) / step)
        return special.ndtr((integers - 0.5) * step / sigma), special.ndtr((integers + 0.5) * step / sigma)

    def parameters(self) -> dict[str, ArrayLike]:
        """Return what a log says of the noise."""
        return {"sigma": self.sigma, "step": self.step}

    def tree_flatten(self) -> tuple[tuple[Any, ...], None]:
        """Return the arrays."""
        return (self.sigma, self.step, self._table), None

    @classmethod
    def tree_unflatten(cls, _: None, children: tuple[Any, ...]) -> "LatticeGaussian":
        """Put the arrays together again."""
        noise = object.__new__(cls)
        noise.sigma, noise.step, noise._table = children
        return noise

    def __repr__(self) -> str:
        return f"LatticeGaussian(sigma={self.sigma}, step={self.step})"


def _nearest(x: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the nearest multiple of step as `i32`, and exactly how far x is from it; clipped beyond 2^22 steps."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    step = step.astype(wide.dtype)
    # The quotient is rounded, so this may be the neighbour of the nearest multiple.
    near = jnp.clip(jnp.round(wide / step), -_LARGEST, _LARGEST)
    residual = _minus_product(wide, near, step)
    # The remainder says which neighbour is the nearest.
    more = jnp.clip(jnp.round(residual / step), -1, 1)
    return (near + more).astype(jnp.int32), residual - more * step


def _minus_product(x: jax.Array, count: jax.Array, step: jax.Array) -> jax.Array:
    """Return x - count * step without rounding, for a whole count below 2^22 in size that brings it near 0.

    In float64 the product has 46 bits, and is exact. In float32 both factors are cut into parts of 12 bits, whose four
    products are exact, so that a fused multiply-add changes nothing. The differences are taken from the largest product
    to the smallest: each is a multiple of the last place of step that 24 bits hold.
    """
    if x.dtype.itemsize > 4:
        return x - count * step
    high_count, high_step = map(_leading_bits, (count, step))
    low_count = count - high_count
    low_step = step - high_step
    rest = x - high_count * high_step
    rest = rest - high_count * low_step
    rest = rest - low_count * high_step
    return rest - low_count * low_step


def _leading_bits(value: jax.Array) -> jax.Array:
    """Return a float32 number cut to its leading 12 bits."""
    bits = jax.lax.bitcast_convert_type(value, jnp.uint32) & np.uint32(0xFFFFF000)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


@jax.custom_jvp
def _lattice_sum(x: jax.Array, noise: jax.Array, step: jax.Array) -> jax.Array:
    # Two integers are added exactly, so the result depends only on the lattice point.
    integers = _nearest(x, step)[0] + jnp.round(noise / step).astype(jnp.int32)
    return integers.astype(jnp.float32) * step


_lattice_sum.defjvps(
    lambda tangent, result, *_: tangent.astype(result.dtype),
    lambda tangent, result, *_: tangent.astype(result.dtype),
    None,
)


@functools.lru_cache(maxsize=16)
def _alias_table(steps: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return Walker's alias table of N(0, steps^2) rounded to integers, its weights adding up to 2^64 exactly.

    Column c gives the outcome least + c where the lower 64 - log2(columns) bits are below a bar (two words), and its
    alias elsewhere.
    """
    weights, least, variation = lattice_weights(steps)
    if variation > _VARIATION:
        raise ValueError(f"the table of sigma / step = {steps} errs by {variation}, more than {_VARIATION}")
    bits = max(1, (len(weights) - 1).bit_length())
    columns = 2**bits
    capacity = 2 ** (_BITS - bits)
    left = weights + [0] * (columns - len(weights))
    bars = list(left)
    alias = list(range(columns))
    small = [c for c in range(columns) if left[c] < capacity]
    large = [c for c in range(columns) if left[c] >= capacity]
    # Walker: each column with too little mass takes the rest of its share from one with too much.
    while small:
        poor = small.pop()
        rich = large[-1]
        bars[poor] = left[poor]
        alias[poor] = rich
        left[rich] -= capacity - left[poor]
        if left[rich] < capacity:
            small.append(large.pop())
    for c in large:
        bars[c] = capacity
    low = np.array([bar % 2**32 for bar in bars], np.uint32)
    high = np.array([bar // 2**32 for bar in bars], np.uint32)
    outcomes = np.array(alias, np.int32) + np.int32(least)
    return low, high, outcomes, np.asarray(least, np.int32)


def lattice_weights(steps: float) -> tuple[list[int], int, float]:
    """Return the weights of N(0, steps^2) rounded to integers as 64-bit integers, and their error.

    Args:
        steps: standard deviation, in steps of the lattice.

    Returns:
        Weights that add up to 2^64, the integer that the first one is of, and a bound on the total variation between
        their distribution and the exact one.

    Raises:
        ValueError: the table would be too large.

    Example:
        >>> weights, least, variation = lattice_weights(1.0)
        >>> sum(weights) == 2**64, least, round(weights[-least] / 2**64, 12), variation < 1e-15
        (True, -10, 0.382924922548, True)
    """
    reach = math.ceil(_REACH * steps)
    if 2 * reach + 1 > _MOST_CELLS:
        raise ValueError(f"sigma must be at most {_MOST_CELLS / 2 / _REACH:.0f} steps, got {steps}")
    # Quadrature gives the mass of each cell to a few units in its last place, however small it is. Cells wider than
    # half a standard deviation are cut into parts.
    parts = max(1, math.ceil(2 / steps))
    edges = (np.arange(-reach, reach + 1)[:, None] - 0.5 + (np.arange(parts) + 0.5) / parts)[..., None]
    points = (edges + _NODES / (2 * parts)) / steps
    mass = (np.exp(-(points**2) / 2) * _WEIGHTS).sum(axis=(1, 2)) / (2 * parts * steps * math.sqrt(2 * math.pi))
    weights = [int(math.ldexp(m, _BITS)) for m in mass.tolist()]
    rounding = sum(abs(w - math.ldexp(m, _BITS)) for w, m in zip(weights, mass.tolist(), strict=True))
    # What rounding lost goes to the centre, where it matters least.
    missing = 2**_BITS - sum(weights)
    weights[reach] += missing
    beyond = 2 * float(special.ndtr(-(reach + 0.5) / steps))
    return weights, -reach, (rounding + abs(missing)) / 2**_BITS / 2 + beyond + 4e-16
