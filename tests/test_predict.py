"""Predictions: the decision of SciPy's exact test, under every transformation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxsmooth import ABSTAIN, Gaussian, count_votes, predict, prediction
from tests.classifiers import assert_same, first_features, inputs


def expected_label(counts, n, alpha):
    order = np.argsort(-counts, kind="stable")
    rival = max(counts[order[1]], n - counts.sum())
    passes = counts[order[0]] > rival and stats.binomtest(counts[order[0]], counts[order[0]] + rival).pvalue <= alpha
    return order[0] if passes else ABSTAIN


@pytest.mark.parametrize("alpha", [0.05, 0.001, 1e-6])
@pytest.mark.parametrize("n", [1, 30, 1000])
def test_decides_as_scipy_does(n, alpha):
    rng = np.random.default_rng(n)
    shares = rng.dirichlet([1.0, 1.0, 0.5, 0.3], 400)
    counts = np.stack([rng.multinomial(n, p)[:3] for p in shares])  # the fourth are votes for no class
    result = prediction(counts, n=n, alpha=alpha)
    assert_same(result.label, [expected_label(c, n, alpha) for c in counts])
    assert_same(result, jax.jit(partial(prediction, n=n, alpha=alpha))(counts))
    assert_same(result.counts, counts)


def test_invalid_votes_are_a_rival():
    counts = jnp.array([[60, 0], [45, 5], [100, 0]])
    assert_same(prediction(counts, n=100).label, [ABSTAIN, ABSTAIN, 0])
    assert_same(prediction(counts, n=100).p_value[1], 1.0)


def test_a_traced_row_of_too_many_votes_abstains():
    assert_same(jax.jit(partial(prediction, n=100))(jnp.array([[101, 0]])).label, [ABSTAIN])


def test_predict_is_the_prediction_of_the_counts(key):
    x, noise = inputs(20), Gaussian(1.0)
    result = predict(first_features, noise, key, x, n=200, alpha=0.01)
    assert_same(result, prediction(count_votes(first_features, noise, key, x, n=200), n=200, alpha=0.01))
    assert_same(result, jax.jit(partial(predict, first_features, n=200, alpha=0.01))(noise, key, x))
    assert {ABSTAIN} < set(np.asarray(result.label).tolist())
    again = predict(first_features, noise, key, x[5:], n=200, alpha=0.01, ids=np.arange(5, 20))
    assert_same(again, jax.tree.map(lambda leaf: leaf[5:], result))


def test_a_model_of_nan_abstains(key):
    result = predict(lambda x: jnp.full((len(x), 3), jnp.nan), Gaussian(1.0), key, inputs(3))
    assert_same(result.label, [ABSTAIN] * 3)
    assert_same(result.p_value, [1.0] * 3)


def test_no_inputs(key):
    result = predict(first_features, Gaussian(1.0), key, jnp.zeros((0, 5)))
    assert [(leaf.shape, leaf.dtype) for leaf in result] == [((0,), "int32"), ((0,), "float32"), ((0, 3), "int32")]
