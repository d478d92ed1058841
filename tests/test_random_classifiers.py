"""Classifiers with randomness of their own, one key for each row: `statistics.md`, section 9."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsmooth
from jaxsmooth import (
    Fixed,
    Gaussian,
    RandomClassifier,
    certify,
    certify_dataset,
    certify_radii,
    check_classifier,
    count_votes,
    over_devices,
    predict,
    smooth,
    stream_votes,
)
from tests.classifiers import assert_same, inputs

KEY = jax.random.key(0)
NOISE = Gaussian(0.5)


def moved(x, keys):
    """A half space whose margin is moved by a normal number of each row's own: again a half space, under more noise."""
    shift = jax.vmap(jax.random.normal)(keys)
    return jnp.stack([x[:, 0] + shift, -x[:, 0] - shift], axis=1)


def moved_together(x, keys):
    """The broken twin: one number for all rows of a batch."""
    shift = jax.random.normal(keys[0])
    return jnp.stack([x[:, 0] + shift, -x[:, 0] - shift], axis=1)


def shrunk(weights, x, keys):
    kept = jax.vmap(lambda key, row: jax.random.bernoulli(key, 0.8, row.shape))(keys, x)
    return jnp.where(kept, x, 0) @ weights


F = RandomClassifier(moved)
X = inputs(3)


def test_votes_depend_on_no_batch_size_no_loop_and_no_order():
    expected = count_votes(F, NOISE, KEY, X, n=300, batch_size=64)
    for batch_size in (7, 300, 1000):
        assert_same(count_votes(F, NOISE, KEY, X, n=300, batch_size=batch_size), expected)
        assert_same(stream_votes(F, NOISE, KEY, X, n=300, batch_size=batch_size), np.asarray(expected))
    assert_same(count_votes(F, NOISE, KEY, X[::-1], n=300, ids=[2, 1, 0]), expected[::-1])
    assert_same(jax.jit(lambda x: count_votes(F, NOISE, KEY, x, n=300))(X), expected)
    halves = [count_votes(F, NOISE, KEY, X, n=150, first=first) for first in (0, 150)]
    assert_same(sum(halves), expected)
    assert_same(count_votes(over_devices(F), NOISE, KEY, X, n=300), expected)
    result = certify(F, NOISE, KEY, X, n=300)
    on_host = certify(F, NOISE, KEY, X, n=300, compiled=False)
    assert_same((result.label, result.radius), jax.tree.map(jnp.asarray, (on_host.label, on_host.radius)))
    assert result.votes.batch_size is None
    assert predict(F, NOISE, KEY, X, n=100).label.shape == (3,)


def test_the_randomness_is_new_for_each_sample_and_independent_of_the_noise():
    """Votes of the sum of two normals, exactly: a binomial test at 1e-6, which votes under one number for all fail."""
    from scipy import stats

    x, n = jnp.array([[0.3]]), 20_000
    p = stats.norm.cdf(0.3 / np.hypot(0.5, 1.0))
    counts = np.asarray(count_votes(F, NOISE, KEY, x, n=n, batch_size=500))[0]
    assert stats.binomtest(int(counts[0]), n, p).pvalue > 1e-6
    together = np.asarray(count_votes(RandomClassifier(moved_together), NOISE, KEY, x, n=n, batch_size=500))[0]
    assert stats.binomtest(int(together[0]), n, p).pvalue < 1e-6
    # If the classifier saw the noise's own words, the two would not be independent: shift and noise as one number.
    both = count_votes(RandomClassifier(lambda x, keys: moved(x - 0.3, keys)), NOISE, KEY, x, n=n)[0]
    assert stats.binomtest(int(both[0]), n, 0.5).pvalue > 1e-6


@pytest.mark.parametrize("mode", ["grid", "within"])
def test_the_modes_that_stop_early_and_their_two_loops(mode):
    def run(compiled):
        if mode == "grid":
            return certify_radii(F, NOISE, KEY, X, [0.1], n=2000, compiled=compiled)
        return jaxsmooth.certify_within(F, NOISE, KEY, X, precision=0.1, compiled=compiled)

    traced, called = run(True), run(False)
    for name in ("label", "radius", "p_lower"):
        assert_same(*(np.asarray(getattr(result, name)) for result in (traced, called)))


def test_arrays_in_a_random_classifier_are_traced():
    traces = []

    def f(weights, x, keys):
        traces.append(None)
        return shrunk(weights, x, keys)

    def run(seed):
        weights = jax.random.normal(jax.random.key(seed), (5, 3))
        return count_votes(RandomClassifier(jax.tree_util.Partial(f, weights)), NOISE, KEY, X, n=100)

    first, compiled = run(0), len(traces)
    assert (run(1) != first).any()
    assert len(traces) == compiled


def test_a_run_goes_on_after_an_interrupt(tmp_path):
    data = [(np.asarray(row), 0) for row in inputs(6)]
    weights = jax.random.normal(jax.random.key(1), (5, 3))
    f = RandomClassifier(jax.tree_util.Partial(shrunk, weights))
    settings = {"mode": Fixed(n0=20, n=200), "progress": False}
    whole = certify_dataset(f, NOISE, KEY, data, tmp_path / "whole", **settings)
    certify_dataset(f, NOISE, KEY, data[:3], tmp_path / "part", **settings)
    parts = certify_dataset(f, NOISE, KEY, data, tmp_path / "part", **settings)
    assert [row.radius for row in parts] == [row.radius for row in whole]
    with pytest.raises(TypeError, match="a RandomClassifier with of_batch=True"):
        certify_dataset(dataclasses.replace(f, of_batch=True), NOISE, KEY, data, tmp_path / "batch", **settings)


@pytest.mark.parametrize("estimator", ["pathwise", "score"])
def test_gradients_of_the_smoothed_classifier(estimator):
    """Two averages of 20,000 copies under other keys agree: an entry of the gradient has a standard error of 0.01."""
    weights = jax.random.normal(jax.random.key(1), (5, 3))
    f = RandomClassifier(jax.tree_util.Partial(shrunk, weights))
    g = smooth(f, NOISE, n=20_000, batch_size=4096, estimator=estimator)
    value, gradient = jax.value_and_grad(lambda x: g(KEY, x)[0, 0])(X[:1])
    far = smooth(f, NOISE, n=20_000, batch_size=4096)
    expected, slope = jax.value_and_grad(lambda x: far(jax.random.key(1), x)[0, 0])(X[:1])
    np.testing.assert_allclose(value, expected, atol=0.05)
    np.testing.assert_allclose(gradient, slope, atol=0.1)


def test_the_check_asks_for_the_same_scores_under_the_same_key():
    check_classifier(F, X, classes=2)
    with pytest.raises(ValueError, match="its scores depend on the batch"):
        check_classifier(RandomClassifier(moved_together), X)
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match="it is random, or has a state"):
        check_classifier(RandomClassifier(lambda x, _: x + generator.normal(size=x.shape)), X)
    check_classifier(RandomClassifier(moved_together, of_batch=True), X)


def test_votes_that_depend_on_the_batch_size_say_so():
    f = RandomClassifier(moved_together, of_batch=True)
    assert certify(f, NOISE, KEY, X, n=100, batch_size=64).votes.batch_size == 64
    assert predict(f, NOISE, KEY, X, n=100, batch_size=64, compiled=False).votes.batch_size == 64
    result = certify_radii(f, NOISE, KEY, X, [0.1], n=1000, batch_size=64)
    assert result.votes.batch_size == 64
    assert (result.votes.counts.sum(-1) == result.votes.n).all()


def test_training_objectives_refuse_it():
    with pytest.raises(TypeError, match="f must be a function of the inputs for a training objective"):
        jaxsmooth.losses.gaussian(F, NOISE, KEY, X, jnp.zeros(3, int))


def torch_model():
    import torch
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(32), nn.Linear(32, 3)).eval()
    model[2].train()
    return model


def keras_model():
    import keras

    keras.utils.set_random_seed(0)
    x = keras.Input((5,))
    hidden = keras.layers.Dropout(0.5)(keras.layers.Dense(32, activation="relu")(x), training=True)
    return keras.Model(x, keras.layers.Dense(3)(hidden))


@pytest.mark.parametrize("framework", ["pytorch", "tensorflow"])
def test_random_models_of_other_frameworks_repeat_their_votes(framework):
    """Dropout that stays on: the same votes again, other ones under another batch size, which the votes say."""
    import importlib

    import torch

    as_jax = importlib.import_module(f"bridges.{framework}").as_jax
    model = torch_model() if framework == "pytorch" else keras_model()
    f = as_jax(model, random=True)
    state = torch.random.get_rng_state()
    check_classifier(f, X, classes=3)
    first = predict(f, NOISE, KEY, X, n=400, batch_size=64, compiled=False)
    again = predict(f, NOISE, KEY, X, n=400, batch_size=64, compiled=False)
    other = predict(f, NOISE, KEY, X, n=400, batch_size=100, compiled=False)
    assert_same(first.votes.counts, again.votes.counts)
    assert (first.votes.counts != other.votes.counts).any()
    assert (first.votes.batch_size, other.votes.batch_size) == (64, 100)
    assert torch.equal(torch.random.get_rng_state(), state)
    # Each row of a batch has numbers of its own: rows of one input differ.
    same = jnp.tile(X[:1], (64, 1))
    scores = np.asarray(f(same, jax.random.split(KEY, 64)))
    assert len(np.unique(scores.round(5), axis=0)) > 32
    with pytest.raises((NotImplementedError, TypeError), match=r"compiled=False"):
        certify(f, NOISE, KEY, X, n=10)
    deterministic = as_jax(model if framework == "tensorflow" else model.eval())
    with pytest.raises(TypeError, match="random"):
        importlib.import_module("bridges.tensorflow").as_jax(lambda x: x, random=True)
    assert callable(deterministic)


def test_batch_normalisation_by_the_batch_is_refused():
    """Dropout is to stay on, and `train()` on the whole network would let rows see each other."""
    import torch
    from torch import nn

    import bridges.pytorch
    import bridges.tensorflow

    network = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    f = bridges.pytorch.as_jax(network, random=True)
    with pytest.raises(ValueError, match="batch normalisation in evaluation mode, got BatchNorm1d '1'"):
        certify(f, NOISE, KEY, X, n=10, compiled=False)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    network.eval()
    network[2].train()
    check_classifier(f, X)
    # By the function itself, or within a graph of Keras: the test of rows at their places sees it.
    with pytest.raises(ValueError, match="its scores depend on the batch"):
        check_classifier(RandomClassifier(lambda x, _: x - x.mean(0, keepdims=True), of_batch=True), X)
    import keras

    x = keras.Input((5,))
    hidden = keras.layers.BatchNormalization()(keras.layers.Dropout(0.1)(x, training=True), training=True)
    model = keras.Model(x, keras.layers.Dense(3)(hidden))
    statistics = [np.array(variable) for variable in model.non_trainable_variables]
    with pytest.raises(ValueError, match="its scores depend on the batch"):
        check_classifier(bridges.tensorflow.as_jax(model, random=True), X)
    assert_same(statistics, [np.array(variable) for variable in model.non_trainable_variables])


def test_votes_of_two_batch_sizes_do_not_add_up():
    f = RandomClassifier(moved_together, of_batch=True)
    votes = [predict(f, NOISE, KEY, X, n=100, batch_size=size, compiled=False).votes for size in (32, 64)]
    with pytest.raises(ValueError, match="add up only at one, got 32 and 64"):
        votes[0] + votes[1]


def test_models_of_other_frameworks_are_no_random_functions():
    from torch import nn

    with pytest.raises(TypeError, match=r"bridges.pytorch.as_jax\(model, random=True\)"):
        RandomClassifier(nn.Linear(5, 3))
    with pytest.raises(TypeError, match="f must be a callable"):
        certify(RandomClassifier(3), NOISE, KEY, X, n=10)
