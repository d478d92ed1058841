"""Samples: what is drawn for whom, in which batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsmooth import Gaussian, certify, count_votes, smooth, stream_samples
from jaxsmooth.samples import check_scan
from tests.classifiers import assert_same, first_features, inputs

NOISE = Gaussian(1.0)


def test_stream_samples_are_what_is_voted_on(key):
    x, counts = inputs(3), np.zeros((3, 3), np.int32)
    for noisy, rows in stream_samples(NOISE, key, x, n=50, batch_size=64, first=5):
        assert noisy.shape == (64, 5)
        real = np.asarray(rows) < 3
        np.add.at(counts, (np.asarray(rows)[real], np.asarray(jnp.argmax(first_features(noisy), 1))[real]), 1)
    assert_same(counts, count_votes(first_features, NOISE, key, x, n=50, first=5))
    assert list(stream_samples(NOISE, key, x[:0], n=50)) == []
    with pytest.raises(ValueError, match="n must be an integer"):
        stream_samples(NOISE, key, x, n=0)


@pytest.mark.parametrize("batch_size", [4, 256], ids=["several draws", "one draw"])
def test_stream_samples_are_of_the_inputs_as_they_were_checked(key, batch_size):
    x = np.asarray(inputs(4))  # 2^k inputs, which nothing fills up
    expected = [noisy for noisy, _ in stream_samples(NOISE, key, x, n=8, batch_size=batch_size)]
    changed = np.array(x)
    samples = stream_samples(NOISE, key, changed, n=8, batch_size=batch_size)
    changed[:] = np.nan
    for ours, theirs in zip(samples, expected, strict=True):
        assert_same(ours[0], theirs)


def test_scans_have_as_many_batches_as_of_full_ones_and_no_larger(key):
    for n in range(1, 400):
        for batch_size in (1, 5, 8, 100, 128):
            _, _, size = check_scan(NOISE, key, inputs(1), n, batch_size, None, 0)
            batches = -(-n // min(batch_size, n))
            assert size <= min(batch_size, n)
            assert n <= batches * size
            assert size == min(batch_size, n) or (size % 8 == 0 and batches * (size - 8) < n)


SCANS = {
    "count_votes": lambda f, key, x: count_votes(f, NOISE, key, x, n=100, batch_size=256),
    "certify": lambda f, key, x: certify(f, NOISE, key, x, n0=10, n=90, batch_size=256),
    "smooth": lambda f, key, x: smooth(f, NOISE, n=100, batch_size=256)(key, x),
}


@pytest.mark.parametrize("scan", SCANS)
def test_a_scan_calls_with_few_rows_beyond_the_samples(key, scan):
    calls = []

    def f(x):
        jax.debug.callback(lambda: calls.append(len(x)))
        return first_features(x)

    SCANS[scan](f, key, inputs(3))
    jax.effects_barrier()
    assert calls == [152, 152]
