"""Intervals for real outputs under every perturbation of a given size: percentile smoothing.

The median of f(x + noise) moves little when x does, whatever f is. It stays between two other percentiles at x, which
samples bound (Chiang et al. 2020, arXiv:2007.03730).
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from scipy import special

from jaxsmooth._checks import (
    StaticCallable,
    as_batch_size,
    as_n,
    as_noise,
    as_votes,
    merge_callable,
    refuse_stopped,
    split_callable,
)
from jaxsmooth.arguments import (
    as_alpha,
    as_flag,
    as_nonnegative,
    as_numbers,
    in_brief,
    is_traced,
    refuse_traced,
    refuse_uncallable,
)
from jaxsmooth.bounds import safe_scale
from jaxsmooth.noise import Gaussian
from jaxsmooth.progress import progress_bar
from jaxsmooth.stream import Stream, stream_key, stream_samples
from jaxsmooth.types import Array, Noise, RandomClassifier, Votes

__all__ = ["AtMost", "Interval", "certify_regression", "interval_ranks", "regression_interval"]

_MARGIN = 1e-12  # of a probability, toward safety


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Interval:
    """Between which values a percentile of the outputs stays, for each of `N` inputs.

    Attributes:
        lower, upper: `f32[N, *outputs]`, the ends of the interval; `f64` where f returns that, or integers. They are
            infinite where n samples are too few.
        estimate: `f32[N, *outputs]`, the percentile of the samples, which lies between them.
        samples: number of samples behind it.
    """

    lower: Array
    upper: Array
    estimate: Array
    samples: int


def certify_regression(
    f: Callable[..., Any],
    noise: Noise,
    key: jax.Array,
    x: ArrayLike,
    radius: float,
    *,
    percentile: float = 0.5,
    n: int = 10_000,
    alpha: float = 1e-3,
    batch_size: int = 256,
    ids: ArrayLike | None = None,
    compiled: bool = True,
    progress: bool = False,
) -> Interval:
    """Return an interval that the smoothed output does not leave under any perturbation of x up to a radius.

    Let h(x) be the percentile of f(x + noise), for each output by itself. With probability at least 1 - alpha over the
    samples, for each input, h(x + d) lies in [lower, upper] for every d whose L2 norm is at most `radius`, for all
    outputs at once (Chiang et al. 2020, arXiv:2007.03730, Lemma 1). It holds for every f, with ties and jumps. Fix the
    radius, percentile, n and alpha before you look at any outputs.

    The ends are samples: order statistics that bound the percentiles Phi(Phi^-1(p) -+ radius / sigma) at x. So the n
    outputs of an input are kept until they are sorted, 4 n bytes for each output. An output that is NaN counts as
    infinite, at whichever end makes the interval wider. Where n is too small for radius / sigma an end is infinite:
    `interval_ranks(n, percentile, radius / sigma, alpha)` says so beforehand, by the ranks 0 and n + 1.

    Args:
        f: function or callable pytree from a batch `[B, *event]` to real outputs `[B, *outputs]`, such as a regression
            `[B]` or boxes `[B, 4]`.
        noise: Gaussian, in the units of x, of a concrete sigma.
        key, x, batch_size, ids: as for `certify`.
        radius: largest L2 norm of a perturbation, at least 0, in the units of x.
        percentile: in (0, 1); 0.5 is the median.
        n: number of samples.
        alpha: failure probability for each input, all of its outputs together, in [1e-12, 0.5).
        compiled: compile f; if false call it, any function of a JAX array.
        progress: show a bar over the samples.

    Returns:
        An `Interval` of NumPy arrays.

    Raises:
        ValueError, TypeError: an argument is not as described.

    Example:
        >>> f = lambda x: x.sum(axis=1)
        >>> x = jnp.array([[1.0, 2.0]])
        >>> result = certify_regression(f, Gaussian(0.5), jax.random.key(0), x, radius=0.25)
        >>> result.lower.round(1), result.estimate.round(1), result.upper.round(1)  # 3 -+ 0.25 sqrt(2)
        (array([2.6], dtype=float32), array([3.], dtype=float32), array([3.4], dtype=float32))
    """
    radius = as_nonnegative("radius", radius)
    percentile = _as_percentile(percentile)
    n = as_n(n)
    alpha = as_alpha(alpha)
    batch_size = as_batch_size(batch_size)
    if isinstance(f, RandomClassifier):
        raise TypeError("f must be a function of the inputs for an interval, got a RandomClassifier")
    refuse_uncallable(f)
    noise = as_regression_noise(noise)
    refuse_traced("certify_regression", (x, noise, key), "count votes of AtMost(f, t), for regression_interval")
    run = _compiled(f) if as_flag("compiled", compiled) else f
    # The stream of the votes that bound a probability in `certify`.
    samples = stream_samples(noise, stream_key(key, Stream.ESTIMATION), x, n=n, batch_size=batch_size, ids=ids)
    inputs = len(x)  # pyright: ignore[reportArgumentType]
    outputs = None
    taken = np.zeros(inputs, np.int64)
    with progress_bar("samples", inputs * n, progress) as advance:
        for noisy, row in samples:
            found = _as_outputs(run(noisy), len(noisy))
            if outputs is None:
                outputs = np.full((inputs, n, *found.shape[1:]), np.nan, found.dtype)
            if (found.shape[1:], found.dtype) != (outputs.shape[2:], outputs.dtype):
                raise ValueError(
                    f"f must always return outputs of one shape and dtype, got {outputs.shape[2:]} of {outputs.dtype} "
                    f"and {found.shape[1:]} of {found.dtype}"
                )
            # Rows of a batch that belong to no input are marked with N. Those of an input follow each other.
            for index in np.unique(row[row < inputs]):
                own = found[row == index]
                outputs[index, taken[index] : taken[index] + len(own)] = own
                taken[index] += len(own)
            advance(int(taken.sum()))
    if outputs is None:
        outputs = np.zeros((0, n), np.float32)
    low, high = _ranks(n, percentile, radius / safe_scale(noise), alpha / max(math.prod(outputs.shape[2:]), 1))
    return _ends(outputs, low, high, percentile)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class AtMost:
    """A classifier that says of each real output of f whether it is at most t, for each t of some thresholds.

    Its votes are all that `regression_interval` needs of the outputs: to count them takes no memory that grows with n,
    and runs inside compiled code.

    Attributes:
        f: function or callable pytree from a batch `[B, *event]` to floating-point outputs `[B, *outputs]`.
        thresholds: `[T]`, finite and rising in float32, in which outputs are compared with them.

    Called with a batch it returns scores `f32[B, *outputs, T, 2]`: class 0 where the output is at most t, class 1 where
    it is above t, and none where it is NaN.

    Example:
        >>> AtMost(lambda x: x.sum(axis=1), jnp.array([2.0, 3.0, 4.0]))(jnp.array([[1.0, 2.0]])).argmax(axis=-1)
        Array([[1, 0, 0]], dtype=int32)
    """

    f: Any
    thresholds: ArrayLike

    def __post_init__(self) -> None:
        """Refuse thresholds that are not as described. What JAX puts in their place passes."""
        if isinstance(self.thresholds, (list, tuple, np.ndarray, jax.Array)):
            _as_thresholds(self.thresholds)

    def __call__(self, x: jax.Array, /) -> jax.Array:
        """Return the scores of a batch."""
        thresholds: Any = _as_thresholds(self.thresholds)
        found = self.f(x)
        # What f computes outside of JAX may be wider than JAX's numbers, and is compared as it is.
        found = found if isinstance(found, jax.Array) else np.asarray(found)
        xp: Any = jnp if isinstance(found, jax.Array) else np
        if not jnp.issubdtype(found.dtype, jnp.floating):
            raise TypeError(f"f must return real outputs of a floating dtype, got {found.dtype}")
        wide = xp.promote_types(found.dtype, np.float32)
        output = found[..., None].astype(wide)
        at = thresholds.reshape((1,) * found.ndim + (-1,))
        is_below = xp.where(xp.isnan(output), np.float32(np.nan), (output <= at.astype(wide)).astype(np.float32))
        return xp.stack([is_below, 1 - is_below], axis=-1)


def regression_interval(
    votes: Votes,
    thresholds: ArrayLike,
    noise: Noise,
    radius: float,
    *,
    percentile: float = 0.5,
    alpha: float = 1e-3,
) -> Interval:
    """Return the interval of `certify_regression` from counts of outputs that are at most each of some thresholds.

    The ends are thresholds: the largest one that is below the lower end which the outputs themselves would give, and
    the smallest one that is not below the upper end. An end is infinite where there is no such threshold. The guarantee
    is that of `certify_regression`, whatever the thresholds are. Fix them before you look at any outputs. It runs under
    `jax.jit`, where the ends are as exact, and is an array of JAX where the counts are.

    Args:
        votes: of `AtMost(f, thresholds)`, of the rule "fixed": counts `[N, *outputs, T, 2]`. `n` is one static int.
            Samples that neither count has are NaN outputs.
        thresholds: `[T]`, those of the votes. The ends are in float32, as they were compared.
        noise: Gaussian, of a concrete sigma, under which they were counted.
        radius, percentile, alpha: as for `certify_regression`; concrete numbers.

    Raises:
        ValueError, TypeError: an argument is not as described.

    Example:
        >>> from jaxsmooth import count_votes
        >>> noise, thresholds = Gaussian(0.5), np.linspace(0.0, 6.0, 61)
        >>> f = AtMost(lambda x: x.sum(axis=1), thresholds)
        >>> @jax.jit
        ... def interval(key, x):
        ...     votes = Votes(counts=count_votes(f, noise, key, x, n=10_000), n=10_000)
        ...     return regression_interval(votes, thresholds, noise, radius=0.25)
        >>> found = interval(jax.random.key(0), jnp.array([[1.0, 2.0]]))
        >>> found.lower.round(1), found.upper.round(1)
        (Array([2.5], dtype=float32), Array([3.4], dtype=float32))
    """
    radius = as_nonnegative("radius", radius)
    percentile = _as_percentile(percentile)
    alpha = as_alpha(alpha)
    noise = as_regression_noise(noise)
    if is_traced(noise.sigma):
        raise TypeError("noise must have a concrete sigma for an interval: it decides which counts are the ends")
    votes = as_votes(votes)
    refuse_stopped(votes)
    if not isinstance(votes.n, int):
        raise TypeError("votes.n must be one static int: it decides which counts are the ends")
    thresholds = _as_thresholds(thresholds)
    counts = votes.counts
    if counts.ndim < 3 or counts.shape[-2:] != (len(thresholds), 2):
        raise ValueError(
            f"votes must be of AtMost(f, thresholds) with {len(thresholds)} thresholds, counts [N, *outputs, "
            f"{len(thresholds)}, 2], got shape {counts.shape}"
        )
    xp: Any = jnp if isinstance(counts, jax.Array) else np
    outputs = max(math.prod(counts.shape[1:-2]), 1)
    low, high = _ranks(votes.n, percentile, radius / safe_scale(noise), alpha / outputs)
    at_most = counts[..., 0]
    # A NaN is an output at whichever end makes the interval wider. Neither count has it.
    at_most_or_invalid = votes.n - counts[..., 1]
    padded = xp.asarray(np.concatenate([[-np.inf], thresholds, [np.inf]]).astype(np.float32))
    lower = padded[(at_most_or_invalid < low).sum(axis=-1)]
    upper = padded[(at_most < high).sum(axis=-1) + 1]
    estimate = padded[(at_most_or_invalid < _rank_of(percentile, votes.n)).sum(axis=-1) + 1]
    return Interval(lower, upper, estimate, votes.n)


def interval_ranks(n: int, percentile: float, shift: float, alpha: float) -> tuple[int, int]:
    """Return which of n sorted samples are the ends of the interval, counted from 1; 0 and n + 1 where none is.

    The lower one is the largest rank that is not above the percentile Phi(Phi^-1(p) - shift) with probability at least
    1 - alpha / 2, the upper one the least that is not below Phi(Phi^-1(p) + shift).

    Args:
        n: number of samples.
        percentile: p.
        shift: radius / sigma.
        alpha: failure probability of both together.

    Example:
        >>> interval_ranks(1000, 0.5, 0.5, 0.001)
        (261, 740)
    """
    return _ranks(as_n(n), _as_percentile(percentile), as_nonnegative("shift", shift), as_alpha(alpha))


def _ranks(n: int, percentile: float, shift: float, alpha: float) -> tuple[int, int]:
    """Return the ranks from checked numbers; alpha may be small, as the share of one of many outputs."""
    centre = special.ndtri(percentile)
    low = special.ndtr(centre - shift) * (1 - _MARGIN)
    high = special.ndtr(-centre - shift) * (1 - _MARGIN)  # of the mirrored samples
    ranks = np.arange(1, n + 1)

    def largest(q: float) -> int:
        # P[Bin(n, q) >= i], which falls in i.
        return int((special.betainc(ranks, n - ranks + 1.0, q) * (1 - _MARGIN) >= 1 - alpha / 2).sum())

    return largest(low), n + 1 - largest(high)


def as_regression_noise(noise: Any) -> Gaussian:
    """Return a Gaussian noise."""
    noise = as_noise(noise)
    if not isinstance(noise, Gaussian):
        raise TypeError(f"noise must be Gaussian for an interval, got {in_brief(noise)}")
    return noise


def _as_thresholds(thresholds: Any) -> np.ndarray:
    """Return rising finite thresholds in float32. Traced ones are as they are."""
    if is_traced(thresholds):
        return thresholds
    with np.errstate(over="ignore"):
        values = as_numbers("thresholds", thresholds, "a rising list of finite numbers").astype(np.float32)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all() or not (np.diff(values) > 0).all():
        raise ValueError(f"thresholds must be a rising list of finite numbers, got {in_brief(thresholds)}")
    return values


def _rank_of(percentile: float, n: int) -> int:
    """Return the rank of a percentile among n sorted samples, counted from 1: the least that reaches it."""
    return max(math.ceil(percentile * n * (1 - _MARGIN)), 1)


def _ends(outputs: np.ndarray, low: int, high: int, percentile: float) -> Interval:
    """Return the interval from all outputs `[N, n, *outputs]`."""
    n = outputs.shape[1]
    invalid = np.isnan(outputs)
    downward = np.sort(np.where(invalid, -np.inf, outputs), axis=1)
    upward = np.sort(np.where(invalid, np.inf, outputs), axis=1) if invalid.any() else downward
    none = np.full_like(outputs[:, 0], np.inf)
    lower = downward[:, low - 1] if low > 0 else -none
    upper = upward[:, high - 1] if high <= n else none
    estimate = downward[:, _rank_of(percentile, n) - 1]
    return Interval(lower, upper, estimate, n)


def _compiled(f: Any) -> Callable[[jax.Array], Any]:
    arrays, static = split_callable(f)
    return lambda noisy: _run(arrays, static, noisy)


@functools.partial(jax.jit, static_argnums=1)
def _run(arrays: list[Any], static: StaticCallable, noisy: jax.Array) -> Any:
    return merge_callable(arrays, static)(noisy)


def _as_outputs(found: Any, rows: int) -> np.ndarray:
    """Return real outputs `[B, *outputs]`, in float32 where that holds them as they are, else in float64."""
    expected = f"real outputs of shape [{rows}, ...]"
    dtype = getattr(found, "dtype", None)
    if dtype is None or not hasattr(found, "shape"):
        raise TypeError(f"f must return {expected}, got {type(found).__name__}")
    found = np.asarray(found)
    if not (jnp.issubdtype(found.dtype, jnp.floating) or jnp.issubdtype(found.dtype, jnp.integer)):
        raise TypeError(f"f must return {expected}, got dtype {found.dtype}")
    if found.ndim == 0 or len(found) != rows or 0 in found.shape[1:]:
        raise ValueError(f"f must return {expected}, got shape {found.shape}")
    is_narrow = jnp.issubdtype(found.dtype, jnp.floating) and found.dtype.itemsize <= 4
    wide = found.astype(np.float32 if is_narrow else np.float64)
    if jnp.issubdtype(found.dtype, jnp.integer) and (np.abs(wide) >= 2.0**53).any():
        raise ValueError("f must return integers below 2^53 in size: float64 does not hold larger ones")
    return wide


def _as_percentile(percentile: Any) -> float:
    value = as_numbers("percentile", percentile, "a number in (0, 1)")
    if value.shape != () or not 0 < value < 1:
        raise ValueError(f"percentile must be a number in (0, 1), got {in_brief(percentile)}")
    return float(value)
