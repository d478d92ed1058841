"""A TensorFlow model as a JAX function: the same numbers under every transformation, one graph for every batch size."""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import tensorflow as tf

from bridges.tensorflow import as_jax
from tests.bridges.calls import TensorFlow
from tests.bridges.modules import WRAPS, loss
from tests.classifiers import assert_same

pytestmark = pytest.mark.usefixtures("watchdog")


def unbuilt():
    return keras.Sequential(TensorFlow.layers())


def functional():
    x = start = keras.Input((8, 8, 1))
    for layer in TensorFlow.layers():
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


KINDS = [TensorFlow.network, unbuilt, functional, nested, Subclassed, WithoutTraining, Module, CompiledModule, function]
KINDS += [lambda: tf.function(function()), lambda: tf.function(TensorFlow.network())]
EAGER_AND_JIT = pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@EAGER_AND_JIT
def test_every_kind_of_model(kind, wrap):
    model, x = kind(), TensorFlow.images()
    result = wrap(as_jax(model))(x)
    np.testing.assert_allclose(result, TensorFlow.forward(model, x), rtol=1e-5, atol=1e-6)
    gradient = wrap(jax.grad(partial(loss, as_jax(model))))(x)
    np.testing.assert_allclose(gradient, TensorFlow.gradient(model, x), rtol=1e-4, atol=1e-6)


@EAGER_AND_JIT
def test_the_model_is_left_as_it_was(wrap):
    model, x = TensorFlow.network(), TensorFlow.images()
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
        assert f(TensorFlow.images(number)).shape == (number, 1)
        assert jax.jit(f)(TensorFlow.images(number)).shape == (number, 1)
        jax.grad(partial(loss, f))(TensorFlow.images(number))
    # Once eagerly, to find the result's shape and make variables; one graph forward and one with the gradient.
    assert len(traces) == 3


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


def test_an_error_at_run_time_only_reaches_the_caller_of_compiled_code():
    def model(x):
        tf.debugging.assert_less(x, 5.0, message="too bright")
        return x[:, :3]

    f = jax.jit(as_jax(model))
    assert f(jnp.ones((4, 5))).shape == (4, 3)
    with pytest.raises(jax.errors.JaxRuntimeError, match="too bright"):
        jax.block_until_ready(f(jnp.full((4, 5), 9.0)))
    assert f(jnp.ones((4, 5))).shape == (4, 3)


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match=r"model must be a Keras model, a tf.Module or a function, got 3"):
        as_jax(3)


# Each comes before and after each other one.
ORDERS = [("jax", "torch", "tensorflow"), ("tensorflow", "torch", "jax")]


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
