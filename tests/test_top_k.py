"""Top-k certificates: the equation solved independently, exact coverage by enumeration, known classifiers."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

from jaxsmooth import (
    ABSTAIN,
    Anytime,
    Gaussian,
    Laplace,
    LatticeGaussian,
    Votes,
    certificate,
    certify,
    certify_anytime,
    certify_top_k,
    top_k_certificate,
)

SIGMA = 0.5
ALPHA = 0.05


def best_radius(p, others, k):
    """Return the largest radius at scale 1 that these probabilities support, by solving the equation directly."""
    largest = np.sort(others)[::-1][:k][::-1]
    best = 0.0
    for t in range(1, k + 1):
        total = min(largest[:t].sum(), 1 - p)
        if p * t <= total:
            continue
        if total == 0:
            return np.inf

        def gap(r, total=total, t=t):
            return stats.norm.cdf(stats.norm.ppf(p) - r) - stats.norm.cdf(stats.norm.ppf(total) + r) / t

        best = max(best, optimize.brentq(gap, 0.0, 20.0, xtol=1e-13))
    return best


def by_scipy(counts, label, n, k, alpha):
    classes = len(counts)
    level = alpha / classes
    lower = stats.beta.ppf(level, counts[label], n - counts[label] + 1) if counts[label] else 0.0
    upper = [stats.beta.isf(level, c + 1, n - c) if c < n else 1.0 for c in np.delete(counts, label)]
    return SIGMA * best_radius(lower, np.array(upper), k) if lower > 0 else 0.0


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_radii_solve_the_equation_and_are_rounded_down(k):
    rng = np.random.default_rng(k)
    n = 400
    counts = np.array([rng.multinomial(n, p) for p in rng.dirichlet(np.full(5, 0.5), size=60)])
    label = rng.integers(0, 5, len(counts))
    result = top_k_certificate(Votes(counts=counts, n=n), Gaussian(SIGMA), k, labels=label, alpha=ALPHA)
    expected = np.array([by_scipy(*pair, n, k, ALPHA) for pair in zip(counts, label, strict=True)])
    np.testing.assert_array_equal(result.label, np.where(expected > 1e-9, label, ABSTAIN))
    radius = result.radius.astype(np.float64)
    assert (radius <= expected).all()
    np.testing.assert_allclose(radius, expected, rtol=2e-6, atol=1e-7)


def test_with_one_place_it_is_the_runner_up_s_bound_at_its_level():
    rng = np.random.default_rng(0)
    counts = np.array([rng.multinomial(1000, p) for p in rng.dirichlet(np.full(4, 0.5), size=200)])
    votes = Votes(counts=counts, selection=counts, n=1000)
    ours = top_k_certificate(votes, Gaussian(SIGMA), 1, alpha=ALPHA)
    runner_up = certificate(votes, Gaussian(SIGMA), alpha=2 * ALPHA / 4, bound="runner_up")
    np.testing.assert_allclose(ours.radius, runner_up.radius, atol=1e-6)
    np.testing.assert_array_equal(ours.label, runner_up.label)


def outcomes(n, classes):
    """Yield all count vectors of n samples."""
    for bars in itertools.combinations(range(n + classes - 1), classes - 1):
        edges = (-1, *bars, n + classes - 1)
        yield [b - a - 1 for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize(
    ("shares", "k", "n"),
    [
        ((1 / 3, 1 / 3, 1 / 3), 2, 24),
        ((0.4, 0.4, 0.2), 1, 24),
        ((0.3, 0.3, 0.3, 0.1), 2, 16),
        ((0.2, 0.5, 0.2, 0.1), 2, 16),
        ((0.25, 0.25, 0.25, 0.25), 3, 16),
        ((0.3, 0.3, 0.2, 0.1, 0.1), 2, 11),
        ((0.2, 0.2, 0.2, 0.2, 0.2), 4, 11),
    ],
)
def test_false_certificates_are_as_rare_as_claimed(shares, k, n):
    """Every outcome of n samples is decided, and the probabilities of the false ones are added up: no chance is left.

    The twin takes shares of the votes for probabilities of the other classes.
    """
    counts = np.array(list(outcomes(n, len(shares))))
    chance = stats.multinomial.pmf(counts, n, shares)
    assert math.isclose(chance.sum(), 1)
    true = SIGMA * best_radius(shares[0], np.array(shares[1:]), k)
    label = np.zeros(len(counts), int)
    result = top_k_certificate(Votes(counts=counts, n=n), Gaussian(SIGMA), k, labels=label, alpha=ALPHA)
    assert chance[result.radius > true].sum() <= ALPHA
    broken = [SIGMA * best_radius(c[0] / n, c[1:] / n, k) if 0 < c[0] < n else np.inf if c[0] else 0.0 for c in counts]
    assert chance[np.array(broken) > true].sum() > ALPHA


def test_a_class_that_the_votes_choose_is_certified_from_other_votes():
    """Two classes of one probability. If the counted votes choose the class, too many certificates are false."""
    rng = np.random.default_rng(3)
    trials = 20_000
    fresh, counts = rng.multinomial(100, [0.5, 0.5], size=(2, trials))
    noise = Gaussian(SIGMA)
    proper = top_k_certificate(Votes(counts=counts, selection=fresh, n=100), noise, 1, alpha=ALPHA)
    broken = top_k_certificate(Votes(counts=counts, selection=counts, n=100), noise, 1, alpha=2 * ALPHA)
    # Binomial of probability at most alpha: an alarm is false with probability below 1e-6.
    assert (proper.radius > 0).sum() <= stats.binom.isf(1e-6, trials, ALPHA)
    assert (broken.radius > 0).sum() > stats.binom.isf(1e-6, trials, ALPHA)


def bands(x):
    """Four classes side by side along the first feature, with borders at -1, 0 and 1."""
    return -jnp.abs(x[:, :1] - jnp.array([[-1.5, -0.5, 0.5, 1.5]]))


def test_the_radius_is_never_above_that_of_a_known_classifier():
    """At the border of classes 1 and 2 both are among the two most probable; how far that holds can be computed."""
    x = jnp.zeros((200, 2))
    result = certify_top_k(bands, Gaussian(SIGMA), jax.random.key(0), x, 2, labels=[1] * 200, n=5000, alpha=ALPHA)

    def rank(shift):
        edges = np.array([-np.inf, -1, 0, 1, np.inf]) - shift
        p = np.diff(stats.norm.cdf(edges / SIGMA))
        return (np.delete(p, 1) >= p[1]).sum()

    true = next(r for r in np.arange(0, 3, 1e-3) if max(rank(r), rank(-r)) >= 2)
    assert (result.label == 1).all()
    assert (result.radius > 0.3).all()
    assert (result.radius <= true).all()
    top = certify_top_k(bands, Gaussian(SIGMA), jax.random.key(0), x[:5], 1, n=5000)
    assert (top.label == ABSTAIN).all()


def test_from_stored_votes_and_with_either_loop_it_is_the_same():
    x = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    arguments = (bands, Gaussian(SIGMA), jax.random.key(5), x)
    votes = certify(*arguments, n=700).votes
    stored = top_k_certificate(votes, Gaussian(SIGMA), 2)
    for compiled in (True, False):
        again = certify_top_k(*arguments, 2, n=700, compiled=compiled)
        np.testing.assert_array_equal(stored.radius, again.radius)
        np.testing.assert_array_equal(stored.label, again.label)
    radii = [top_k_certificate(votes, Gaussian(SIGMA), k).radius for k in (1, 2, 3)]
    assert (radii[0] <= radii[1]).all()
    assert (radii[1] <= radii[2]).all()


def test_invalid_samples_vote_for_no_class_and_take_no_place():
    valid = Votes(counts=np.array([[300, 40, 20, 10]]), n=370)
    lost = Votes(counts=np.array([[300, 40, 20, 10]]), n=1000)
    noise = Gaussian(SIGMA)
    radii = [top_k_certificate(votes, noise, 2, labels=[0], alpha=ALPHA).radius[0] for votes in (valid, lost)]
    assert 0 < radii[1] < radii[0]
    none = top_k_certificate(Votes(counts=np.zeros((1, 3), int), n=1000), noise, 2, labels=[0])
    assert none.label[0] == ABSTAIN


def test_components_share_alpha():
    counts = np.array([[[80, 15, 5], [30, 40, 30]]])
    noise = Gaussian(SIGMA)
    both = top_k_certificate(Votes(counts=counts, n=100), noise, 2, labels=[[0, 1]], alpha=ALPHA)
    single = top_k_certificate(Votes(counts=counts[0], n=100), noise, 2, labels=[0, 1], alpha=ALPHA / 2)
    np.testing.assert_array_equal(both.radius[0], single.radius)


def test_extreme_counts_have_finite_radii():
    n = 100_000
    counts = np.array([[n, 0, 0], [0, n, 0], [n // 2, n // 2, 0], [1, n - 1, 0]])
    for k in (1, 2):
        result = top_k_certificate(Votes(counts=counts, n=n), Gaussian(SIGMA), k, labels=[0] * 4)
        assert np.isfinite(result.radius).all()
        assert result.radius[0] > 1
        assert result.label[1] == ABSTAIN


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"k": 4}, ValueError, "k must be below the number of classes, which is 4"),
        ({"k": 0}, ValueError, "k must"),
        ({"k": 1.5}, TypeError, "k must"),
        ({"labels": [0.0]}, TypeError, "labels must hold integers"),
        ({"labels": [4]}, ValueError, r"labels must lie in \[0, 4\)"),
        ({"labels": [-1]}, ValueError, r"labels must lie in \[0, 4\)"),
        ({"labels": [0, 1]}, ValueError, "labels must have one class for each of the 1 inputs"),
        ({"labels": [[0]]}, ValueError, r"labels must have the shape \(1,\)"),
        ({"noise": Laplace(0.5)}, TypeError, "noise must be Gaussian"),
        ({"noise": LatticeGaussian(0.5, 0.125)}, TypeError, "noise must be Gaussian"),
        ({"alpha": 0.7}, ValueError, "alpha"),
    ],
)
def test_what_is_not_as_described_is_refused_before_any_vote(change, error, match):
    def never(x):
        assert isinstance(x, jax.core.Tracer), "f was called"
        return bands(x)

    arguments = {"noise": Gaussian(SIGMA), "k": 2, "labels": None, "alpha": ALPHA, **change}
    noise, k = arguments.pop("noise"), arguments.pop("k")
    with pytest.raises(error, match=match):
        certify_top_k(never, noise, jax.random.key(0), np.zeros((1, 2), np.float32), k, n=100, **arguments)
    votes = Votes(counts=np.ones((1, 4), int), selection=np.ones((1, 4), int), n=10)
    with pytest.raises(error, match=match):
        top_k_certificate(votes, noise, k, **arguments)


def test_votes_that_do_not_support_it_are_refused():
    counts = np.ones((1, 4), int)
    with pytest.raises(ValueError, match="selection votes, or labels"):
        top_k_certificate(Votes(counts=counts, n=10), Gaussian(SIGMA), 2)
    looks = certify_anytime(bands, Gaussian(SIGMA), jax.random.key(0), np.zeros((1, 2), np.float32))
    stopped = next(looks).votes
    assert stopped.rule == Anytime.rule
    with pytest.raises(ValueError, match="rule 'fixed'"):
        top_k_certificate(stopped, Gaussian(SIGMA), 2)
    with pytest.raises(TypeError, match="runs on the host"):
        jax.jit(lambda x: certify_top_k(bands, Gaussian(SIGMA), jax.random.key(0), x, 2, n=10).radius)(
            jnp.zeros((1, 2))
        )
