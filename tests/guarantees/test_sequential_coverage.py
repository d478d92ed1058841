"""Certificates that stop early are false with probability at most alpha, whenever they are looked at.

Half spaces, whose true radius is known. An alarm is false with probability 1e-6; looking again and again at votes by
the rule of fixed n must raise it.
"""

import itertools

import jax
import numpy as np
import pytest
from scipy import stats

from jaxsmooth import Gaussian, Votes, anytime_lower_bound, certificate, certify_anytime, certify_radii, certify_within
from jaxsmooth.plans import make_looks, plan_radii
from tests.classifiers import half_space
from tests.guarantees.alarms import ALPHA, SCALE, raises_alarm, trials

KEY = jax.random.key(11)
GRID = (0.0, 0.2, 0.4)


def walks(number, looks, p, seed=0):
    """Votes for a class of probability p at each look, `[number, looks]`."""
    steps = np.random.default_rng(seed).binomial(np.diff(looks, prepend=0), p, (number, len(looks)))
    return steps.cumsum(axis=1)


def of_fixed_n(hits, n):
    """The Clopper-Pearson bound, which holds for one n."""
    return np.where(hits > 0, stats.beta.ppf(ALPHA, np.maximum(hits, 1), n - hits + 1), 0)


@pytest.mark.parametrize("margin", [0.0, 0.2 - 1e-6, 0.4 - 1e-6])
def test_a_grid_is_falsely_certified_as_rarely_as_promised(margin):
    number = 3000
    result = certify_radii(
        half_space, Gaussian(SCALE), KEY, trials(number, margin), GRID, n=1000, alpha=ALPHA, batch_size=4096
    )
    claims = result.label != -1
    false = claims & ((result.radius > margin) | ((result.label != 0) if margin else claims))
    assert int(false.sum()) > 0
    assert not raises_alarm(false.sum(), number, ALPHA)


@pytest.mark.parametrize("radius", GRID)
def test_the_alarm_catches_bars_of_fixed_n_at_every_look(radius):
    number, looks = 20_000, make_looks(1000)
    plan = plan_radii(GRID, Gaussian(SCALE), n=1000, alpha=ALPHA)
    p = stats.norm.cdf(radius / SCALE)
    hits = walks(number, looks, p)
    by_plan = (hits >= plan.certify[GRID.index(radius)]).any(axis=1)
    assert not raises_alarm(by_plan.sum(), number, ALPHA)
    peeking = (of_fixed_n(hits, np.array(looks)) > p).any(axis=1)
    assert raises_alarm(peeking.sum(), number, ALPHA)


def test_precision_makes_false_certificates_as_rarely_as_promised():
    number = 3000
    result = certify_within(
        half_space, Gaussian(SCALE), KEY, trials(number, 0.0), n0=100, n=500, alpha=ALPHA, batch_size=4096
    )
    assert not raises_alarm((result.label != -1).sum(), number, ALPHA)
    # The pilot's own votes as the evidence.
    pilot = result.votes.selection
    broken = certificate(Votes(selection=pilot, counts=pilot, n=100), Gaussian(SCALE), alpha=ALPHA)
    assert raises_alarm((broken.label != -1).sum(), number, ALPHA)


def test_certificates_at_all_times_are_false_as_rarely_as_promised():
    number, looks = 3000, 12
    results = certify_anytime(
        half_space, Gaussian(SCALE), KEY, trials(number, 0.0), votes=50, alpha=ALPHA, batch_size=4096
    )
    ever = np.zeros(number, bool)
    for result in itertools.islice(results, looks):
        ever |= np.asarray(result.label) != -1
    assert not raises_alarm(ever.sum(), number, ALPHA)


def test_the_alarm_catches_the_bound_of_fixed_n_at_all_times():
    number, looks = 3000, np.arange(20, 1001, 20)
    hits = walks(number, looks, 0.5)
    at_all_times = (anytime_lower_bound(hits, looks, ALPHA) > 0.5).any(axis=1)
    assert not raises_alarm(at_all_times.sum(), number, ALPHA)
    peeking = (of_fixed_n(hits, looks) > 0.5).any(axis=1)
    assert raises_alarm(peeking.sum(), number, ALPHA)
