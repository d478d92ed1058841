"""A certificate exceeds the true radius with probability at most alpha: half spaces, whose true radius is known.

Each input is an independent trial. The number of false certificates is compared with the binomial distribution of the
stated rate: an alarm is false with probability 1e-6. Two broken rules must raise it.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxsmooth import Gaussian, Laplace, Uniform, certificate, certify, predict
from tests.classifiers import half_space
from tests.guarantees.alarms import ALPHA, FALSE_ALARM, SCALE, raises_alarm, trials

TRIALS = 20_000
N = 100
TIE = 0.0  # where the outer classes of `three_parts` are equally probable
NOISES = {
    "gaussian": (Gaussian(SCALE), stats.norm(scale=SCALE)),
    "laplace": (Laplace(SCALE), stats.laplace(scale=SCALE)),
    "uniform": (Uniform(SCALE), stats.uniform(-SCALE, 2 * SCALE)),
}


def certified(noise, margin):
    return certify(
        half_space, noise, jax.random.key(7), trials(TRIALS, margin), n0=N, n=N, alpha=ALPHA, batch_size=4096
    )


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("margin", [0.0, 0.1, 0.3])
def test_false_certificates_are_as_rare_as_promised(name, margin):
    noise, distribution = NOISES[name]
    result = certified(noise, margin)
    false = (result.radius > margin) | ((result.label != -1) & (margin == 0))
    assert not raises_alarm(false.sum(), TRIALS, ALPHA)
    # The exact rate: the probability of a count whose bound lies above the truth. Both sides, so that it is not idle.
    p = distribution.cdf(margin)
    k = np.arange(N + 1)
    bound = np.where(k == 0, 0, stats.beta.ppf(ALPHA, np.maximum(k, 1), N - k + 1))
    exact = stats.binom.pmf(k, N, p)[(bound > p) & (bound > 0.5)].sum()
    assert exact <= ALPHA
    assert stats.binomtest(int(false.sum()), TRIALS, exact).pvalue > FALSE_ALARM


def test_the_alarm_catches_a_bound_from_the_selection_votes():
    result = certified(Gaussian(SCALE), 0.0)
    broken = certificate(replace(result.votes, selection=result.votes.counts), Gaussian(SCALE), alpha=ALPHA)
    assert raises_alarm((broken.label != -1).sum(), TRIALS, ALPHA)


@pytest.mark.parametrize("name", NOISES)
def test_the_alarm_catches_a_bound_without_confidence_correction(name):
    noise, _ = NOISES[name]
    result = certified(noise, 0.3)
    broken = SCALE * noise.unit_radius(result.votes.counts[:, 0] / N)
    assert raises_alarm((broken > 0.3).sum(), TRIALS, ALPHA)


def three_parts(x):
    """Class 0 left of -0.1, class 2 right of 0.1, class 1 between: at 0.1 the true radius is 0, for classes 1 and 2."""
    return jnp.stack([-0.1 - x[:, 0], 0.1 - jnp.abs(x[:, 0]), x[:, 0] - 0.1], axis=1)


def test_false_certificates_by_the_runner_up_are_as_rare_as_promised():
    """At the point where two classes have one probability, both bounds are at stake."""
    noise = Gaussian(SCALE)
    p = np.diff(stats.norm.cdf(np.array([-np.inf, -0.1, 0.1, np.inf]), loc=TIE, scale=SCALE))
    assert abs(p[2] - p[0]) < 1e-9
    result = certify(
        three_parts, noise, jax.random.key(7), trials(TRIALS, TIE), n0=N, n=N, alpha=ALPHA, batch_size=4096
    )
    proper = certificate(result.votes, noise, alpha=ALPHA, bound="runner_up")
    assert not raises_alarm((proper.label != -1).sum(), TRIALS, ALPHA)
    # Without a bound on the runner-up: two point estimates.
    counts, label = result.votes.counts, result.votes.selection.argmax(axis=1)
    own = counts[np.arange(TRIALS), label]
    broken = own > np.where(label == 0, counts[:, 2], counts[:, 0])
    assert raises_alarm(broken.sum(), TRIALS, ALPHA)


def test_wrong_predictions_are_as_rare_as_promised():
    """At a margin where both classes win often, and on the boundary, where every prediction is wrong."""
    for margin in (0.0, 0.02):
        result = predict(
            half_space, Gaussian(SCALE), jax.random.key(8), trials(TRIALS, margin), n=N, alpha=ALPHA, batch_size=4096
        )
        wrong = (result.label == 1) | ((result.label == 0) & (margin == 0))
        assert not raises_alarm(wrong.sum(), TRIALS, ALPHA)
        majority = result.votes.counts.argmax(axis=1)
        assert raises_alarm((majority == 1).sum(), TRIALS, ALPHA)
