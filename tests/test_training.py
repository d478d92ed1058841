"""Training steps: new noise for every step, one compilation, resumption to the bit."""

from functools import partial

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from jaxsmooth import Gaussian, losses
from jaxsmooth.training import init_train_state, make_train_step
from tests.classifiers import assert_same

OPTIMIZER = optax.adam(0.05)


def linear(params, x):
    return x @ params["kernel"] + params["bias"][None]


def start():
    return init_train_state(Partial(linear, {"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)}), OPTIMIZER)


def data():
    x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(x[:, :3].argmax(1))


def run(step, state, steps, key):
    x, y = data()
    values = []
    for _ in range(steps):
        state, value = step(state, Gaussian(0.25), key, x, y)
        values.append(float(value))
    return state, values


@pytest.mark.parametrize(
    "loss", [losses.gaussian, losses.consistency, partial(losses.smoothadv, clip_values=None), losses.macer]
)
def test_training_lowers_the_loss_under_noise(key, loss):
    x, y = data()
    state, _ = run(make_train_step(loss, OPTIMIZER), start(), 60, key)
    # log 3 = 1.10 before the first step.
    assert losses.gaussian(state.f, Gaussian(0.25), key, x, y) < 0.8


def test_every_step_has_new_noise_and_none_compiles_again(key):
    traces = []

    def counted(*arguments):
        traces.append(1)
        return losses.gaussian(*arguments)

    step = make_train_step(counted, optax.sgd(0.0))
    state = init_train_state(start().f, optax.sgd(0.0))
    state = state._replace(f=jax.tree.map(lambda a: a + jnp.arange(3.0) if a.ndim == 1 else a + jnp.eye(4, 3), state.f))
    x, y = data()
    values = set()
    for sigma in (0.25, 0.5):
        for _ in range(3):
            state, value = step(state, Gaussian(sigma), key, x, y)
            values.add(float(value))
    assert len(values) >= 5
    assert len(traces) == 1


def test_an_interrupted_run_goes_on_to_the_same_parameters(key):
    step = make_train_step(losses.consistency, OPTIMIZER)
    whole, _ = run(step, start(), 10, key)
    half, _ = run(step, start(), 4, key)
    stored = flax.serialization.to_bytes((jax.tree.leaves(half.f), half.optimizer_state, half.step))
    empty = start()
    leaves, optimizer_state, number = flax.serialization.from_bytes(
        (jax.tree.leaves(empty.f), jax.tree.map(np.asarray, half.optimizer_state), empty.step), stored
    )
    resumed = empty._replace(
        f=jax.tree.unflatten(jax.tree.structure(empty.f), leaves), optimizer_state=optimizer_state, step=number
    )
    continued, _ = run(make_train_step(losses.consistency, OPTIMIZER), resumed, 6, key)
    assert_same(jax.tree.leaves(continued), jax.tree.leaves(whole))


@pytest.mark.parametrize("f", [linear, Partial(linear, {"kernel": jnp.zeros((4, 3), jnp.int32)}), jnp.zeros(3)])
def test_what_holds_no_parameters_is_refused(f):
    with pytest.raises(TypeError, match="callable pytree of floating-point arrays"):
        init_train_state(f, OPTIMIZER)
