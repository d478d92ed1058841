"""`noise_report` passes noise as it should be and names what is wrong with generators that have a planted fault.

Each report is a false alarm with probability at most 1e-6.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxsmooth import Gaussian, Laplace, LatticeGaussian, Uniform, noise_report

KEY = jax.random.key(5)
IMAGE = np.zeros((1, 3, 16, 16), np.float32)


class Planted(Gaussian):
    """Gaussian noise with a fault."""

    fault = staticmethod(lambda noise, _: noise)

    def sample(self, key, shape, dtype=jnp.float32):
        return type(self).fault(super().sample(key, shape, dtype), key)


def planted(function):
    return type("Planted", (Planted,), {"fault": staticmethod(function)})(0.5)


def neighbours(noise, _):
    return (noise + 0.3 * jnp.roll(noise, 1, axis=-1)) / np.sqrt(1.09, dtype=np.float32)


def halves(noise, _):
    flat = noise.reshape(-1)
    half = flat.size // 2
    return jnp.concatenate([flat[:half], flat[:half]]).reshape(noise.shape)


def loud_samples(noise, key):
    """Each sample has a variance of its own, of mean as it should be."""
    return noise * jnp.where(jax.random.bits(key) % 2 == 0, 0.8, 1.1662).astype(jnp.float32)


def eight_samples(noise, key):
    """A generator of a short period."""
    few = jax.random.fold_in(jax.random.key(0), jax.random.bits(key) % 8)
    return Gaussian(0.5).sample(few, noise.shape)


FAULTS = {
    "mean": (lambda noise, _: noise + 0.01, "moment 1"),
    "scale": (lambda noise, _: noise * 1.02, "moment 2"),
    "skew": (lambda noise, _: jnp.where(noise > 0, noise * 1.05, noise * 0.95), "distance"),
    "tails": (lambda noise, _: jnp.clip(noise, -1.4, 1.4), "tail 0.00390625"),
    "far tails": (lambda noise, _: jnp.clip(noise, -1.8, 1.8), "tail 0.000244141"),
    "kind": (lambda noise, key: Laplace(0.5 / 2**0.5).sample(key, noise.shape), "moment 4"),
    "one feature": (lambda noise, _: noise.at[0, 0, 0].add(0.4), "mean of a feature"),
    "one sign": (lambda noise, key: jnp.abs(noise) * (2 * (jax.random.bits(key) % 2) - 1.0), "mean of a sample"),
    "neighbours": (neighbours, "features 1 apart"),
    "halves": (halves, "features 384 apart"),
    "volume": (loud_samples, "features 1 apart, squared"),
    "period": (eight_samples, "two samples"),
    "copies": (lambda noise, _: noise.at[0, 5, 3].set(noise[0, 1, 9]), "two features"),
}


@pytest.mark.parametrize("x", [IMAGE, np.zeros((5, 7), np.float64), np.zeros((1, 1), np.float16)])
@pytest.mark.parametrize("noise", [Gaussian(0.5), Laplace(2.0), Uniform(1e-3), LatticeGaussian(0.5, 1 / 255)])
def test_noise_as_it_should_be_passes(noise, x):
    report = noise_report(noise, KEY, x)
    assert report.failed == ()
    assert report.features == x[0].size
    assert all(0 <= s.value < s.limit for s in report.statistics)
    assert len({s.name for s in report.statistics}) == len(report.statistics)


def test_a_coarse_lattice_passes():
    """Most of its noise is one of three values."""
    assert noise_report(LatticeGaussian(1.0, 1.0), KEY, IMAGE).failed == ()


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named(name):
    function, test = FAULTS[name]
    assert test in noise_report(planted(function), KEY, IMAGE).failed


def test_samples_that_are_all_the_same_are_found_however_few():
    same = planted(lambda noise, _: Gaussian(0.5).sample(jax.random.key(0), noise.shape))
    assert "two samples" in noise_report(same, KEY, np.zeros((1, 3, 224, 224), np.float32)).failed


def test_many_inputs_take_no_more_memory_than_their_noise():
    """All pairs of their 129,000 samples would be 124 GiB."""
    assert noise_report(Gaussian(0.5), KEY, np.zeros((3000, 2))).failed == ()


def test_inputs_with_the_same_noise_are_found_among_many():
    x = np.zeros((8, 256))
    assert "two samples" in noise_report(Gaussian(0.5), KEY, x, ids=np.zeros(8, int), n=600).failed


def test_limits_are_those_of_the_stated_rate():
    """Over many keys no statistic exceeds the limit of a rate of 1/2 more often than the rate allows."""
    reports = [
        noise_report(Gaussian(0.5), jax.random.key(i), np.zeros((1, 64)), n=64, false_alarm=0.5) for i in range(60)
    ]
    failed = sum(bool(report.failed) for report in reports)
    assert failed <= stats.binom.isf(1e-6, 60, 0.5)
    # And they are not idle: each comes within a factor of its limit.
    closest = np.max([[s.value / s.limit for s in report.statistics] for report in reports], axis=0)
    assert closest.min() > 0.4


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"noise": 0.5}, TypeError, "noise must be an instance"),
        ({"key": 1}, TypeError, "key must be one Threefry key"),
        ({"x": np.zeros((0, 4))}, ValueError, "x must have at least one input"),
        ({"x": np.zeros(4)}, ValueError, "x must be a batch"),
        ({"n": 0}, ValueError, "n must be an integer"),
        ({"false_alarm": 0}, ValueError, "false_alarm must be a number"),
        ({"ids": [1, 2]}, ValueError, "ids must have one entry"),
    ],
)
def test_arguments_are_checked(changes, error, message):
    arguments = {"noise": Gaussian(0.5), "key": KEY, "x": IMAGE, **changes}
    with pytest.raises(error, match=message):
        noise_report(arguments.pop("noise"), arguments.pop("key"), arguments.pop("x"), **arguments)


def test_noise_without_a_distribution_function_is_refused():
    @jax.tree_util.register_static
    class Other:
        norm, scale = 2, 0.5
        sample, unit_radius = Gaussian.sample, Gaussian.unit_radius

    with pytest.raises(TypeError, match="noise must have a method cdf"):
        noise_report(Other(), KEY, IMAGE)
