"""A TensorFlow model as a JAX function: the same numbers under every transformation, one graph for every batch size."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import faulthandler
import itertools
import subprocess
import sys
import threading
from functools import partial

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import tensorflow as tf
from jax.sharding import PartitionSpec as P

import jaxsmooth
from bridges.tensorflow import as_jax
from tests.classifiers import assert_same
from tests.memory import needs_proc, peak, reset_peak

WATCHDOG = 60


@pytest.fixture(autouse=True)
def watchdog():
    """End the process with the traces of all threads if a test hangs."""
    faulthandler.dump_traceback_later(WATCHDOG, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def layers():
    return [
        keras.layers.Conv2D(4, 3, strides=2),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
        keras.layers.Dropout(0.5),
        keras.layers.Flatten(),
        keras.layers.Dense(3),
    ]


def sequential():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((8, 8, 1)), *layers()])


def unbuilt():
    return keras.Sequential(layers())


def functional():
    x = start = keras.Input((8, 8, 1))
    for layer in layers():
        x = layer(x)
    return keras.Model(start, x)


def nested():
    return keras.Sequential([keras.Input((8, 8, 1)), functional(), keras.layers.Dense(3)])


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner, self.dropout = functional(), keras.layers.Dropout(0.5)

    def call(self, x, training=None):
        return self.dropout(self.inner(x, training=training), training=training)


class WithoutTraining(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, x):
        return self.dense(tf.reshape(x, [-1, 64]))


class Module(tf.Module):
    def __init__(self):
        super().__init__()
        self.weight = tf.Variable(tf.random.stateless_normal((64, 3), (0, 0)))

    def __call__(self, x):
        return tf.reshape(x, [-1, 64]) @ self.weight


class CompiledModule(Module):
    @tf.function
    def __call__(self, x):
        return super().__call__(x)


def function():
    weight = tf.random.stateless_normal((64, 3), (0, 0))
    return lambda x: tf.tanh(tf.reshape(x, [-1, 64]) @ weight)


KINDS = [sequential, unbuilt, functional, nested, Subclassed, WithoutTraining, Module, CompiledModule, function]
KINDS += [lambda: tf.function(function()), lambda: tf.function(sequential())]
EAGER_AND_JIT = pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])


def images(number=4, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(number, 8, 8, 1)), jnp.float32)


def call(model, x):
    try:
        return model(x, training=False)
    except TypeError:
        return model(x)


def tf_forward(model, x):
    return np.asarray(call(model, tf.constant(np.asarray(x))))


def tf_gradient(model, x):
    x = tf.constant(np.asarray(x))
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = tf.reduce_sum(call(model, x) ** 2)
    return tape.gradient(value, x).numpy()


def loss(f, x):
    return jnp.square(f(x)).sum()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@EAGER_AND_JIT
def test_every_kind_of_model(kind, wrap):
    model, x = kind(), images()
    result = wrap(as_jax(model))(x)
    np.testing.assert_allclose(result, tf_forward(model, x), rtol=1e-5, atol=1e-6)
    gradient = wrap(jax.grad(partial(loss, as_jax(model))))(x)
    np.testing.assert_allclose(gradient, tf_gradient(model, x), rtol=1e-4, atol=1e-6)


@EAGER_AND_JIT
def test_gradient_is_tensorflow_s(wrap):
    model, x = sequential(), images()
    value, gradient = wrap(jax.value_and_grad(partial(loss, as_jax(model))))(x)
    np.testing.assert_allclose(value, np.square(tf_forward(model, x)).sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient, tf_gradient(model, x), rtol=1e-4, atol=1e-6)


@EAGER_AND_JIT
def test_nested_vmap_is_one_batch(wrap):
    model, rows = sequential(), []

    def watched(x):
        tf.py_function(lambda x: rows.append(len(x)), [x], [])
        return model(x, training=False)

    x = images(24).reshape(2, 3, 4, 8, 8, 1)
    result = wrap(jax.vmap(jax.vmap(as_jax(watched))))(x)
    np.testing.assert_allclose(result.reshape(24, 3), tf_forward(model, images(24)), rtol=1e-4, atol=1e-5)
    assert rows[-1] == 24
    gradient = wrap(jax.vmap(jax.vmap(jax.grad(partial(loss, as_jax(model))))))(x)
    np.testing.assert_allclose(gradient.reshape(24, 8, 8, 1), tf_gradient(model, images(24)), rtol=1e-4, atol=1e-5)


def test_scan_and_map():
    model, x = sequential(), images(6).reshape(3, 2, 8, 8, 1)
    f = as_jax(model)
    expected = np.stack([tf_forward(model, part) for part in x])
    np.testing.assert_allclose(jax.lax.map(f, x), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        jax.lax.scan(lambda carry, part: (carry, f(part)), 0, x)[1], expected, rtol=1e-5, atol=1e-6
    )


def test_shard_map_with_a_collective(mesh):
    model, x = sequential(), images(8)
    f = as_jax(model)
    shared = {"mesh": mesh, "in_specs": P("device")}
    forward = jax.jit(jax.shard_map(f, out_specs=P("device"), **shared))
    total = jax.jit(jax.shard_map(lambda x: jax.lax.psum(f(x).sum(), "device"), out_specs=P(), **shared))
    gradient = jax.jit(jax.shard_map(jax.grad(partial(loss, f)), out_specs=P("device"), **shared))
    expected = tf_forward(model, x)
    for _ in range(20):
        np.testing.assert_allclose(forward(x), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(total(x), expected.sum(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(gradient(x), tf_gradient(model, x), rtol=1e-4, atol=1e-5)


def test_eight_threads_at_once():
    x = images(64)
    f = jax.jit(as_jax(sequential()))
    expected, failures = np.asarray(f(x)), []

    def work():
        for _ in range(50):
            if not np.allclose(np.asarray(f(x)), expected, rtol=1e-5, atol=1e-6):
                failures.append("differs")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@EAGER_AND_JIT
def test_the_model_is_left_as_it_was(wrap):
    model, x = sequential(), images()
    before = [v.numpy().copy() for v in model.variables]
    state = tf.random.get_global_generator().state.numpy()
    threads = tf.config.threading.get_inter_op_parallelism_threads()
    wrap(as_jax(model))(x)
    wrap(jax.grad(partial(loss, as_jax(model))))(x)
    for variable, value in zip(model.variables, before, strict=True):
        assert_same(variable.numpy(), value)
    assert_same(tf.random.get_global_generator().state.numpy(), state)
    assert tf.config.threading.get_inter_op_parallelism_threads() == threads


def test_one_graph_for_every_batch_size():
    traces = []

    def model(x):
        traces.append(x.shape)
        return tf.reduce_sum(x, axis=[1, 2])

    f = as_jax(model)
    for number in (4, 7, 1, 64):
        assert f(images(number)).shape == (number, 1)
        assert jax.jit(f)(images(number)).shape == (number, 1)
        jax.grad(partial(loss, f))(images(number))
    # Once eagerly, to find the result's shape and make variables; one graph forward and one with the gradient.
    assert len(traces) == 3
    graph = f._forward.compiled(tf.zeros((1, 8, 8, 1)))
    assert graph.experimental_get_tracing_count() == 1


def test_variables_that_change_take_effect_without_a_new_compilation():
    model, x = sequential(), images()
    f = jax.jit(lambda x: as_jax(model)(x))
    before = f(x)
    model.layers[-1].bias.assign_add([1.0, 2.0, 3.0])
    np.testing.assert_allclose(f(x), before + jnp.array([[1.0, 2.0, 3.0]]), rtol=1e-5)
    assert f._cache_size() == 1
    assert as_jax(model) == as_jax(model) != as_jax(sequential())
    assert hash(as_jax(model)) == hash(as_jax(model))


class Keeps(tf.Module):
    def __init__(self):
        super().__init__()
        self.kept = tf.Variable(tf.zeros((3, 50_000)), shape=tf.TensorShape([None, 50_000]))

    def __call__(self, x):
        self.kept.assign(x)
        return x[:, :2]


@EAGER_AND_JIT
def test_what_a_model_keeps_does_not_change_with_jax_s_memory(wrap):
    model = Keeps()
    f = wrap(lambda x: as_jax(model)(x * 2))
    for i in range(20):
        f(jnp.full((3, 50_000), float(i)))
        kept = model.kept.numpy()
        assert_same(kept, np.full((3, 50_000), 2.0 * i))


@EAGER_AND_JIT
def test_a_model_that_could_reuse_its_input_does_not_write_to_it(wrap):
    def model(x):
        return tf.nn.relu(tf.identity(x))

    x = -jnp.ones((64, 1024))
    both = wrap(lambda x: (as_jax(model)(x), x))(x)
    assert_same(both[1], -np.ones((64, 1024)))
    assert_same(x, -np.ones((64, 1024)))
    assert_same(both[0], np.zeros((64, 1024)))


@pytest.mark.parametrize("size", [1, 3, 17, 1000])
@EAGER_AND_JIT
def test_memory_of_any_alignment(wrap, size):
    """TensorFlow ends the process on memory that is not aligned to 64 bytes."""

    def model(x):
        return tf.reduce_sum(x * x, axis=1, keepdims=True) + tf.zeros((1, 2))

    x = jnp.arange(5.0 * size).reshape(5, size)
    host = np.zeros(5 * size + 1, np.float32)[1:].reshape(5, size)
    for batch in (x, host, x[1:], x[2:, ::1]):
        expected = np.square(np.asarray(batch)).sum(1)
        np.testing.assert_allclose(wrap(as_jax(model))(batch)[:, 1], expected, rtol=1e-6)
    scanned = jax.lax.map(as_jax(model), jnp.stack([x, x]))
    np.testing.assert_allclose(scanned[1, :, 0], np.square(np.asarray(x)).sum(1), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@EAGER_AND_JIT
def test_models_of_other_dtypes(dtype, wrap):
    model, x = keras.Sequential([keras.Input((5,), dtype=dtype), keras.layers.Dense(3, dtype=dtype)]), jnp.ones((2, 5))
    result, gradient = wrap(as_jax(model))(x), wrap(jax.grad(partial(loss, as_jax(model))))(x)
    expected = {"float64": jnp.float32, "float16": jnp.float16, "bfloat16": jnp.bfloat16}[dtype]
    assert result.dtype == expected
    assert_same(result.astype(jnp.float32), model(np.ones((2, 5), np.float32)).numpy().astype(np.float32))
    assert (gradient.dtype, gradient.shape) == (jnp.float32, (2, 5))
    low = wrap(as_jax(model))(x.astype(jnp.bfloat16))
    assert low.dtype == expected

    class Plain(tf.Module):
        def __init__(self):
            super().__init__()
            self.weight = tf.Variable(tf.ones((5, 3), getattr(tf, dtype)))

        def __call__(self, x):
            return x @ self.weight

    assert wrap(as_jax(Plain()))(x).dtype == expected


def test_no_copy_in_or_out():
    f, x = as_jax(lambda x: x * 2), jnp.ones((64, 1024))
    address = lambda tensor: np.asarray(memoryview(tensor)).ctypes.data  # noqa: E731
    assert address(f.view(x)) == x.unsafe_buffer_pointer()
    result = f.forward(f.view(x))
    assert address(result) % 64 == 0
    assert f.to_jax(result, private=False).unsafe_buffer_pointer() == address(result)


def broken(how):
    calls = itertools.count()

    def late(x):
        if next(calls) < 1:
            return x[:, :3]
        if how == "raises":
            raise KeyError("no such layer: conv9")
        return x[:1, :3] if how == "rows" else x

    def model(x):
        result = tf.py_function(late, [x], x.dtype)
        return tf.ensure_shape(result, [None, None])

    return model


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("raises", tf.errors.UnknownError, "no such layer: conv9"),
        ("rows", ValueError, "must return one row for each of"),
    ],
)
def test_errors_arrive_with_their_message_and_leave_the_process_usable(how, error, message):
    with pytest.raises(error, match=message):
        as_jax(broken(how))(jnp.ones((4, 5)))
    with pytest.raises((error, jax.errors.JaxRuntimeError), match=message):
        jax.block_until_ready(jax.jit(as_jax(broken(how)))(jnp.ones((4, 5))))
    assert jax.jit(as_jax(sequential()))(images()).shape == (4, 3)


def test_an_error_at_run_time_only_reaches_the_caller_of_compiled_code():
    def model(x):
        tf.debugging.assert_less(x, 5.0, message="too bright")
        return x[:, :3]

    f = jax.jit(as_jax(model))
    assert f(jnp.ones((4, 5))).shape == (4, 3)
    with pytest.raises(jax.errors.JaxRuntimeError, match="too bright"):
        jax.block_until_ready(f(jnp.full((4, 5), 9.0)))
    assert f(jnp.ones((4, 5))).shape == (4, 3)


@EAGER_AND_JIT
def test_what_is_no_classifier_is_refused(wrap):
    with pytest.raises(TypeError, match=r"model must be a Keras model, a tf.Module or a function, got 3"):
        as_jax(3)
    with pytest.raises(TypeError, match="must return a tensor, got tuple"):
        wrap(as_jax(lambda x: (x, x)))(jnp.ones((4, 5)))
    with pytest.raises(ValueError, match="must return one row for each of 2 inputs"):
        wrap(as_jax(tf.reduce_sum))(jnp.ones((4, 5)))
    with pytest.raises(TypeError, match="a model takes a floating-point batch"):
        wrap(as_jax(sequential()))(jnp.ones((4, 5), int))
    with pytest.raises((ValueError, jax.errors.JaxRuntimeError), match="does not depend on its input differentiably"):
        jax.block_until_ready(wrap(jax.grad(partial(loss, as_jax(tf.stop_gradient))))(jnp.ones((4, 5))))


def test_derivatives_that_are_not_there_say_so():
    f, x = as_jax(sequential()), images(1)
    with pytest.raises(NotImplementedError, match="second derivatives are not available"):
        jax.jacrev(jax.grad(partial(loss, f)))(x)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(f, (x,), (x,))


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_compiled_code_on_another_platform_names_the_way(monkeypatch, platform):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    with pytest.raises(NotImplementedError, match=r"use jaxsmooth.stream_votes"):
        jax.jit(as_jax(sequential()))(images())
    assert as_jax(sequential())(images()).shape == (4, 3)


@needs_proc
@pytest.mark.parametrize("megabytes", [1, 50])
def test_two_thousand_iterations_neither_hang_nor_leak(megabytes):
    f, x = as_jax(lambda x: x[:, :2] + 1), jnp.zeros((4, megabytes * 65536))

    @jax.jit
    def run(x):
        step = lambda carry, _: (carry.at[:, :2].set(f(carry)), None)  # noqa: E731
        return jax.lax.scan(step, x, length=2000)[0]

    run(x).block_until_ready()
    before = reset_peak()
    assert_same(run(x)[:, :2], np.full((4, 2), 2000))
    assert peak() - before < 150


@pytest.mark.parametrize("driver", [jaxsmooth.count_votes, jaxsmooth.stream_votes])
def test_votes_of_a_model_and_of_the_same_model_in_jax(key, driver):
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    weight, bias = (jnp.asarray(v.numpy()) for v in model.variables)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 5)), jnp.float32)
    votes = driver(as_jax(model), jaxsmooth.Gaussian(0.5), key, x, n=500, batch_size=64)
    native = jaxsmooth.count_votes(lambda x: x @ weight + bias[None], jaxsmooth.Gaussian(0.5), key, x, n=500)
    # Both see the same noise. A score that rounds differently changes a vote only where two scores tie to 1e-6.
    assert int(jnp.abs(votes - native).sum()) <= 4


ORDERS = list(itertools.permutations(["jax", "torch", "tensorflow"]))


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_three_frameworks_in_one_process_in_any_order(order):
    code = (
        f"import {', '.join(order)}"
        + """
import jax, jax.numpy as jnp, tensorflow as tf, torch
from bridges import pytorch, tensorflow
x = jnp.ones((4, 3))
linear = torch.nn.Linear(3, 2)
both = jax.jit(lambda x: (pytorch.as_jax(linear)(x), tensorflow.as_jax(tf.nn.softmax)(x)))
print(*(result.shape for result in both(x)))
"""
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout == "(4, 2) (4, 3)\n"


def test_tensorflow_comes_without_torch_and_art():
    code = "import sys, bridges.tensorflow; print(sorted({'torch', 'art', 'flax'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "[]"
