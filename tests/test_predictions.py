"""Predictions: the decision of SciPy's exact test, under every transformation."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxsmooth import ABSTAIN, Gaussian, Votes, count_votes, predict, prediction
from tests.classifiers import assert_same, first_features, grid_of_features, inputs, one_of_the_grid


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
    result = prediction(Votes(counts=counts, n=n), alpha=alpha)
    assert_same(result.label, [expected_label(c, n, alpha) for c in counts])
    assert_same(result.votes.counts, counts)
    compiled = jax.jit(partial(prediction, alpha=alpha))(Votes(counts=counts, n=n))
    assert_same(compiled.label, result.label)
    # The decision is exact; what is shown is good to 1e-4.
    np.testing.assert_allclose(compiled.p_value, result.p_value, rtol=1e-4, atol=1e-36)


def test_invalid_votes_are_a_rival():
    counts = jnp.array([[60, 0], [45, 5], [100, 0]])
    result = prediction(Votes(counts=counts, n=100))
    assert_same(result.label, [ABSTAIN, ABSTAIN, 0])
    assert_same(result.p_value[1], 1.0)


def test_a_traced_row_of_too_many_votes_abstains():
    assert_same(jax.jit(lambda c: prediction(Votes(counts=c, n=100)).label)(jnp.array([[101, 0]])), [ABSTAIN])


def np_features(x):
    return np.asarray(first_features(x))


def test_predict_is_the_prediction_of_the_counts(key):
    x, noise, same = inputs(20), Gaussian(1.0), chex.assert_trees_all_equal
    result = predict(first_features, noise, key, x, n=200, alpha=0.01)
    counts = np.asarray(count_votes(first_features, noise, key, x, n=200))
    same(result, prediction(Votes(counts=counts, n=200), alpha=0.01))
    same(result, predict(np_features, noise, key, x, n=200, alpha=0.01, compiled=False, batch_size=33))
    compiled = jax.jit(partial(predict, first_features, n=200, alpha=0.01))(noise, key, x)
    same((compiled.label, compiled.votes), (result.label, result.votes))
    np.testing.assert_allclose(compiled.p_value, result.p_value, rtol=1e-4)
    assert {ABSTAIN} < set(np.asarray(result.label).tolist())
    again = predict(first_features, noise, key, x[5:], n=200, alpha=0.01, ids=np.arange(5, 20))
    same(again, jax.tree.map(lambda leaf: leaf[5:], result))


@pytest.mark.parametrize("alpha", [0.05, 0.001, 1e-6])
def test_tables_of_compiled_code_decide_every_pair_of_counts_as_the_host_does(alpha):
    n = 60
    top, rival = (grid.ravel() for grid in np.meshgrid(np.arange(n + 1), np.arange(n + 1)))
    fits = top + rival <= n
    counts = np.stack([top, rival, 0 * top], axis=1)[fits]
    decide = partial(prediction, alpha=alpha)
    host, compiled = (run(Votes(counts=counts, n=n)) for run in (decide, jax.jit(decide)))
    assert_same(compiled.label, host.label)
    np.testing.assert_allclose(compiled.p_value, host.p_value, rtol=1e-4)


def test_a_number_of_samples_for_each_input_decides_as_that_number_for_all():
    n = np.array([10, 100, 1000, 5000])
    counts = np.stack([n * 9 // 10, n // 20], axis=1)
    several = prediction(Votes(counts=counts, n=n), alpha=0.05)
    for i in range(4):
        one = prediction(Votes(counts=counts[i : i + 1], n=int(n[i])), alpha=0.05)
        assert_same((several.label[i], several.p_value[i]), (one.label[0], one.p_value[0]))


@pytest.mark.parametrize("compiled", [True, False])
def test_components_are_decided_at_their_share_of_alpha(key, compiled):
    x = inputs(5, (6,))
    run = partial(predict, noise=Gaussian(0.5), key=key, x=x, n=100, compiled=compiled)
    whole = run(grid_of_features, alpha=0.06)
    assert whole.label.shape == whole.p_value.shape == (5, 2, 3)
    for i in range(2):
        for j in range(3):
            alone = run(one_of_the_grid(i, j), alpha=0.06 / 6)
            assert_same((whole.label[:, i, j], whole.p_value[:, i, j]), (alone.label, alone.p_value))
            assert_same(whole.votes.counts[:, i, j], alone.votes.counts)


def test_a_model_of_nan_abstains(key):
    result = predict(lambda x: jnp.full((len(x), 3), jnp.nan), Gaussian(1.0), key, inputs(3))
    assert_same(result.label, [ABSTAIN] * 3)
    assert_same(result.p_value, [1.0] * 3)


@pytest.mark.parametrize("compiled", [True, False])
def test_no_inputs(key, compiled):
    result = predict(first_features, Gaussian(1.0), key, jnp.zeros((0, 5)), compiled=compiled)
    arrays = result.label, result.p_value, result.votes.counts
    assert [(a.shape, str(a.dtype)) for a in arrays] == [((0,), "int32"), ((0,), "float32"), ((0, 3), "int32")]
