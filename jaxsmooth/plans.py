"""When to stop voting: exactly calibrated group-sequential tests of "the radius is at least r", made on the host.

A plan is data. It says after how many votes an input is looked at, and how many votes for its class, or against it,
settle each radius of a grid (Pocock 1977; Jennison & Turnbull 2000: exact group-sequential binomial tests). A plan
never sees a model; it must be made before any votes are looked at.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy
from scipy import fft

from jaxsmooth._checks import as_noise
from jaxsmooth.arguments import as_alpha, as_integer, as_numbers, is_traced
from jaxsmooth.bounds import safe_scale
from jaxsmooth.types import Noise

# Nominal levels grow as this power of the share of votes: -0.1 takes 9 % fewer votes than 0.3, in the geometric mean of
# `python -m tests.benchmarks.sequential_votes`, and leaves the last look enough.
_SHAPE = -0.1
_MARGIN = 1e-9  # of alpha, for what convolutions round
_FILLED = 0.98  # of alpha: where bars of the shape use less of it, single bars are lowered
_STEPS = 60  # of the bisections


class RadiiPlan(NamedTuple):
    """A group-sequential test of a grid of radii. Only integers decide.

    Attributes:
        radii: `f64[R]`, increasing.
        looks: `i64[J]`, numbers of votes after which an input is looked at, increasing.
        certify: `i64[R, J]`, the radius is certified at a look if this many votes were for the class.
        give_up: `i64[R, J]`, the radius is given up at a look if this many votes were not.
        edges: `f64[R]`, the probability whose radius each is: a certified radius says that the class has more.
    """

    radii: np.ndarray
    looks: np.ndarray
    certify: np.ndarray
    give_up: np.ndarray
    edges: np.ndarray


def make_looks(n: int, first: int = 64, growth: float = 1.25) -> tuple[int, ...]:
    """Return the numbers of votes after which to look: `first`, then `growth` times as many each time, up to n.

    Example:
        >>> make_looks(200), len(make_looks(100_000))
        ((64, 80, 100, 125, 157, 196, 200), 34)
    """
    n = as_integer("n", n, 1)
    first = as_integer("first", first, 1)
    if not 1 < growth < math.inf:
        raise ValueError(f"growth must be a number above 1, got {growth!r}")
    looks = [min(first, n)]
    while looks[-1] < n:
        looks.append(min(n, max(looks[-1] + 1, math.ceil(first * growth ** len(looks)))))
    return tuple(looks)


def plan_radii(
    radii: Sequence[float],
    noise: Noise,
    *,
    n: int = 100_000,
    alpha: float = 1e-3,
    beta: float = 1e-3,
    looks: Sequence[int] | None = None,
) -> RadiiPlan:
    """Plan a test that certifies the largest radius of a grid with as few votes as it takes.

    For an input whose class has true probability p under the noise, the probability that any radius is certified
    beyond the true one is at most alpha, and for a single radius at p on its edge it is close to alpha: the bars are
    calibrated by the exact distribution of the votes at all looks. The whole grid costs one alpha, since the bars are
    nested: a false claim of one radius implies one of the smallest that is false. `beta` sets when a radius is given
    up, and is no part of the guarantee: a radius whose true one is just beyond is given up early with about that
    probability. The plan is cached.

    Args:
        radii: grid of radii, at least 0, in the units of `x`; one for a target. 0 is the class only.
        noise: the noise, its scale a concrete number.
        n: largest number of votes.
        alpha: failure probability for each input, in (0, 1).
        beta: probability of giving up a radius that could just be certified, in (0, 1).
        looks: increasing numbers of votes, the last one n; by default `make_looks(n)`.

    Raises:
        ValueError, TypeError: an argument is not as described.

    Example:
        >>> from jaxsmooth import Gaussian
        >>> plan = plan_radii([0.25, 0.5], Gaussian(0.5), n=1000)
        >>> plan.looks[:3], plan.certify[:, :3]
        (array([ 64,  80, 100]), array([[57, 70, 86],
               [64, 78, 97]]))
    """
    n = as_integer("n", n, 1, 2**30)
    alpha = as_alpha(alpha)
    beta = as_alpha(beta, "beta")
    grid = as_radii(radii)
    steps = make_looks(n) if looks is None else as_looks(looks, n)
    edges = tuple(edge_probability(as_noise(noise), radius) for radius in grid)
    tests = [_test(edge, steps, alpha, beta) for edge in edges]
    # Nest the grid: a larger radius has higher bars to certify it, and lower bars to give it up. Then every false claim
    # implies the first false one, and the whole grid costs one alpha.
    certify = np.maximum.accumulate([bars for bars, _ in tests])
    give_up = np.minimum.accumulate([bars for _, bars in tests])
    return RadiiPlan(np.array(grid), np.array(steps), certify, give_up, np.array(edges))


def edge_probability(noise: Noise, radius: float) -> float:
    """Return the probability whose radius under the noise is this one, rounded up to the next float64.

    Example:
        >>> from jaxsmooth import Gaussian
        >>> edge_probability(Gaussian(0.5), 0.5)
        0.84134...
    """
    if is_traced(noise.scale):
        raise TypeError("the scale of the noise must be a concrete number: a plan is made before anything is compiled")
    unit = radius / safe_scale(noise)
    low, high = 0.5, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if noise.unit_radius(middle) >= unit else (middle, high)
    return high


def crossing_probability(looks: Sequence[int], bars: np.ndarray, p: float, convolve: Callable[..., Any]) -> float:
    """Return the probability that successes of probability p meet a bar at some look."""
    return float(sum(above for _, _, above in _walk(looks, bars, p, convolve)))


def expected_votes(plan: RadiiPlan, index: int, p: float) -> tuple[float, float]:
    """Return the mean number of votes, and the probability to certify, of a test of one radius of a plan.

    Args:
        plan: the plan.
        index: of the radius.
        p: true probability of the class.

    Example:
        >>> from jaxsmooth import Gaussian
        >>> votes, power = expected_votes(plan_radii([0.5], Gaussian(0.5)), 0, 0.99)
        >>> round(votes), power > 0.999
        (76, True)
    """
    votes = certified = 0.0
    states = _walk(plan.looks, plan.certify[index], p, np.convolve, plan.give_up[index])
    alive = 1.0
    previous = 0
    for look, below, above in states:
        votes += alive * (look - previous)
        alive = below
        previous = look
        certified += above
    return float(votes), float(certified)


def _walk(
    looks: Any, bars: np.ndarray, p: float, convolve: Callable[..., Any], give_up: np.ndarray | None = None
) -> Any:
    """Yield each look with the probability of going on after it and the probability of meeting the bar at it.

    The state is the distribution of the count (dynamic programming over the looks).
    """
    start = previous = 0
    mass = np.ones(1)
    for index, (look, bar) in enumerate(zip(looks, bars, strict=True)):
        first, step = _binomial(look - previous, p)
        start += first
        mass = np.maximum(convolve(mass, step), 0)
        previous = look
        cut = min(max(int(bar) - start, 0), len(mass))
        above = mass[cut:].sum()
        skip = 0 if give_up is None else min(max(look - int(give_up[index]) + 1 - start, 0), cut)
        start = start + skip
        mass = mass[skip:cut]
        yield look, mass.sum(), above
        if not len(mass):
            return


def _convolve(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    size = len(a) + len(b) - 1
    padded = fft.next_fast_len(size, real=True)
    product = np.asarray(fft.rfft(a, padded)) * np.asarray(fft.rfft(b, padded))
    return np.asarray(fft.irfft(product, padded))[:size]


@functools.lru_cache(maxsize=4096)
def _binomial(n: int, p: float) -> tuple[int, np.ndarray]:
    """Return the probabilities of a binomial distribution from some count on, without tails of less than 1e-30."""
    reach = 12 * math.sqrt(n * p * (1 - p)) + 50
    low = max(0, math.floor(n * p - reach))
    high = min(n, math.ceil(n * p + reach))
    return low, scipy.stats.binom.pmf(np.arange(low, high + 1), n, p)


@functools.lru_cache(maxsize=1024)
def _test(edge: float, looks: tuple[int, ...], alpha: float, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the bars of one radius: votes for the class that certify it, votes against that give it up."""
    return _calibrated(edge, looks, alpha), _calibrated(1 - edge, looks, beta)


def _calibrated(p: float, looks: tuple[int, ...], alpha: float) -> np.ndarray:
    """Return the lowest bars of the given shape that successes of probability p meet with probability at most alpha."""
    n = np.array(looks)
    target = alpha * (1 - _MARGIN)

    def bars(level: float) -> np.ndarray:
        nominal = np.minimum(level * (n / n[-1]) ** _SHAPE, 0.5)
        lowest = scipy.stats.binom.isf(nominal, n, p).astype(np.int64)
        while (loose := scipy.stats.binom.sf(lowest - 1, n, p) > nominal).any():
            lowest = lowest + loose
        # Carry back: votes never decrease, so a later bar that is met early will be met.
        return np.minimum.accumulate(lowest[::-1])[::-1]

    def crossed(bars: np.ndarray) -> float:
        return crossing_probability(looks, bars, p, _convolve)

    # Bisect for the largest level whose bars keep alpha.
    low = math.log(alpha) - 20
    high = 0.0
    found = bars(math.exp(low))
    beyond = bars(math.exp(high))
    while high - low > 1e-9 and (found != beyond).any():
        middle = (low + high) / 2
        between = bars(math.exp(middle))
        if crossed(between) <= target:
            low, found = middle, between
        else:
            high, beyond = middle, between
    # The bars are integers, so the best level may leave alpha unused. Then lower single bars, the first looks first.
    if crossed(found) < _FILLED * alpha:
        for look in range(len(looks)):
            lower = np.minimum(found, np.where(np.arange(len(looks)) <= look, found[look] - 1, found))
            if crossed(lower) <= target:
                found = lower
    # The search used an FFT. Check the result once by direct convolution.
    if crossing_probability(looks, found, p, np.convolve) > alpha:
        raise ArithmeticError(f"bars for probability {p} at level {alpha} failed their check by direct convolution")
    return found


def as_radii(radii: Any) -> list[float]:
    """Return a grid of radii, increasing and at least 0."""
    grid = as_numbers("radii", radii, "a sequence of numbers that are at least 0")
    if grid.ndim != 1 or grid.size == 0 or not np.isfinite(grid).all() or not (grid >= 0).all():
        raise ValueError(f"radii must be a sequence of numbers that are at least 0, got {radii!r}")
    if not (np.diff(grid) > 0).all():
        raise ValueError(f"radii must increase, got {radii!r}")
    return grid.tolist()


def as_looks(looks: Any, n: int) -> tuple[int, ...]:
    """Return numbers of votes that increase up to n."""
    steps = [as_integer("looks", look, 1) for look in looks]
    if not steps or steps[-1] != n or any(b <= a for a, b in itertools.pairwise(steps)):
        raise ValueError(f"looks must increase up to n = {n}, got {looks!r}")
    return tuple(steps)
