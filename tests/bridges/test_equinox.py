"""Equinox models, written for one example, in the functions of the core."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsmooth
from bridges.equinox import as_jax
from jaxsmooth import Gaussian, certify, count_votes, losses, smooth, training
from tests.classifiers import assert_same, inputs

KEY = jax.random.key(0)
NOISE = Gaussian(0.5)
X = inputs(4)


def mlp(seed=0):
    return eqx.nn.MLP(5, 3, 16, 1, key=jax.random.key(seed))


class Stateful(eqx.Module):
    """Batch normalisation and dropout, which differ between the modes."""

    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    last: eqx.nn.Linear

    def __init__(self):
        self.first = eqx.nn.Linear(5, 8, key=jax.random.key(1))
        self.norm = eqx.nn.BatchNorm(8, axis_name="batch", mode="batch")
        self.dropout = eqx.nn.Dropout(0.5)
        self.last = eqx.nn.Linear(8, 3, key=jax.random.key(2))

    def __call__(self, x, state, key=None):
        x, state = self.norm(self.first(x), state)
        return self.last(self.dropout(jax.nn.relu(x), key=key)), state


def test_it_is_the_model_on_each_row():
    model = mlp()
    f = as_jax(model)
    expected = np.stack([model(row) for row in X])
    for run in (f, jax.jit(f)):
        np.testing.assert_allclose(run(X), expected, rtol=1e-5, atol=1e-6)
    assert certify(f, NOISE, KEY, X, n=100).label.shape == (4,)
    np.testing.assert_allclose(
        jax.grad(lambda x: smooth(f, NOISE, n=50)(KEY, x)[0, 0])(X),
        jax.grad(lambda x: smooth(lambda x: jax.vmap(model)(x), NOISE, n=50)(KEY, x)[0, 0])(X),
        atol=1e-6,
    )
    assert_same(eqx.filter(f.model, eqx.is_array), eqx.filter(model, eqx.is_array))


def test_a_stateful_model_runs_in_inference_mode():
    model, state = eqx.nn.make_with_state(Stateful)()
    _, state = train_once(model, state)
    f = as_jax(model, state)
    jaxsmooth.check_classifier(f, X, classes=3)
    inference = eqx.nn.inference_mode(model)
    np.testing.assert_allclose(f(X), np.stack([inference(row, state)[0] for row in X]), rtol=1e-4, atol=1e-5)


def train_once(model, state):
    keys = jax.random.split(jax.random.key(3), 64)
    return jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))(inputs(64), state, keys)


def test_new_parameters_compile_nothing():
    traces = []

    class Counted(eqx.Module):
        linear: eqx.nn.Linear

        def __call__(self, x):
            traces.append(None)
            return self.linear(x)

    def votes(seed):
        linear = eqx.nn.Linear(5, 3, key=jax.random.key(seed))
        return count_votes(as_jax(Counted(linear)), NOISE, KEY, X, n=50)

    first, compiled = votes(0), len(traces)
    assert (votes(1) != first).any()
    assert len(traces) == compiled


def test_a_training_step_changes_the_arrays():
    optimizer = optax.adam(0.01)
    state = training.init_train_state(as_jax(mlp()), optimizer)
    step = training.make_train_step(losses.gaussian, optimizer)
    x, y = inputs(64), jnp.asarray(np.argmax(inputs(64)[:, :3], axis=1))
    values = []
    for turn in range(30):
        state, value = step(state, Gaussian(0.1), jax.random.fold_in(KEY, turn), x, y)
        values.append(float(value))
    assert np.mean(values[-5:]) < 0.8 * np.mean(values[:5])
    assert isinstance(state.f.model, eqx.nn.MLP)


def test_a_model_for_one_example_without_the_bridge_is_told_what_takes_it():
    with pytest.raises(TypeError, match=r"Equinox module MLP, .* bridges.equinox.as_jax\(model\)"):
        certify(mlp(), NOISE, KEY, X, n=10)
    with pytest.raises(TypeError, match="model must be a callable of one example"):
        as_jax(3)


def test_a_leaf_that_cannot_be_trained_is_named_by_its_path():
    tree = jax.tree_util.Partial(lambda _, x: x, {"steps": jnp.zeros(3, int), "w": jnp.zeros(3)})
    with pytest.raises(TypeError, match=r"steps"):
        training.init_train_state(tree, optax.sgd(0.1))
