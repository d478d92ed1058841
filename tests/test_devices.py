"""A classifier over several devices: the counts of one device, and work that is shared."""

import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import jaxsmooth
from jaxsmooth import Gaussian, over_devices
from tests.classifiers import assert_same, first_features, inputs, scaled_features

KEY, NOISE = jax.random.key(0), Gaussian(1.0)


@pytest.mark.parametrize("f", [first_features, Partial(scaled_features, jnp.array([1.0, 2.0, 0.5]))])
def test_counts_are_those_of_one_device(f):
    x, spread = inputs(5), over_devices(f)
    for n, batch_size in ((300, 256), (1, 64), (7, 9)):
        expected = jaxsmooth.count_votes(f, NOISE, KEY, x, n=n)
        assert_same(jaxsmooth.count_votes(spread, NOISE, KEY, x, n=n, batch_size=batch_size), expected)
        assert_same(jaxsmooth.stream_votes(spread, NOISE, KEY, x, n=n, batch_size=batch_size), expected)
    expected = jaxsmooth.certify_radii(f, NOISE, KEY, x, [0.1, 0.5], n=1000)
    result = jaxsmooth.certify_radii(spread, NOISE, KEY, x, [0.1, 0.5], n=1000, batch_size=1024)
    assert_same((result.radius, result.votes.n), (expected.radius, expected.votes.n))


def test_gradients_are_those_of_one_device():
    x, f = inputs(3), Partial(scaled_features, jnp.array([1.0, 2.0, 0.5]))

    def gradient(f):
        g = jaxsmooth.smooth(f, NOISE, n=200, batch_size=64)
        return jax.grad(lambda x: g(KEY, x)[:, 0].sum())(x)

    np.testing.assert_allclose(gradient(over_devices(f)), gradient(f), rtol=1e-5, atol=1e-7)


SCANS = {
    "count_votes": lambda f, key, x: jaxsmooth.count_votes(f, NOISE, key, x, n=1000, batch_size=256),
    "certify": lambda f, key, x: jaxsmooth.certify(f, NOISE, key, x, n0=100, n=1000, batch_size=256).label,
}


@pytest.mark.parametrize("scan", SCANS)
def test_each_device_draws_the_noise_of_its_part_only(scan):
    """The compiled program has no array of the noise of a whole batch; without the devices it has one."""

    def program(f):
        run = jax.jit(lambda key, x: SCANS[scan](f, key, x))
        return run.lower(KEY, inputs(3, (50,))).compile().as_text()

    # 3,000 samples are 12 chunks of 256 rows or 250, 3,300 are 13 of 256: those of a device are 64 or 63.
    part, whole = r"f32\[(64|63),50\]", r"\[(256|252|250),(50|25)\]"
    spread = program(over_devices(lambda x: x[:, :3]))
    assert re.search(part, spread)
    assert not re.search(whole, spread)
    assert re.search(whole, program(lambda x: x[:, :3]))


def test_new_parameters_compile_nothing():
    traces = []

    def f(weights, x):
        traces.append(x.shape)
        return scaled_features(weights, x)

    def count(scale):
        spread = over_devices(Partial(f, jnp.full(3, scale)))
        jaxsmooth.count_votes(spread, NOISE, KEY, inputs(2), n=10, batch_size=8)
        return len(traces)

    assert count(1.0) == count(2.0) > 0


def test_what_is_no_classifier_and_no_device_is_refused():
    with pytest.raises(TypeError, match="f must be a callable"):
        over_devices(3)
    for devices in ([], ["cpu"]):
        with pytest.raises(ValueError, match="devices must be some of this process's devices"):
            over_devices(first_features, devices)


EIGHT = """
import jax, numpy as np, sys, tempfile
import jaxsmooth
data = (np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32), np.zeros(7, int))
run = lambda devices: [row[:4] + row[5:] for row in jaxsmooth.certify_dataset(
    lambda x: x[:, :3], jaxsmooth.Gaussian(0.5), jax.random.key(0), data, tempfile.mkdtemp() + "/a.tsv",
    mode=jaxsmooth.Fixed(n=1000), devices=devices, progress=False)]
assert len(jax.devices()) == 8
assert run(None) == run(jax.devices()[:1])
"""


def test_a_run_on_eight_devices_gives_the_certificates_of_one(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    subprocess.run([sys.executable, "-c", EIGHT], check=True, timeout=120)
