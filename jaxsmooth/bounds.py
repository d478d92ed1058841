"""Binomial bounds and tests in float64 on the host, and the tables that jitted code reads instead.

Float32 arithmetic is not sound here, so that compiled code never computes a bound: for a static `(n, alpha)` it looks
up the count in a table that was made with SciPy and rounded toward safety.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from scipy import special

from jaxsmooth.checks import check_alpha, check_integer

# SciPy's inverse functions were found good to 5e-15; a table steps this much toward safety before it is rounded.
_MARGIN = 1e-13


def clopper_pearson_lower(count: ArrayLike, n: int, alpha: float) -> np.ndarray:
    """One-sided lower confidence bound on a probability, from `count` successes in `n` trials.

    The bound exceeds the true probability with probability at most `alpha` (Clopper & Pearson 1934).

    Args:
        count: integers in [0, n], of any shape.
        n: number of trials, at least 1.
        alpha: failure probability in (0, 1).

    Returns:
        float64 array of the shape of `count`, 0 where `count` is 0.

    Raises:
        ValueError: an argument is out of range. TypeError: an argument is of the wrong type.

    Example:
        >>> clopper_pearson_lower(100_000, 100_000, 0.001).round(12)
        np.float64(0.999930924833)
    """
    n, alpha = check_integer("n", n, 1), check_alpha(alpha)
    count = np.asarray(count)
    if not np.issubdtype(count.dtype, np.integer):
        raise TypeError(f"count must be integers, got dtype {count.dtype}")
    if not ((count >= 0) & (count <= n)).all():
        raise ValueError(f"count must lie in [0, {n}], got {count}")
    bound = special.betaincinv(np.maximum(count, 1), n - count + 1.0, alpha)
    return np.where(count == 0, 0.0, bound)[()]


@functools.lru_cache(maxsize=16)
def lower_bounds(n: int, alpha: float) -> np.ndarray:
    """Tabulate `clopper_pearson_lower` at every count, `f64[n + 1]`, stepped down by 1e-13 of itself; read-only."""
    table = clopper_pearson_lower(np.arange(n + 1), n, alpha) * (1 - _MARGIN)
    table.flags.writeable = False
    return table


@functools.lru_cache(maxsize=16)
def passing_counts(n: int, alpha: float) -> np.ndarray:
    """Tabulate the smallest top count that passes the binomial test, for each total in 0..n.

    The test is the exact two-sided one of (top, rival) against 1/2 with top + rival = total (Hung & Fithian 2019,
    arXiv:1610.03944). Where no count passes, the entry is total + 1.

    Returns:
        int32[n + 1], read-only.
    """
    total = np.arange(n + 1)
    # From the quantile of a normal distribution, which is counts away in far tails alone, by exact tests of those that
    # are not there yet.
    guess = np.ceil((total - special.ndtri(max(alpha / 2, 1e-300)) * np.sqrt(total)) / 2)
    passing = np.clip(guess, total // 2, total + 1).astype(np.int64)

    def failing(at: np.ndarray) -> np.ndarray:
        return at[(passing[at] <= total[at]) & (_two_sided(passing[at], total[at]) > alpha)]

    def loose(at: np.ndarray) -> np.ndarray:
        return at[(2 * passing[at] > total[at] + 2) & (_two_sided(passing[at] - 1, total[at]) <= alpha)]

    for wrong, step in ((failing, 1), (loose, -1)):
        at = wrong(total)
        while at.size:
            passing[at] += step
            at = wrong(at)
    table = np.minimum(passing, total + 1).astype(np.int32)
    table.flags.writeable = False
    return table


def _two_sided(top: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Return the two-sided p-value of `top` of `total` votes against 1/2, 1 where `top` is not the majority."""
    tail = special.betainc(np.maximum(top, 1), np.maximum(total - top + 1.0, 1e-300), 0.5)
    return np.where(2 * top > total, np.minimum(2 * tail, 1.0), 1.0)


@functools.lru_cache(maxsize=16)
def _log2_factorials(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Tabulate log2(m!) for m = 0..n as whole parts, i32, and fractions, f32."""
    log2 = special.gammaln(np.arange(n + 1) + 1.0) / np.log(2.0)
    whole = np.floor(log2)
    return whole.astype(np.int32), (log2 - whole).astype(np.float32)


def binomial_p_value(top: jax.Array, rival: jax.Array, n: int) -> jax.Array:
    """Return the two-sided p-value of (top, rival) against 1/2, under jit, for display.

    The relative error is below 1e-4; a p-value below 1e-36 is shown as some positive value below 1e-36. Decisions come
    from `passing_counts`. Both counts are integer arrays of one shape that add up to at most `n`.

    Example:
        >>> float(binomial_p_value(jnp.int32(70), jnp.int32(30), 100))
        7.85...e-05
    """
    whole, fraction = (jnp.asarray(table) for table in _log2_factorials(n))
    total = top + rival
    exponent = whole[total] - whole[top] - whole[rival] - total + 1
    first = jnp.ldexp(jnp.exp2(fraction[total] - fraction[top] - fraction[rival]), jnp.maximum(exponent, -126))

    def unfinished(state: tuple[jax.Array, ...]) -> jax.Array:
        return (state[1] > 1e-9 * state[2]).any()

    def add_term(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        j, term, tail = state
        term = term * jnp.maximum(rival - j, 0).astype(term.dtype) / (top + j + 1).astype(term.dtype)
        return j + 1, term, tail + term

    one = jnp.ones_like(first)
    tail = jax.lax.while_loop(unfinished, add_term, (jnp.zeros_like(top), one, one))[2]
    return jnp.where(top > rival, jnp.clip(first * tail, jnp.finfo(jnp.float32).tiny, 1.0), 1.0)


def round_down(value: np.ndarray) -> np.ndarray:
    """Round float64 values to float32, toward minus infinity."""
    nearest = np.asarray(value, np.float64).astype(np.float32)
    return np.where(nearest > value, np.nextafter(nearest, np.float32(-np.inf)), nearest)


def split_radii(unit_radius: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split float64 unit radii into two float32 tables for `scaled_radius`, in sum never above them.

    They are stepped down by half a float32 rounding error, which covers a scale that float32 rounded up.
    """
    safe = unit_radius * (1 - 2.0**-24) * (1 - _MARGIN)
    high = safe.astype(np.float32)
    return high, round_down(safe - high)


def scaled_radius(scale: jax.Array, high: jax.Array, low: jax.Array) -> jax.Array:
    """Return scale * (high + low) in float32, rounded down, with an error below one unit in the last place."""
    product = scale * high
    # The exact error of the product, by Dekker's splitting. The halves are cut off bitwise, and their products are
    # exact, so that neither a fused multiply-add nor another order of evaluation changes the result.
    (a, b), (c, d) = _halves(scale), _halves(high)
    rest = ((a * c - product) + a * d + b * c) + b * d + scale * low
    nearest = product + rest
    return jnp.where(rest < nearest - product, jnp.nextafter(nearest, jnp.zeros_like(nearest)), nearest)


def _halves(value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Split float32 values into their leading 12 bits and the rest, exactly."""
    bits = jax.lax.bitcast_convert_type(value, jnp.uint32) & np.uint32(0xFFFFF000)
    leading = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return leading, value - leading
