"""The README's claims that are not about one certificate: data sets, votes, invalid votes, rounding, the facade.

Each has its negative control, a broken variant that the same check catches. Statistical alarms are false with
probability 1e-6.
"""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from torch import nn

import jaxsmooth
from bridges.pytorch import PyTorchRandomizedSmoothing
from jaxsmooth import Gaussian, certified_accuracy, certified_accuracy_bound
from jaxsmooth.bounds import round_down
from tests.classifiers import first_features, half_space, inputs
from tests.guarantees.alarms import ALPHA, SCALE, raises_alarm, trials

KEY = jax.random.key(13)


def test_the_accuracy_that_is_certain_holds_for_the_whole_data_set():
    """60 of 200 inputs are not robust: each of them is certified all the same with probability alpha."""
    repetitions, number, delta, radii = 20_000, 200, 0.01, [0.0, 0.25]
    rng = np.random.default_rng(0)
    exceeded = np.zeros(2, int)
    for false in rng.binomial(60, ALPHA, repetitions):
        certified = np.arange(number) < 140 + false
        columns = np.where(certified, 1, -1), np.where(certified, 0.5, 0.0), np.ones(number, int)
        bound = certified_accuracy_bound(*columns, radii, alpha=ALPHA, delta=delta)
        exceeded += [(bound > 0.7).any(), (certified_accuracy(*columns, radii) > 0.7).any()]
    assert not raises_alarm(exceeded[0], repetitions, delta)
    assert raises_alarm(exceeded[1], repetitions, delta)  # the accuracy itself promises nothing of the kind


def counted(f, x, **changes):
    return np.asarray(jaxsmooth.count_votes(f, Gaussian(1.0), KEY, x, **{"n": 200, **changes}))


def batch_normalised(x):
    return first_features(x - x.mean(axis=0, keepdims=True))


@pytest.mark.parametrize(("f", "same"), [(first_features, True), (batch_normalised, False)])
def test_votes_depend_on_neither_batch_size_nor_order_nor_grouping(f, same):
    """For a function of each row. For one of the batch they do, and `check_classifier` refuses it."""
    x, order = inputs(9), np.random.default_rng(0).permutation(9)
    votes = counted(f, x)
    variants = [
        counted(f, x, batch_size=7),
        counted(f, x[order], ids=order)[np.argsort(order)],
        np.concatenate([counted(f, x[i : i + 1], ids=[i]) for i in range(9)]),
        counted(f, x, n=120) + counted(f, x, n=80, first=120),
    ]
    assert [np.array_equal(votes, variant) for variant in variants] == [same] * len(variants)
    if same:
        jaxsmooth.check_classifier(f, x)
    else:
        with pytest.raises(ValueError, match="depend on the batch"):
            jaxsmooth.check_classifier(f, x)


def test_invalid_votes_only_lower_a_certificate():
    """Scores are NaN where class 0 loses. Left out of n, or taken as argmax takes them, they would raise it."""

    def hides_losses(x):
        return jnp.where(x[:, :1] < 0, jnp.nan, half_space(x))

    number, margin = 4000, 0.1
    arguments = {"n0": 100, "n": 100, "alpha": ALPHA, "batch_size": 4096}
    result = jaxsmooth.certify(hides_losses, Gaussian(SCALE), KEY, trials(number, margin), **arguments)
    whole = jaxsmooth.certify(half_space, Gaussian(SCALE), KEY, trials(number, margin), **arguments)
    chosen = whole.votes.selection.argmax(axis=1) == 0  # the same class in both
    assert chosen.mean() > 0.5
    assert (np.asarray(result.radius)[chosen] <= np.asarray(whole.radius)[chosen]).all()
    assert not raises_alarm((result.radius > margin).sum(), number, ALPHA)
    cast = result.votes.counts.sum(axis=1)
    assert (cast < 100).all()
    by_argmax = np.full(number, 100)  # argmax of a row of NaN is 0
    for taken, n in ((result.votes.counts[:, 0], cast), (by_argmax, np.full(number, 100))):
        broken = SCALE * Gaussian.unit_radius(stats.beta.ppf(ALPHA, taken, n - taken + 1))
        assert raises_alarm((broken > margin).sum(), number, ALPHA)


def test_a_radius_is_never_rounded_up():
    """Against exact arithmetic on float64 bounds. Rounded to nearest, half of the radii lie above."""
    n, sigma = 5000, 0.3
    counts = np.stack([np.arange(2700, n + 1), n - np.arange(2700, n + 1)], axis=1)
    result = jaxsmooth.certificate(jaxsmooth.Votes(selection=counts, counts=counts, n=n), Gaussian(sigma))
    exact = stats.norm.ppf(stats.beta.ppf(1e-3, counts[:, 0], counts[:, 1] + 1))
    scale = Fraction(float(np.float32(sigma)))
    limits = [scale * Fraction(float(unit)) for unit in exact]
    above = [Fraction(float(r)) > limit for r, limit in zip(result.radius, limits, strict=True)]
    assert not any(above)
    nearest = np.float32(sigma) * exact.astype(np.float32)
    assert 0.3 < np.mean([Fraction(float(r)) > limit for r, limit in zip(nearest, limits, strict=True)]) < 0.7
    assert float(np.max(round_down(float(scale) * exact) - np.asarray(result.radius))) < 1e-6


class HalfSpace(nn.Module):
    def forward(self, x):
        return x[:, :1].float() * x.new_tensor([[1.0, -1.0]])


def test_the_class_of_art_s_interface_makes_false_certificates_as_rarely_as_promised():
    """Inputs differ in a feature that decides nothing, since an input's noise depends on the input."""
    number, margin = 4000, 0.1
    x = np.array(trials(number, margin))
    x[:, 1] = np.arange(number)

    def certified(model, scale):
        smoothed = PyTorchRandomizedSmoothing(
            model, nn.CrossEntropyLoss(), (2,), 2, sample_size=100, scale=scale, alpha=ALPHA, seed=1
        )
        return smoothed.certify(x, n=100)[1]

    assert not raises_alarm((certified(HalfSpace(), SCALE) > margin).sum(), number, ALPHA)
    # Noise of half the claimed scale, as if it were added after a normalisation that doubles the inputs.
    half = certified(HalfSpace(), SCALE / 2)
    assert raises_alarm((2 * half > margin).sum(), number, ALPHA)


def test_the_gradient_is_that_of_the_smoothed_classifier():
    """d/dx P(x + noise > 0) at a margin, of hard votes, against the density; one in units of sigma is caught."""
    margin, n = 0.3, 200_000
    truth = stats.norm.pdf(margin, scale=SCALE)

    g = jaxsmooth.smooth(half_space, Gaussian(SCALE), n=n, estimator="score", hard=True, batch_size=8192)
    gradient = float(jax.grad(lambda x: g(KEY, x)[0, 0])(jnp.array([[margin, 0.0]]))[0, 0])
    # One term is 1{z > -margin} z / sigma^2, of standard deviation below 1 / sigma; 5 of them are 6e-7.
    tolerance = 5 / (SCALE * np.sqrt(n))
    assert abs(gradient - truth) < tolerance
    assert abs(gradient * SCALE - truth) > tolerance
