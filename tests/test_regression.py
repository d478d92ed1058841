"""Intervals of percentile smoothing: linear models are the oracle, ties and invalid outputs, ranks by SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy import stats

from jaxsmooth import (
    AtMost,
    Gaussian,
    Laplace,
    RandomClassifier,
    Votes,
    certify,
    certify_regression,
    count_votes,
    interval_ranks,
    key_of_seed,
    regression_interval,
    stream_votes,
)

KEY = key_of_seed(0)
SIGMA = 0.5
NOISE = Gaussian(SIGMA)
ALPHA = 0.05
WEIGHTS = np.array([1.0, -2.0, 0.5], np.float32)
LENGTH = float(np.linalg.norm(WEIGHTS))


def linear(x):
    return (x * jnp.asarray(WEIGHTS)[None]).sum(axis=1)


@pytest.mark.parametrize("percentile", [0.5, 0.2])
def test_intervals_of_linear_models_miss_the_worst_perturbation_as_rarely_as_claimed(percentile):
    """The percentile moves by radius * |w| at most, and does so along w. The twin takes percentiles of the samples."""
    number, n, radius = 2000, 200, 0.3
    x = np.random.default_rng(0).normal(size=(number, 3)).astype(np.float32)
    result = certify_regression(linear, NOISE, KEY, x, radius, percentile=percentile, n=n, alpha=ALPHA, batch_size=4096)
    centre = x @ WEIGHTS + SIGMA * LENGTH * stats.norm.ppf(percentile)
    low, high = centre - radius * LENGTH, centre + radius * LENGTH
    missed = (result.lower > low) | (result.upper < high)
    # Binomial of probability at most alpha: an alarm is false with probability below 1e-6.
    most = stats.binom.isf(1e-6, number, ALPHA)
    assert missed.sum() <= most
    assert missed.sum() > 0
    assert np.isfinite(result.lower).all()
    assert (result.upper - result.lower).mean() < 3 * 2 * radius * LENGTH
    assert (result.lower <= result.estimate).all()
    assert (result.estimate <= result.upper).all()
    np.testing.assert_allclose(result.estimate.mean(), centre.mean(), atol=0.05)
    # The shares of the two percentiles at x, without a bound on what samples say of them.
    z = stats.norm.ppf(percentile)
    samples = centre[:, None] + SIGMA * LENGTH * (np.random.default_rng(1).normal(size=(number, n)) - z)
    ends = [np.quantile(samples, stats.norm.cdf(z + side * radius / SIGMA), axis=1) for side in (-1, 1)]
    assert ((ends[0] > low) | (ends[1] < high)).sum() > most


@pytest.mark.parametrize("n", [1, 10, 137, 1000, 100_000])
@pytest.mark.parametrize(("percentile", "shift", "alpha"), [(0.5, 0.0, 0.001), (0.5, 0.7, 0.05), (0.1, 1.5, 0.01)])
def test_ranks_are_those_of_the_binomial_distribution(n, percentile, shift, alpha):
    low, high = interval_ranks(n, percentile, shift, alpha)
    z = stats.norm.ppf(percentile)
    ranks = np.arange(1, n + 1)
    at_least = stats.binom.sf(ranks - 1, n, stats.norm.cdf(z - shift)) >= 1 - alpha / 2
    at_most = stats.binom.cdf(ranks - 1, n, stats.norm.cdf(z + shift)) >= 1 - alpha / 2
    assert low == (ranks[at_least].max() if at_least.any() else 0)
    assert high == (ranks[at_most].min() if at_most.any() else n + 1)


def test_too_few_samples_leave_the_ends_open():
    result = certify_regression(linear, NOISE, KEY, np.zeros((2, 3), np.float32), 2.0, n=20)
    assert (result.lower == -np.inf).all()
    assert (result.upper == np.inf).all()
    assert np.isfinite(result.estimate).all()


def test_several_outputs_hold_together_and_each_at_its_share():
    def two(x):
        return jnp.stack([linear(x), -3 * linear(x)], axis=1)

    x = np.ones((2, 3), np.float32)
    both = certify_regression(two, NOISE, KEY, x, 0.1, n=500, alpha=0.02)
    first = certify_regression(linear, NOISE, KEY, x, 0.1, n=500, alpha=0.01)
    assert both.lower.shape == (2, 2)
    np.testing.assert_allclose(both.lower[:, 0], first.lower, rtol=1e-6)
    np.testing.assert_allclose(both.lower[:, 1], -3 * first.upper, rtol=1e-6)


def test_outputs_with_ties_and_jumps():
    """A step has two values. Far from its border both ends are the same; near it they are the two values."""

    def step(x):
        return jnp.where(x[:, 0] > 0, 5.0, 2.0)

    x = np.array([[3.0, 0.0], [0.1, 0.0], [-3.0, 0.0]], np.float32)
    result = certify_regression(step, NOISE, KEY, x, 0.5, n=1000)
    np.testing.assert_array_equal(result.lower, [5, 2, 2])
    np.testing.assert_array_equal(result.upper, [5, 5, 2])
    constant = certify_regression(lambda x: 0 * x[:, 0] + 7, NOISE, KEY, x, 0.5, n=1000)
    assert (constant.lower == 7).all()
    assert (constant.upper == 7).all()


def test_invalid_outputs_make_the_interval_wider_at_both_ends():
    def broken(x):
        return jnp.where(x[:, 1] > 0.6, jnp.nan, x[:, 0])

    x = np.zeros((1, 2), np.float32)
    valid = certify_regression(lambda x: x[:, 0], NOISE, KEY, x, 0.2, n=2000)
    found = certify_regression(broken, NOISE, KEY, x, 0.2, n=2000)
    assert found.lower[0] < valid.lower[0]
    assert found.upper[0] > valid.upper[0]
    nothing = certify_regression(lambda x: x[:, 0] * jnp.nan, NOISE, KEY, x, 0.2, n=2000)
    assert (nothing.lower[0], nothing.upper[0]) == (-np.inf, np.inf)


def test_no_batch_size_or_loop_or_order_changes_it():
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    expected = certify_regression(linear, NOISE, KEY, x, 0.2, n=100, batch_size=64)
    for settings in ({"batch_size": 7}, {"batch_size": 1000}, {"compiled": False}):
        found = certify_regression(linear, NOISE, KEY, x, 0.2, n=100, **settings)
        np.testing.assert_allclose(found.lower, expected.lower, rtol=1e-5, atol=1e-6)
    found = certify_regression(linear, NOISE, KEY, x[::-1], 0.2, n=100, ids=[4, 3, 2, 1, 0])
    np.testing.assert_allclose(found.upper[::-1], expected.upper, rtol=1e-5, atol=1e-6)
    traced = Partial(lambda w, x: (x * w[None]).sum(axis=1), jnp.asarray(WEIGHTS))
    np.testing.assert_allclose(certify_regression(traced, NOISE, KEY, x, 0.2, n=100).lower, expected.lower, rtol=1e-5)


def test_wide_outputs_are_not_rounded():
    def fine(x):
        return 1.0 + 1e-12 * np.asarray(x, np.float64)[:, 0]

    result = certify_regression(fine, NOISE, KEY, np.zeros((1, 1), np.float32), 0.1, n=1000, compiled=False)
    assert result.lower.dtype == np.float64
    assert result.lower[0] < 1 < result.upper[0]

    def whole(x):
        return jnp.int32(2**24 + 1) + 0 * x[:, 0].astype(int)

    result = certify_regression(whole, NOISE, KEY, np.zeros((1, 1), np.float32), 0.1, n=50)
    assert result.estimate[0] == 2**24 + 1


def test_no_inputs():
    result = certify_regression(linear, NOISE, KEY, np.zeros((0, 3), np.float32), 0.1, n=50)
    assert result.lower.shape == (0,)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"radius": -0.1}, ValueError, "radius"),
        ({"radius": float("nan")}, ValueError, "radius"),
        ({"percentile": 1.0}, ValueError, "percentile must"),
        ({"percentile": [0.5]}, ValueError, "percentile must"),
        ({"n": 0}, ValueError, "n must"),
        ({"alpha": 0.6}, ValueError, "alpha"),
        ({"noise": Laplace(0.5)}, TypeError, "noise must be Gaussian"),
        ({"f": RandomClassifier(lambda x, _: x)}, TypeError, "f must be a function of the inputs"),
        ({"f": 3}, TypeError, "f must be a callable"),
        ({"x": np.zeros((1, 3), int)}, TypeError, "x must be"),
    ],
)
def test_what_is_not_as_described_is_refused(change, error, match):
    good = {"f": linear, "noise": NOISE, "x": np.zeros((1, 3), np.float32), "radius": 0.1, "n": 50}
    arguments = {**good, **change}
    places = [arguments.pop(name) for name in ("f", "noise", "x", "radius")]
    with pytest.raises(error, match=match):
        certify_regression(places[0], places[1], KEY, *places[2:], **arguments)


@pytest.mark.parametrize("wrong", [lambda x: x.sum(), lambda x: x[:2, 0], lambda x: x[:, 0] > 0, lambda x: x[:, :0]])
def test_what_is_no_output_is_refused(wrong):
    with pytest.raises((ValueError, TypeError), match="f must return real outputs"):
        certify_regression(wrong, NOISE, KEY, np.zeros((1, 3), np.float32), 0.1, n=50)
    with pytest.raises(TypeError, match="no traced values"):
        jax.jit(lambda x: certify_regression(linear, NOISE, KEY, x, 0.1, n=50).lower)(jnp.zeros((1, 3)))


THRESHOLDS = np.linspace(-4.0, 4.0, 161)


def test_counts_of_outputs_at_most_t_give_the_interval_to_a_step():
    x = np.random.default_rng(3).normal(size=(20, 3)).astype(np.float32)
    exact = certify_regression(linear, NOISE, KEY, x, 0.2, n=1000, alpha=ALPHA)
    # The same samples: those of the stream of estimation votes.
    votes = certify(AtMost(linear, THRESHOLDS), NOISE, KEY, x, n=1000).votes
    found = regression_interval(votes, THRESHOLDS, NOISE, 0.2, alpha=ALPHA)
    inside = (exact.lower > -4) & (exact.upper < 4)
    assert inside.sum() > 10
    for below, above in ((found.lower, exact.lower), (exact.upper, found.upper), (exact.estimate, found.estimate)):
        assert (below <= above).all()
        assert (above - below)[inside].max() < 0.05 + 1e-6
    assert (found.lower[exact.lower < -4] == -np.inf).all()
    assert (found.upper[exact.upper > 4] == np.inf).all()


def test_counts_give_the_same_interval_in_compiled_code():
    x = np.random.default_rng(3).normal(size=(5, 3)).astype(np.float32)
    f = AtMost(linear, THRESHOLDS)

    def interval(key, x):
        votes = Votes(counts=count_votes(f, NOISE, key, x, n=500), n=500)
        return regression_interval(votes, THRESHOLDS, NOISE, 0.2)

    inside = jax.jit(interval)(KEY, x)
    assert isinstance(inside.lower, jax.Array)
    jax.tree.map(np.testing.assert_array_equal, inside, interval(KEY, x))
    each = jax.vmap(lambda x: interval(KEY, x[None]))(jnp.asarray(x))
    np.testing.assert_array_equal(each.lower[0], inside.lower[:1])


def test_counts_of_linear_models_miss_the_worst_perturbation_as_rarely_as_claimed():
    number, n, radius = 2000, 200, 0.3
    x = np.random.default_rng(0).normal(size=(number, 3)).astype(np.float32)
    f = AtMost(linear, np.linspace(-12.0, 12.0, 481))
    votes = Votes(counts=count_votes(f, NOISE, KEY, x, n=n, batch_size=4096), n=n)
    result = regression_interval(votes, f.thresholds, NOISE, radius, alpha=ALPHA)
    centre = x @ WEIGHTS
    missed = (result.lower > centre - radius * LENGTH) | (result.upper < centre + radius * LENGTH)
    most = stats.binom.isf(1e-6, number, ALPHA)
    assert missed.sum() <= most
    # Twin: the interval of a smaller radius.
    smaller = regression_interval(votes, f.thresholds, NOISE, 0.15, alpha=ALPHA)
    assert ((smaller.lower > centre - radius * LENGTH) | (smaller.upper < centre + radius * LENGTH)).sum() > most


def test_invalid_outputs_widen_the_interval_of_counts_as_that_of_samples():
    def sometimes(x):
        return jnp.where(x[:, 0] > 1.0, jnp.nan, linear(x))

    x = np.zeros((4, 3), np.float32)
    exact = certify_regression(sometimes, NOISE, KEY, x, 0.05, n=2000)
    valid = certify_regression(linear, NOISE, KEY, x, 0.05, n=2000)
    votes = certify(AtMost(sometimes, THRESHOLDS), NOISE, KEY, x, n=2000).votes
    found = regression_interval(votes, THRESHOLDS, NOISE, 0.05)
    assert (found.lower <= exact.lower).all()
    assert (found.upper >= exact.upper).all()
    assert ((exact.upper - exact.lower) > (valid.upper - valid.lower)).all()
    assert np.isfinite(found.lower).all()
    never = certify(AtMost(lambda x: x[:, 0] * jnp.nan, THRESHOLDS), NOISE, KEY, x, n=2000).votes
    widest = regression_interval(never, THRESHOLDS, NOISE, 0.05)
    np.testing.assert_array_equal(widest.lower, -np.inf)
    np.testing.assert_array_equal(widest.upper, np.inf)


def test_several_outputs_are_counted_each_at_its_share():
    def two(x):
        return jnp.stack([linear(x), -linear(x)], axis=1)

    x = np.ones((2, 3), np.float32)
    votes = certify(AtMost(two, THRESHOLDS), NOISE, KEY, x, n=500).votes
    both = regression_interval(votes, THRESHOLDS, NOISE, 0.1, alpha=0.02)
    first = Votes(counts=votes.counts[:, 0], n=500)
    alone = regression_interval(first, THRESHOLDS, NOISE, 0.1, alpha=0.01)
    assert both.lower.shape == (2, 2)
    np.testing.assert_array_equal(both.lower[:, 0], alone.lower)
    np.testing.assert_array_equal(both.upper[:, 0], alone.upper)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"thresholds": [0.0, 0.0]}, ValueError, "thresholds"),
        ({"thresholds": [1.0, 0.0]}, ValueError, "thresholds"),
        ({"thresholds": [0.0, np.inf]}, ValueError, "thresholds"),
        ({"thresholds": [1.0, 1.0 + 1e-12]}, ValueError, "thresholds"),
        ({"thresholds": [0.0, 1.0, 2.0]}, ValueError, "with 3 thresholds"),
        ({"noise": Laplace(0.5)}, TypeError, "Gaussian"),
        ({"votes": Votes(counts=np.zeros((2, 2, 2), int), n=9, rule="grid")}, ValueError, "rule"),
        ({"votes": Votes(counts=np.zeros((2, 2), int), n=9)}, ValueError, "AtMost"),
        ({"votes": Votes(counts=np.zeros((2, 2, 2), int), n=np.full(2, 9))}, TypeError, "static int"),
        ({"radius": -1.0}, ValueError, "radius"),
        ({"percentile": 1.0}, ValueError, "percentile"),
        ({"alpha": 0.7}, ValueError, "alpha"),
    ],
)
def test_bad_counts_are_refused_by_name(changes, error, message):
    votes = Votes(counts=np.zeros((2, 2, 2), int), n=9)
    given = {"votes": votes, "thresholds": [0.0, 1.0], "noise": NOISE, "radius": 0.1} | changes
    with pytest.raises(error, match=message):
        regression_interval(**given)


def test_outputs_that_are_no_floats_are_refused():
    with pytest.raises(TypeError, match="floating"):
        count_votes(AtMost(lambda x: x[:, 0].astype(jnp.int32), [0.0]), NOISE, KEY, np.zeros((1, 3), np.float32), n=4)


def test_thresholds_are_checked_when_they_are_given():
    for thresholds in ([3.0, 1.0], [1.0, 1.0], np.array(1.0), [0.0, np.inf], [[0.0, 1.0]], jnp.array([1.0, np.nan])):
        with pytest.raises(ValueError, match="thresholds"):
            AtMost(linear, thresholds)
    thresholds = jnp.array([0.0, 1.0])
    traced = jax.jit(lambda t, x: AtMost(linear, t)(x))(thresholds, jnp.ones((2, 3)))
    np.testing.assert_array_equal(traced, AtMost(linear, thresholds)(jnp.ones((2, 3))))


def test_outputs_wider_than_float32_are_compared_as_they_are():
    just_above = 0.10000000149011612 + 1e-15  # float32 has the number before the sum, and none between

    def f(x):
        return np.full(len(x), just_above)

    counts = stream_votes(AtMost(f, [0.0, just_above - 1e-15, 0.2]), NOISE, KEY, np.zeros((1, 3)), n=10)
    np.testing.assert_array_equal(counts[0, :, 0], [0, 0, 10])


def test_outputs_that_no_float_holds_or_whose_dtype_changes_are_refused():
    x = np.zeros((1, 3), np.float32)
    with pytest.raises(ValueError, match=r"below 2\^53"):
        certify_regression(lambda x: np.full(len(x), 2**53 + 1), NOISE, KEY, x, 0.1, n=4, compiled=False)
    dtypes = iter([np.float32, np.float64, np.float64])
    with pytest.raises(ValueError, match="one shape and dtype"):
        certify_regression(
            lambda x: np.ones(len(x), next(dtypes)), NOISE, KEY, x, 0.1, n=8, batch_size=4, compiled=False
        )


def test_many_outputs_share_alpha_without_an_error():
    x = np.zeros((1, 3), np.float32)
    found = certify_regression(lambda x: jnp.zeros((len(x), 2000)), NOISE, KEY, x, 0.0, n=20, alpha=1e-10)
    assert (found.lower == -np.inf).all()


def test_the_estimate_is_the_same_from_samples_and_from_counts():
    def sometimes(x):
        return jnp.where(x[:, 0] > 0.2, jnp.nan, linear(x))

    x = np.zeros((1, 3), np.float32)
    for percentile in (0.07, 0.5):
        exact = certify_regression(sometimes, NOISE, KEY, x, 0.0, n=100, percentile=percentile)
        votes = certify(AtMost(sometimes, THRESHOLDS), NOISE, KEY, x, n=100).votes
        found = regression_interval(votes, THRESHOLDS, NOISE, 0.0, percentile=percentile)
        assert 0 <= found.estimate[0] - exact.estimate[0] < 0.05 + 1e-6 or exact.estimate[0] == -np.inf
        assert (exact.estimate[0] == -np.inf) == (found.estimate[0] <= THRESHOLDS[0])


def test_compiled_code_is_told_what_to_do_instead():
    with pytest.raises(TypeError, match=r"under jax\.jit count votes of AtMost"):
        jax.jit(lambda x: certify_regression(linear, NOISE, KEY, x, 0.1))(np.zeros((1, 3), np.float32))
