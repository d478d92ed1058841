"""From counts to bounds on a probability, and from bounds to radii: float64 on the host, rounded toward safety.

Float32 arithmetic is not sound here, so compiled code never computes a bound. For a static `(n, alpha)` it looks the
count up in a table that SciPy made. On the host the bound of each count is computed directly, so that neither time nor
memory grows with n. What works on both takes arrays of NumPy or of JAX, and `xp`, which is the one or the other.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from scipy import special

from jaxsmooth.arguments import as_alpha, as_integer, as_numbers, in_brief
from jaxsmooth.types import ABSTAIN, Noise

__all__ = [
    "anytime_lower_bound",
    "at_label",
    "binomial_p_value",
    "clopper_pearson_lower",
    "largest_rival",
    "lower_bound",
    "lower_bounds",
    "passes_binomial_test",
    "passing_counts",
    "per_input",
    "reduced",
    "round_down",
    "rounded_radius",
    "safe_scale",
    "scaled_radius",
    "settled",
    "split_radii",
    "two_sided_p_value",
    "unit_radii",
]

_TABLES = 4  # of each kind that are kept: one for n = 10^6 has 8 MB
_MARGIN = 1e-13  # of a bound, toward safety: SciPy's inverse functions were found good to 5e-15
_BISECTIONS = 60


def clopper_pearson_lower(count: ArrayLike, n: int, alpha: float) -> np.ndarray:
    """Return the one-sided lower confidence bound on a probability, from `count` successes in `n` trials.

    The bound exceeds the true probability with probability at most `alpha` (Clopper & Pearson 1934). It is SciPy's
    value as it is; `lower_bound` steps it down for SciPy's errors.

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
    n = as_integer("n", n, 1)
    alpha = as_alpha(alpha)
    count = np.asarray(count)
    if not np.issubdtype(count.dtype, np.integer):
        raise TypeError(f"count must be integers, got dtype {count.dtype}")
    if not ((count >= 0) & (count <= n)).all():
        raise ValueError(f"count must lie in [0, {n}], got {count}")
    return lower_bound(count, n, alpha, margin=0.0)[()]


def lower_bound(count: ArrayLike, n: ArrayLike, alpha: float, margin: float = _MARGIN) -> np.ndarray:
    """Return `clopper_pearson_lower`, stepped down by the safety margin; unchecked, for any shapes that broadcast.

    An upper bound on a probability is 1 less the lower bound of the opposite: `1 - lower_bound(n - count, n, alpha)`.
    Counts between integers are allowed, to plan how many votes a share of them takes.

    Example:
        >>> bool(lower_bound(90, 100, 0.001) < clopper_pearson_lower(90, 100, 0.001))
        True
    """
    count = np.asarray(count)
    bound = special.betaincinv(np.where(count > 0, count, 1), np.asarray(n) - count + 1.0, alpha)
    return np.where(count > 0, bound, 0.0) * (1 - margin)


@functools.lru_cache(maxsize=_TABLES)
def lower_bounds(n: int, alpha: float) -> np.ndarray:
    """Tabulate `lower_bound` at every count for compiled code, `f64[n + 1]`, read-only."""
    table = lower_bound(np.arange(n + 1), n, alpha)
    table.flags.writeable = False
    return table


def anytime_lower_bound(count: ArrayLike, n: ArrayLike, alpha: float) -> np.ndarray:
    """Return a lower bound on a probability from successes in n trials, valid at all n together.

    With probability at least 1 - alpha, the bounds at n = 1, 2, 3, ... all hold, hence also their running maximum. It
    inverts a one-sided mixture of likelihood ratios over the Jeffreys prior, by Ville's inequality (Howard et al. 2021,
    arXiv:1810.08240; Voracek 2024, arXiv:2406.17830).

    Args:
        count: integers in [0, n].
        n: numbers of trials, at least 1, of a shape that broadcasts against `count`.
        alpha: failure probability in (0, 1).

    Returns:
        float64 array, stepped down by the safety margin; 0 where nothing is known.

    Example:
        >>> anytime_lower_bound([0, 90, 100], 100, 0.001).round(3)
        array([0.   , 0.736, 0.922])
    """
    alpha = as_alpha(alpha)
    k = as_numbers("count", count, "integers")
    total = as_numbers("n", n, "integers")
    try:
        k, total = np.broadcast_arrays(k, total)
    except ValueError:
        raise ValueError(f"n must have a shape that broadcasts against count, got {total.shape}, {k.shape}") from None
    if not (
        (k >= 0) & (k <= total) & (total >= 1) & (total < np.inf) & (k == np.floor(k)) & (total == np.floor(total))
    ).all():
        raise ValueError(
            f"count must hold integers in [0, n] and n integers of at least 1, got {in_brief(count)} and {in_brief(n)}"
        )
    low = np.zeros(k.shape)
    high = k / total
    # The evidence is a difference of logarithms of the size of n log n: what their last digits may err by is taken off.
    slack = 4 * np.finfo(np.float64).eps * total * (np.log(total) + 1)
    # Bisect for the largest probability that the evidence refutes. It lies below the share of successes.
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        refuted = _log_evidence(middle, k, total) - slack >= -np.log(alpha)
        low = np.where(refuted, middle, low)
        high = np.where(refuted, high, middle)
    return low * (1 - _MARGIN)


def _log_evidence(q: np.ndarray, k: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Return the log of the evidence against a probability of at most q, for q below the share of successes.

    For such q the upper part of the posterior holds about half of it or more, so its logarithm is accurate.
    """
    a = k + 0.5
    b = n - k + 0.5
    inside = np.clip(q, 1e-300, 1.0)
    posterior = special.betaln(a, b) + np.log(np.maximum(special.betainc(b, a, 1 - inside), 1e-300))
    prior = special.betaln(0.5, 0.5) + np.log(np.maximum(special.betainc(0.5, 0.5, 1 - inside), 1e-300))
    return posterior - prior - special.xlogy(k, inside) - special.xlog1py(n - k, -inside)


def at_label(xp: Any, counts: Any, label: Any) -> Any:
    """Return the count of each label, `[N, *components]`."""
    return xp.take_along_axis(counts, label[..., None], axis=-1)[..., 0]


def largest_rival(xp: Any, counts: Any, label: Any, n: Any) -> Any:
    """Return the largest count of a class that is not the label, in [0, n]. The invalid votes count as a class."""
    classes = xp.arange(counts.shape[-1]).reshape((1,) * label.ndim + (-1,))
    others = xp.where(classes == label[..., None], 0, counts).max(axis=-1)
    return xp.clip(xp.maximum(others, n - counts.sum(axis=-1, dtype=np.int32)), 0, n)


def reduced(xp: Any, label: Any, radius: Any, lost: Any) -> tuple[Any, Any]:
    """Return label and radius once what rounding the inputs lost is taken off. A radius that is used up abstains."""
    if lost is None:
        return label, radius
    lost = per_input(lost, label.ndim)
    # A traced NaN could not be refused. It is not equal to 0, and what it leaves is not above 0.
    left = xp.where(lost == 0, radius, xp.nextafter(radius - lost, xp.full_like(radius, -np.inf)))
    kept = (label != ABSTAIN) & ((lost == 0) | (left > 0))
    return xp.where(kept, label, ABSTAIN), xp.where(kept, left, xp.zeros_like(left))


def settled(label: np.ndarray, radius: np.ndarray, lost: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return label and radius as a certificate has them: an abstention where the radius is negative."""
    certified = radius >= 0
    label = np.where(certified, label, ABSTAIN).astype(np.int32)
    return reduced(np, label, np.where(certified, radius, np.float32(0)), None if lost is None else np.asarray(lost))


def per_input(values: Any, ndim: int) -> Any:
    """Return one value, or one for each input, in a shape that broadcasts against `[N, *components]` with ndim axes."""
    return values if np.ndim(values) == 0 else values.reshape(-1, *(1,) * (ndim - 1))


def fit_samples(counts: Any, n: Any) -> Any:
    """Tell which rows of counts n samples can have cast: none is negative, and they add up to at most n."""
    # The sum of many classes could wrap around in 32 bits. Floats do not wrap, and need not be exact for that.
    adds_up = (counts.sum(axis=-1, dtype=np.int32) <= n) & (counts.sum(axis=-1, dtype=np.float32) < 2.0**31)
    return adds_up & (counts >= 0).all(axis=-1)


def passes_binomial_test(top: np.ndarray, rival: np.ndarray, alpha: float) -> np.ndarray:
    """Tell where the exact two-sided binomial test of (top, rival) against 1/2 rejects at level alpha.

    Hung & Fithian 2019, arXiv:1610.03944.

    Example:
        >>> passes_binomial_test(np.array([80, 55]), np.array([20, 45]), 0.001)
        array([ True, False])
    """
    return two_sided_p_value(np.asarray(top), np.asarray(top) + np.asarray(rival)) <= alpha


@functools.lru_cache(maxsize=_TABLES)
def passing_counts(n: int, alpha: float) -> np.ndarray:
    """Tabulate the smallest top count that passes the binomial test, for each total in 0..n.

    The test is the exact two-sided one of (top, rival) against 1/2 with top + rival = total (Hung & Fithian 2019,
    arXiv:1610.03944). Where no count passes, the entry is total + 1.

    Returns:
        int32[n + 1], read-only.
    """
    total = np.arange(n + 1)
    # Start at the quantile of a normal distribution, which is exact but in far tails, and move only the counts that an
    # exact test finds wrong.
    guess = np.ceil((total - special.ndtri(max(alpha / 2, 1e-300)) * np.sqrt(total)) / 2)
    passing = np.clip(guess, total // 2, total + 1).astype(np.int64)

    def failing(at: np.ndarray) -> np.ndarray:
        return at[(passing[at] <= total[at]) & (two_sided_p_value(passing[at], total[at]) > alpha)]

    def loose(at: np.ndarray) -> np.ndarray:
        return at[(2 * passing[at] > total[at] + 2) & (two_sided_p_value(passing[at] - 1, total[at]) <= alpha)]

    for wrong, step in ((failing, 1), (loose, -1)):
        at = wrong(total)
        while at.size:
            passing[at] += step
            at = wrong(at)
    table = np.minimum(passing, total + 1).astype(np.int32)
    table.flags.writeable = False
    return table


def two_sided_p_value(top: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Return the two-sided p-value of `top` of `total` votes against 1/2, 1 where `top` is not the majority."""
    tail = special.betainc(np.maximum(top, 1), np.maximum(total - top + 1.0, 1e-300), 0.5)
    # Stepped up by the safety margin, so that a test at alpha never passes above it.
    return np.where(2 * top > total, np.minimum(2 * tail * (1 + _MARGIN), 1.0), 1.0)


@functools.lru_cache(maxsize=_TABLES)
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
    # The first term of the tail is C(total, top) / 2^total, here as a power of 2 with a float32 fraction.
    exponent = whole[total] - whole[top] - whole[rival] - total + 1
    first = jnp.ldexp(jnp.exp2(fraction[total] - fraction[top] - fraction[rival]), jnp.maximum(exponent, -126))

    def unfinished(state: tuple[jax.Array, ...]) -> jax.Array:
        return (state[1] > 1e-9 * state[2]).any()

    def add_term(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        j, term, tail = state
        term = term * jnp.maximum(rival - j, 0).astype(term.dtype) / (top + j + 1).astype(term.dtype)
        return j + 1, term, tail + term

    one = jnp.ones_like(first)
    # Each further term is the one before times rival / (top + 1), (rival - 1) / (top + 2), ...
    tail = jax.lax.while_loop(unfinished, add_term, (jnp.zeros_like(top), one, one))[2]
    return jnp.where(top > rival, jnp.clip(first * tail, jnp.finfo(jnp.float32).tiny, 1.0), 1.0)


def round_down(value: ArrayLike) -> np.ndarray:
    """Round float64 values to float32, toward minus infinity."""
    value = np.asarray(value, np.float64)
    nearest = value.astype(np.float32)
    return np.where(nearest > value, np.nextafter(nearest, np.float32(-np.inf)), nearest)


def safe_scale(noise: Noise) -> float:
    """Return the scale, one float32 step down: below what was given, and below what noise is drawn with.

    A noise of norm 0 counts features, and its scale is 1.
    """
    if noise.norm == 0:
        return 1.0
    return float(np.nextafter(np.asarray(noise.scale, np.float32), np.float32(0)))


def rounded_radius(noise: Noise, unit_radius: np.ndarray) -> np.ndarray:
    """Return a noise's radius in float32, rounded down, from float64 radii at scale 1; for a concrete scale."""
    if noise.norm == 0:  # whole numbers
        return unit_radius.astype(np.float32)
    return round_down(safe_scale(noise) * unit_radius * (1 - _MARGIN))


def unit_radii(noise: Noise, p_lower: np.ndarray) -> np.ndarray:
    """Return a noise's radius at scale 1 for each lower bound, in float64; -1 where it certifies nothing.

    A radius of 0 is a certificate for norm 0 only: that of the class of x itself.
    """
    is_above = p_lower > 0.5
    unit = np.where(is_above, noise.unit_radius(np.where(is_above, p_lower, 0.5)), -1.0)
    return unit if noise.norm == 0 else np.where(unit > 0, unit, -1.0)


def split_radii(noise: Noise, unit_radius: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split float64 radii at scale 1 into two float32 parts for `scaled_radius`, whose sum is never above them.

    They are stepped down by half a float32 rounding error, which covers a scale that float32 rounded up. Those of norm
    0 are whole numbers, and stay as they are.
    """
    if noise.norm == 0:
        return unit_radius.astype(np.float32), np.zeros(np.shape(unit_radius), np.float32)
    # One float32 does not hold a float64 radius: `high` takes its leading bits and `low` the rest.
    safe = unit_radius * (1 - 2.0**-24) * (1 - _MARGIN)
    high = safe.astype(np.float32)
    return high, round_down(safe - high)


def scaled_radius(scale: Any, high: Any, low: Any) -> Any:
    """Return scale * (high + low) in float32, rounded down, with an error below one unit in the last place.

    It takes arrays of NumPy or of JAX and gives the same bits.
    """
    on_host = isinstance(high, np.ndarray)
    xp: Any = np if on_host else jnp
    product = scale * high
    # `product` is rounded to nearest. Its exact error, by Dekker's splitting, says whether to step down. The leading 12
    # bits are cut off bitwise, so the products of the halves are exact, and neither a fused multiply-add nor another
    # order of evaluation changes the result.
    halves: list[Any] = []
    for value in (scale, high):
        bits = value.view(np.uint32) if on_host else jax.lax.bitcast_convert_type(value, jnp.uint32)
        bits = bits & np.uint32(0xFFFFF000)
        leading = bits.view(np.float32) if on_host else jax.lax.bitcast_convert_type(bits, jnp.float32)
        halves += [leading, value - leading]
    a, b, c, d = halves
    rest = ((a * c - product) + a * d + b * c) + b * d + scale * low
    nearest = product + rest
    return xp.where(rest < nearest - product, xp.nextafter(nearest, xp.zeros_like(nearest)), nearest)
