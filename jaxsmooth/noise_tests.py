"""Test whether the noise that is drawn has the distribution that its certificates assume.

An adversary who controls the random numbers controls the certificates (Dahiya et al., USENIX Security 2024). The tests
are of noise turned into numbers u, uniform on [0, 1) by its distribution function, with bounds that hold for every
number of samples: Dvoretzky, Kiefer and Wolfowitz's with Massart's constant, and Bernstein's.
"""

import itertools
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike
from numpy.polynomial import legendre

from jaxsmooth._checks import as_first, as_inputs
from jaxsmooth._sampling import Position, as_task, draw_noise
from jaxsmooth.arguments import as_alpha, as_integer, in_brief, refuse_traced
from jaxsmooth.types import Noise

_VALUES = 2**18
_MOST_SAMPLES = 2048
_MOST_FEATURES = 1024
_TAILS = (2.0**-4, 2.0**-8, 2.0**-12)


class NoiseStatistic(NamedTuple):
    """What one test found.

    Attributes:
        name: of the test.
        value: what was measured, 0 or near it for correct noise.
        limit: what it must not exceed.
    """

    name: str
    value: float
    limit: float


class NoiseReport(NamedTuple):
    """What the tests of a noise found.

    Attributes:
        samples: number of samples tested.
        features: in each of them.
        false_alarm: upper bound on the probability that correct noise fails any of the tests.
        statistics: of the tests.
    """

    samples: int
    features: int
    false_alarm: float
    statistics: tuple[NoiseStatistic, ...]

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the tests that the noise failed."""
        return tuple(s.name for s in self.statistics if not s.value <= s.limit)


class _Means(NamedTuple):
    """The largest absolute value of some means of terms in [-1, 1], each of mean 0 and of this variance."""

    name: str
    value: float
    terms: int
    variance: float
    number: int = 1


def noise_report(
    noise: Noise,
    key: jax.Array,
    x: ArrayLike,
    *,
    ids: ArrayLike | None = None,
    n: int | None = None,
    first: int = 0,
    false_alarm: float = 1e-6,
) -> NoiseReport:
    """Test the noise of the samples that votes are counted from.

    The tests are of its distribution (Kolmogorov-Smirnov distance, moments, tails), the mean of each feature and each
    sample, and correlations: between neighbours in a sample and in the stream of samples, between their squares,
    between any two of 2,048 samples (the first ones of each input), and between any two of the first 1,024 features.
    They find a generator that is broken, not one whose seed an adversary knows.

    Args:
        noise: `Gaussian`, `Laplace`, `Uniform`, `LatticeGaussian`, or another with a method `cdf`.
        key, x, ids, first: as for `count_votes`. Of x the shape and the dtype matter.
        n: number of samples for each input; by default enough for 2^18 values, at most 2,048.
        false_alarm: upper bound on the probability that correct noise fails.

    Returns:
        A `NoiseReport`; `failed` names the tests that failed, and is empty if none did.

    Raises:
        ValueError, TypeError: an argument is not as described; x is empty.

    Example:
        >>> from jaxsmooth import Gaussian
        >>> report = noise_report(Gaussian(0.5), jax.random.key(0), np.zeros((1, 3072)))
        >>> report.failed, report.samples
        ((), 85)
        >>> [s.name for s in report.statistics][:3]
        ['distance', 'moment 1', 'moment 2']
    """
    false_alarm = as_alpha(false_alarm, "false_alarm")
    if n is not None:
        n = as_integer("n", n, 1)
    x = as_inputs(x, noise)
    number = len(x)
    features = math.prod(x.shape[1:])
    if number == 0:
        raise ValueError("x must have at least one input, got none")
    samples = max(2, min(_MOST_SAMPLES, _VALUES // (number * features))) if n is None else n
    task = as_task(noise, key, x, ids, as_first(first, samples))
    if not hasattr(noise, "cdf"):
        raise TypeError(f"noise must have a method cdf to be tested, got {in_brief(noise)}")
    refuse_traced("noise_report", task)
    total = number * samples
    values, _, _ = _draw_noise(task, Position(np.int32(0), np.int32(0)), (samples,), total)
    below, upto = task.noise.cdf(np.asarray(values).reshape(total, features))  # pyright: ignore
    # Noise with atoms is spread over them by numbers that do not come from the generator under test.
    u = below + (upto - below) * np.random.default_rng(0).uniform(size=below.shape)
    return _report(u, number, false_alarm)


_draw_noise = partial(jax.jit, static_argnums=(2, 3))(draw_noise)


def _report(u: np.ndarray, number: int, false_alarm: float) -> NoiseReport:
    """Return the report on values `[samples, features]` that should be independent and uniform; `number` inputs."""
    means = [*_marginal(u), *_correlations(2 * u - 1, number)]
    # Each test gets an equal share of the false alarms (Bonferroni).
    share = false_alarm / (len(means) + 1)
    distance = math.sqrt(math.log(2 / share) / (2 * u.size))
    statistics = [NoiseStatistic("distance", _distance(u), distance)]
    statistics += [NoiseStatistic(m.name, m.value, _bernstein(m, share)) for m in means]
    return NoiseReport(u.shape[0], u.shape[1], false_alarm, tuple(statistics))


def _bernstein(means: _Means, probability: float) -> float:
    """Return what one of the means exceeds with at most this probability."""
    log = math.log(2 * means.number / probability) / means.terms
    return log / 3 + math.sqrt(log**2 / 9 + 2 * means.variance * log)


def _distance(u: np.ndarray) -> float:
    """Return the largest distance between the distribution of the numbers and the uniform one."""
    ordered = np.sort(u, axis=None)
    steps = np.arange(ordered.size + 1) / ordered.size
    return float(max(np.max(steps[1:] - ordered), np.max(ordered - steps[:-1])))


def _marginal(u: np.ndarray) -> list[_Means]:
    """Return statistics of single values: moments, tails, and means of features and samples."""
    centred = 2 * u - 1
    means: list[_Means] = []
    for degree in range(1, 5):
        polynomial = legendre.legval(centred, np.eye(degree + 1)[degree])
        means.append(_Means(f"moment {degree}", _largest(polynomial.mean()), u.size, 1 / (2 * degree + 1)))
    for tail in _TAILS:
        beyond = np.mean((u < tail / 2) | (u >= 1 - tail / 2))
        means.append(_Means(f"tail {tail:g}", _largest(beyond - tail), u.size, tail * (1 - tail)))
    for name, axis in (("mean of a feature", 0), ("mean of a sample", 1)):
        means.append(_Means(name, _largest(centred.mean(axis=axis)), u.shape[axis], 1 / 3, u.shape[1 - axis]))
    return means


def _correlations(centred: np.ndarray, number: int) -> list[_Means]:
    """Return means of products of values that should be independent."""
    squares = (3 * centred**2 - 1) / 2
    means = list[_Means]()
    features = centred.shape[1]
    # The generator makes two words at a time, and they are half a sample apart.
    lags = (("features", 1, {1, -(-features // 2)}), ("samples", 0, {1, 2}))
    for (name, axis, distances), (power, values, variance) in itertools.product(
        lags, (("", centred, 1 / 9), (", squared", squares, 1 / 25))
    ):
        for lag in sorted(distances):
            products = _disjoint_products(values, axis, lag)
            if products.size:
                mean = _largest(products.mean())
                means.append(_Means(f"{name} {lag} apart{power}", mean, products.size, variance))
    # The number of pairs grows with the square, so only some samples and features are paired.
    some = centred.reshape(number, -1, features)[:_MOST_SAMPLES, : max(1, _MOST_SAMPLES // number)]
    for name, rows in (("two samples", some.reshape(-1, features)), ("two features", centred[:, :_MOST_FEATURES].T)):
        if len(rows) > 1:
            products = rows @ rows.T / rows.shape[1]
            np.fill_diagonal(products, 0)
            pairs = len(rows) * (len(rows) - 1) // 2
            means.append(_Means(name, _largest(products), rows.shape[1], 1 / 9, pairs))
    return means


def _disjoint_products(values: np.ndarray, axis: int, lag: int) -> np.ndarray:
    """Return products of values a lag apart. Each value is in at most one product, so that they are independent."""
    start = np.arange(values.shape[axis] - lag) if lag < values.shape[axis] else np.arange(0)
    start = start[(start // lag) % 2 == 0]
    return np.take(values, start, axis) * np.take(values, start + lag, axis)


def _largest(values: Any) -> float:
    return float(np.abs(values).max())
