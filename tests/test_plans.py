"""Plans are exact: their error probabilities are computed again, by direct convolution of exact binomials."""

import itertools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy import stats

from jaxsmooth import Gaussian, Laplace, Uniform
from jaxsmooth.plans import edge_probability, expected_votes, make_looks, plan_radii
from tests.benchmarks.sequential_votes import table

CASES = [(1000, 1e-2), (10_000, 1e-3), (100_000, 1e-3), (10_000, 1e-4)]
NOISES = [Gaussian(0.5), Laplace(0.5), Uniform(0.5)]


def false_certificates(looks, bars, p):
    """Probability that a walk of exact binomial steps, whole and untruncated, meets a bar."""
    alive, crossed, previous = np.ones(1), 0.0, 0
    for look, bar in zip(looks, bars, strict=True):
        step = stats.binom.pmf(np.arange(look - previous + 1), look - previous, p)
        alive, previous = np.convolve(alive, step), look
        crossed += alive[bar:].sum()
        alive = alive[:bar]
    return crossed


def exact_false_certificates(looks, bars, p):
    """The same to 60 digits."""
    alive, crossed, previous = [mpmath.mpf(1)], mpmath.mpf(0), 0
    for look, bar in zip(looks.tolist(), bars.tolist(), strict=True):
        size = look - previous
        step = [mpmath.binomial(size, k) * p**k * (1 - p) ** (size - k) for k in range(size + 1)]
        walked = [mpmath.mpf(0)] * (len(alive) + size)
        for i, mass in enumerate(alive):
            for j, share in enumerate(step):
                walked[i + j] += mass * share
        crossed += mpmath.fsum(walked[bar:])
        alive, previous = walked[:bar], look
    return crossed


@pytest.mark.parametrize("unit", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("alpha", [1e-12, 1e-9])
def test_bars_hold_at_the_smallest_levels(alpha, unit):
    with mpmath.workdps(60):
        plan = plan_radii([0.5 * unit], Gaussian(0.5), n=300, alpha=alpha)
        p = mpmath.mpf(float(stats.norm.cdf(unit)))
        error = exact_false_certificates(plan.looks, plan.certify[0], p)
        assert 0.5 * alpha <= error <= alpha
        # The broken twin: one vote less at each look.
        assert exact_false_certificates(plan.looks, plan.certify[0] - 1, p) > alpha


def enough(n, unit):
    """Whether n votes make the lattice of counts fine enough for the bars to use up alpha."""
    return n * stats.norm.sf(unit) >= 30


@pytest.mark.parametrize(("n", "alpha"), CASES)
def test_a_single_radius_is_falsely_certified_with_probability_just_below_alpha(n, alpha):
    units = [unit for unit in (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0) if enough(n, unit)]
    assert len(units) >= 4
    for unit in units:
        plan = plan_radii([0.5 * unit], Gaussian(0.5), n=n, alpha=alpha)
        error = false_certificates(plan.looks, plan.certify[0], stats.norm.cdf(unit))
        assert 0.9 * alpha <= error <= alpha


@pytest.mark.parametrize(("n", "alpha"), [(1000, 1e-2), (10_000, 1e-3)])
def test_a_grid_makes_a_false_claim_with_probability_at_most_alpha_at_every_p(n, alpha):
    grid = np.array([0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5])
    plan = plan_radii(0.5 * grid, Gaussian(0.5), n=n, alpha=alpha)
    assert (np.diff(plan.certify, axis=0) >= 0).all()
    assert (np.diff(plan.give_up, axis=0) <= 0).all()
    edges = stats.norm.cdf(grid)
    for p in (*np.linspace(0.01, 0.93, 47), *edges, *(edges - 1e-3)):
        false = np.flatnonzero(edges >= p)
        if len(false):  # a claim of any false radius meets the bar of the smallest one
            assert false_certificates(plan.looks, plan.certify[false[0]], p) <= alpha * (1 + 1e-9)


def test_give_up_bars_lose_a_radius_on_its_edge_with_probability_beta():
    for beta in (1e-3, 0.05):
        plan = plan_radii([0.5], Gaussian(0.5), n=10_000, beta=beta)
        assert 0.9 * beta <= false_certificates(plan.looks, plan.give_up[0], stats.norm.sf(1.0)) <= beta


def test_mean_votes_are_those_of_a_simulation():
    plan, rng = plan_radii([0.5], Gaussian(0.5), n=3000, alpha=0.01, beta=0.02), np.random.default_rng(0)
    for p in (0.8, 0.86, 0.9):
        steps = rng.binomial(np.diff(plan.looks, prepend=0), p, (20_000, len(plan.looks)))
        hits = steps.cumsum(axis=1)
        done = (hits >= plan.certify[0]) | (plan.looks - hits >= plan.give_up[0])
        done[:, -1] = True
        stop = done.argmax(axis=1)
        votes, power = plan.looks[stop], (hits >= plan.certify[0])[np.arange(len(stop)), stop]
        expected = expected_votes(plan, 0, p)
        # Two means of 20,000 runs each: an alarm at 5 standard errors is false with probability below 1e-6.
        assert abs(votes.mean() - expected[0]) < 5 * votes.std() / np.sqrt(20_000)
        assert abs(power.mean() - expected[1]) < 5 * np.sqrt(0.25 / 20_000)


@pytest.mark.parametrize(("looks", "worst", "mean"), [(None, 1.70, 1.46), ((16, 1.05), 1.50, 1.28)])
def test_votes_are_near_the_information_floor(looks, worst, mean):
    ratios = [row.ratio for row in table(None if looks is None else make_looks(100_000, *looks)) if row.counts]
    assert len(ratios) > 15
    assert max(ratios) <= worst
    assert np.exp(np.mean(np.log(ratios))) <= mean


@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: type(noise).__name__)
def test_the_edge_is_the_smallest_probability_that_reaches_the_radius(noise):
    scale = float(np.nextafter(np.float32(0.5), np.float32(0)))
    for radius in (0.0, 0.1, 0.3, 0.4):
        edge = edge_probability(noise, radius)
        assert scale * noise.unit_radius(edge) >= radius * (1 - 1e-15)
        below = np.nextafter(edge, 0)
        assert below <= 0.5 or scale * noise.unit_radius(below) < radius
    # Drawn with float32(0.1), which is more than 0.1: the smaller scale is the safe one.
    assert edge_probability(Gaussian(0.1), 0.1) >= stats.norm.cdf(1.0)


def test_looks_grow_to_n():
    assert make_looks(1000)[:4] == (64, 80, 100, 125)
    assert make_looks(10) == (10,)
    looks = make_looks(5000, 1, 1.01)
    assert looks[-1] == 5000
    assert all(a < b for a, b in itertools.pairwise(looks))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"radii": []}, ValueError, "radii must be a sequence"),
        ({"radii": [-0.1]}, ValueError, "radii must be a sequence"),
        ({"radii": [0.5, 0.5]}, ValueError, "radii must increase"),
        ({"radii": [np.nan]}, ValueError, "radii must be a sequence"),
        ({"noise": 0.5}, TypeError, "noise must be"),
        ({"n": 0}, ValueError, "n must be an integer"),
        ({"alpha": 0.0}, ValueError, "alpha must be a number"),
        ({"beta": 1.0}, ValueError, "beta must be a number"),
        ({"looks": [64, 64, 100]}, ValueError, "looks must increase up to n"),
        ({"looks": [64, 99]}, ValueError, "looks must increase up to n"),
        ({"looks": []}, ValueError, "looks must increase up to n"),
    ],
)
def test_bad_plans_are_refused_by_name(changes, error, message):
    settings = {"radii": [0.5], "noise": Gaussian(1.0), "n": 100, **changes}
    with pytest.raises(error, match=message):
        plan_radii(settings.pop("radii"), settings.pop("noise"), **settings)


def test_a_traced_scale_is_refused():
    with pytest.raises(TypeError, match="scale of the noise must be a concrete number"):
        jax.jit(lambda sigma: jnp.asarray(plan_radii([0.5], Gaussian(sigma)).certify))(1.0)


@pytest.mark.parametrize("growth", [1.0, np.nan, np.inf])
def test_looks_that_do_not_grow_are_refused(growth):
    with pytest.raises(ValueError, match="growth must be a number above 1"):
        make_looks(100, growth=growth)
