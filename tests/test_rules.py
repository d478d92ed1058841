"""What a run examines before it begins: the classifier and the noise."""

import json
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import pytest

import jaxsmooth
from jaxsmooth import Gaussian, certify_dataset
from tests.test_runs import KEY, NOISE, examples, run, sign


def batch_mean(x):
    return sign(x) - sign(x).mean(axis=0, keepdims=True)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("run_over", [run, partial(jaxsmooth.predict_dataset, noise=NOISE, key=KEY)])
def test_a_classifier_that_depends_on_the_batch_is_refused_before_anything_is_written(tmp_path, run_over, compiled):
    arguments = {"path": tmp_path / "a.tsv", "f": batch_mean, "compiled": compiled, "verbose": False, "n": 500}
    with pytest.raises(ValueError, match=r"its scores depend on the batch: those of (\d+) of \1 rows"):
        run_over(data=examples(), **arguments)
    assert list(tmp_path.iterdir()) == []
    assert len(run_over(data=examples(), **arguments, check=False)) == 11


class Biased(NamedTuple):
    """Gaussian noise of a generator with a planted bias."""

    sigma: float
    norm, scale, cdf, unit_radius = 2, Gaussian.scale, Gaussian.cdf, staticmethod(Gaussian.unit_radius)

    def sample(self, key, shape, dtype=jnp.float32):
        return Gaussian(self.sigma).sample(key, shape, dtype) + 0.1


def test_noise_that_fails_its_tests_is_refused_before_anything_is_written(tmp_path):
    path = tmp_path / "a.tsv"
    with pytest.raises(
        ValueError, match="noise must be what it is taken for, but it failed the tests distance, moment 1"
    ):
        certify_dataset(sign, Biased(0.5), KEY, examples(), path, n=500, verbose=False)
    assert list(tmp_path.iterdir()) == []


def test_what_the_tests_of_the_noise_found_is_kept_beside_the_log(tmp_path):
    run(tmp_path / "a.tsv")
    kept = json.loads((tmp_path / "a.tsv.noise").read_text())
    report = jaxsmooth.noise_report(NOISE, jaxsmooth.decision_keys(KEY)[1], examples()[0][0][None])
    assert kept["failed"] == []
    assert (kept["samples"], kept["features"], kept["false_alarm"]) == (2048, 4, 1e-6)
    assert kept["statistics"] == {s.name: {"value": s.value, "limit": s.limit} for s in report.statistics}
    run(tmp_path / "b.tsv", check=False)
    assert not (tmp_path / "b.tsv.noise").exists()
