"""A model of another framework as a JAX function: the same numbers under every transformation, errors that arrive."""

import threading
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import PartitionSpec as P

import jaxsmooth
from tests.bridges.calls import BRIDGES, PyTorch
from tests.bridges.modules import WRAPS, loss
from tests.classifiers import assert_same
from tests.memory import needs_proc, peak, reset_peak

pytestmark = [
    pytest.mark.usefixtures("watchdog"),
    pytest.mark.parametrize("bridge", BRIDGES, ids=lambda bridge: bridge.__name__),
]
EAGER_AND_JIT = pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)


@EAGER_AND_JIT
def test_forward_is_the_framework_s(bridge, wrap):
    model, x = bridge.network(), bridge.images()
    bridge.assert_forward(wrap(bridge.as_jax(model))(x), bridge.forward(model, x))


@EAGER_AND_JIT
def test_gradient_is_the_framework_s(bridge, wrap):
    model, x = bridge.network(), bridge.images()
    value, gradient = wrap(jax.value_and_grad(partial(loss, bridge.as_jax(model))))(x)
    np.testing.assert_allclose(value, np.square(bridge.forward(model, x)).sum(), rtol=bridge.value_rtol)
    np.testing.assert_allclose(gradient, bridge.gradient(model, x), **bridge.gradient_close)
    assert_same(wrap(jax.grad(partial(loss, bridge.as_jax(model))))(x), gradient)


@EAGER_AND_JIT
def test_nested_vmap_is_one_batch(bridge, wrap):
    model, rows, flat = bridge.network(), [], bridge.images(24)
    x = flat.reshape(2, 3, 4, *flat.shape[1:])
    result = wrap(jax.vmap(jax.vmap(bridge.as_jax(bridge.watched(model, rows)))))(x)
    np.testing.assert_allclose(result.reshape(24, 3), bridge.forward(model, flat), **bridge.rows_close)
    assert rows[-1] == 24
    gradient = wrap(jax.vmap(jax.vmap(jax.grad(partial(loss, bridge.as_jax(model))))))(x)
    np.testing.assert_allclose(gradient.reshape(flat.shape), bridge.gradient(model, flat), **bridge.rows_gradient_close)


def test_scan_and_map(bridge):
    model, x = bridge.network(), bridge.images(6)
    x = x.reshape(3, 2, *x.shape[1:])
    f = bridge.as_jax(model)
    expected = np.stack([bridge.forward(model, part) for part in x])
    bridge.assert_forward(jax.lax.map(f, x), expected)
    bridge.assert_forward(jax.lax.scan(lambda carry, part: (carry, f(part)), 0, x)[1], expected)


def test_shard_map_with_a_collective(bridge, mesh):
    model, x = bridge.network(), bridge.images(8)
    f = bridge.as_jax(model)
    shared = {"mesh": mesh, "in_specs": P("device")}
    forward = jax.jit(jax.shard_map(f, out_specs=P("device"), **shared))
    total = jax.jit(jax.shard_map(lambda x: jax.lax.psum(f(x).sum(), "device"), out_specs=P(), **shared))
    gradient = jax.jit(jax.shard_map(jax.grad(partial(loss, f)), out_specs=P("device"), **shared))
    expected = np.concatenate([bridge.forward(model, part) for part in np.split(np.asarray(x), 4)])
    for _ in range(20):
        bridge.assert_forward(forward(x), expected)
        np.testing.assert_allclose(total(x), expected.sum(), **bridge.total_close)
        np.testing.assert_allclose(gradient(x), bridge.gradient(model, x), **bridge.rows_gradient_close)


def test_eight_threads_at_once(bridge):
    model, x = bridge.network(), bridge.images(64)
    f = jax.jit(bridge.as_jax(model))
    expected, failures = np.asarray(f(x)), []

    def work():
        for _ in range(50):
            try:
                bridge.assert_forward(f(x), expected)
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    if bridge is PyTorch:
        assert all(part.training for part in model.modules())


def test_parameters_that_change_take_effect_without_a_new_compilation(bridge):
    model, x = bridge.network(), bridge.images()
    chex.clear_trace_counter()
    f = jax.jit(chex.assert_max_traces(lambda x: bridge.as_jax(model)(x), 1))
    before = f(x)
    bridge.add_to_bias(model)
    np.testing.assert_allclose(f(x), before + jnp.array([[1.0, 2.0, 3.0]]), rtol=1e-5)
    bridge.assert_forward(f(x), bridge.forward(model, x))
    assert bridge.as_jax(model) == bridge.as_jax(model) != bridge.as_jax(bridge.network())
    assert hash(bridge.as_jax(model)) == hash(bridge.as_jax(model))


@pytest.mark.parametrize("how", ["raises", "rows"])
def test_errors_arrive_with_their_message_and_leave_the_process_usable(bridge, how):
    error = bridge.raised if how == "raises" else ValueError
    message = "no such layer: conv9" if how == "raises" else bridge.rows_message
    with pytest.raises(error, match=message):
        bridge.as_jax(bridge.broken(how))(jnp.ones((4, 5)))
    with pytest.raises((*bridge.compiled_raises, jax.errors.JaxRuntimeError), match=message):
        jax.block_until_ready(jax.jit(bridge.as_jax(bridge.broken(how)))(jnp.ones((4, 5))))
    assert jax.jit(bridge.as_jax(bridge.network()))(bridge.images()).shape == (4, 3)


@EAGER_AND_JIT
def test_what_is_no_classifier_or_has_no_gradient_is_refused(bridge, wrap):
    f, x = lambda function: wrap(bridge.as_jax(bridge.of(function))), jnp.ones((4, 5))
    with pytest.raises(ValueError, match="returns a tuple of"):
        f(lambda x: (x, x[:, :2]))(x)
    with pytest.raises(ValueError, match="must return one row for each of 2 inputs"):
        f(lambda x: x[0, 0])(x)
    with pytest.raises(TypeError, match=r"a model takes a batch .* of numbers, got dtype bool"):
        wrap(bridge.as_jax(bridge.network()))(jnp.ones((4, 5), bool))
    constant = bridge.as_jax(bridge.of(bridge.stop_gradient))
    with pytest.raises((ValueError, jax.errors.JaxRuntimeError), match="does not depend on its input differentiably"):
        jax.block_until_ready(wrap(jax.grad(partial(loss, constant)))(x))


def test_derivatives_that_are_not_there_say_so(bridge):
    f, x = bridge.as_jax(bridge.network()), bridge.images(1)
    with pytest.raises(NotImplementedError, match="second derivatives are not available"):
        jax.jacrev(jax.grad(partial(loss, f)))(x)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(f, (x,), (x,))


def test_compiled_code_on_a_platform_without_callbacks_names_the_way(bridge, monkeypatch):
    for platform in bridge.platforms:
        monkeypatch.setattr(jax, "default_backend", lambda platform=platform: platform)
        with pytest.raises(NotImplementedError, match=r"use jaxsmooth.stream_votes"):
            jax.jit(bridge.as_jax(bridge.network()))(bridge.images())
        assert bridge.as_jax(bridge.network())(bridge.images()).shape == (4, 3)


@needs_proc
@pytest.mark.parametrize("megabytes", [1, 50])
def test_two_thousand_iterations_neither_hang_nor_leak(bridge, megabytes):
    f, x = bridge.as_jax(bridge.of(lambda x: x[:, :2] + 1)), jnp.zeros((4, megabytes * 65536))

    @jax.jit
    def run(x):
        step = lambda carry, _: (carry.at[:, :2].set(f(carry)), None)  # noqa: E731
        return jax.lax.scan(step, x, length=2000)[0]

    run(x).block_until_ready()
    before = reset_peak()
    assert_same(run(x)[:, :2], np.full((4, 2), 2000))
    assert peak() - before < 150


@pytest.mark.parametrize("driver", [jaxsmooth.count_votes, jaxsmooth.stream_votes])
def test_votes_of_a_model_and_of_the_same_model_in_jax(bridge, key, driver):
    model, weight, bias = bridge.linear()
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 5)), jnp.float32)
    votes = driver(bridge.as_jax(model), jaxsmooth.Gaussian(0.5), key, x, n=500, batch_size=64)
    native = jaxsmooth.count_votes(lambda x: x @ weight + bias[None], jaxsmooth.Gaussian(0.5), key, x, n=500)
    # Both see the same noise. A score that rounds differently changes a vote only where two scores tie to 1e-6.
    assert int(jnp.abs(votes - native).sum()) <= 4
    compiled = jaxsmooth.count_votes(bridge.as_jax(model), jaxsmooth.Gaussian(0.5), key, x, n=500, batch_size=64)
    assert int(jnp.abs(votes - compiled).sum()) <= bridge.flipped_votes


def test_a_run_goes_on_with_the_weights_that_it_began_with(bridge, tmp_path):
    model, x = bridge.network(), np.asarray(bridge.images(3))
    data, path, noise = (x, np.zeros(3, int)), tmp_path / "run.tsv", jaxsmooth.Gaussian(0.25)

    def run(most):
        mode = jaxsmooth.Fixed(n0=10, n=20)
        f = bridge.as_jax(model)
        return jaxsmooth.certify_dataset(f, noise, jax.random.key(0), data, path, mode=mode, most=most, progress=False)

    run(1)
    assert jaxsmooth.read_votes(f"{path}.votes").settings["classifier"].startswith("sha256:")
    assert len(run(2)) == 2
    # One unit in the last place of one weight: the votes are the same.
    if bridge is PyTorch:
        with torch.no_grad():
            weight = next(model.parameters()).view(-1)
            weight[0] = torch.nextafter(weight[0], torch.tensor(9.0))
    else:
        (weight, *_) = model.trainable_variables
        value = np.array(weight)
        value.flat[0] = np.nextafter(value.flat[0], np.float32(9))
        weight.assign(value)
    with pytest.raises(ValueError, match="other settings: classifier: weights sha256:"):
        run(3)
