"""Votes of a run that stopped early, read again: the false certificates that the refusal prevents.

4,000 inputs whose true radius is just below the one that is tested. Alarms are false with probability 1e-6.
"""

from dataclasses import replace

import jax
import numpy as np
import pytest
from scipy import stats

from jaxsmooth import Anytime, Gaussian, Grid, certificate, certify_dataset, prediction, read_votes
from tests.classifiers import half_space

ALPHA, NUMBER, RADIUS = 0.05, 4000, 0.5
MOST = int(stats.binom.isf(1e-6, NUMBER, ALPHA))
NOISE = Gaussian(0.5)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Return what a run of a grid left, the sampling of each input having stopped because of its votes."""
    path, x = tmp_path_factory.mktemp("run") / "run.tsv", np.zeros((NUMBER, 2), np.float32)
    x[:, 0] = RADIUS - 1e-6
    settings = {"alpha": ALPHA, "batch_size": 4096, "group": NUMBER, "progress": False}
    data = x, np.zeros(NUMBER, int)
    certify_dataset(half_space, NOISE, jax.random.key(11), data, path, mode=Grid([RADIUS], n=2000), **settings)
    return read_votes(f"{path}.votes")


def test_what_the_run_certified_is_false_as_rarely_as_promised(stopped):
    assert 0 < int((stopped.certificate.radius >= RADIUS).sum()) <= MOST


def test_its_votes_are_refused_by_the_rule_of_fixed_n(stopped):
    for decide in (lambda votes: certificate(votes, NOISE, alpha=ALPHA), lambda votes: prediction(votes, alpha=ALPHA)):
        with pytest.raises(ValueError, match="votes must be of the rule 'fixed', got 'grid'"):
            decide(stopped.votes)


def test_what_the_refusal_prevents_is_false_far_more_often(stopped):
    """The same votes under the name of another rule: a radius that is never reached is claimed for hundreds."""
    careless = certificate(replace(stopped.votes, rule="fixed"), NOISE, alpha=ALPHA)
    assert int((careless.radius >= RADIUS).sum()) > MOST


def test_votes_of_a_run_that_stopped_when_they_were_good_are_refused_too(tmp_path):
    """On the boundary every certificate is false: a stop at the first one finds it again, wherever it came from."""
    number, noise, path = 200, Gaussian(0.5), tmp_path / "run.tsv"
    data = np.zeros((number, 2), np.float32), np.zeros(number, int)

    def looks_good(result):
        counts = result.votes.counts
        return bool(certificate(replace(result.votes, rule="fixed"), noise, alpha=ALPHA).label[0] >= 0 < counts.sum())

    settings = {"alpha": ALPHA, "batch_size": 64, "progress": False}
    mode = Anytime(looks_good, votes=50, n=1000)
    certify_dataset(half_space, noise, jax.random.key(11), data, path, mode=mode, **settings)
    run = read_votes(f"{path}.votes")
    most = stats.binom.isf(1e-6, number, ALPHA)
    assert int((run.certificate.label >= 0).sum()) <= most
    for decide in (lambda votes: certificate(votes, noise, alpha=ALPHA), lambda votes: prediction(votes, alpha=ALPHA)):
        with pytest.raises(ValueError, match="votes must be of the rule 'fixed', got 'anytime'"):
            decide(run.votes)
    careless = certificate(replace(run.votes, rule="fixed"), noise, alpha=ALPHA)
    assert int((careless.label >= 0).sum()) > most
