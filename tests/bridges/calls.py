"""The two bridges that call a model of another framework from JAX, each with one small network, for shared tests."""

import itertools
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax.numpy as jnp
import keras
import numpy as np
import tensorflow as tf
import torch
from torch import nn

import bridges.pytorch
import bridges.tensorflow
from tests.bridges.modules import TorchModule, images, network
from tests.classifiers import assert_same


def breaks_at_second_call(how):
    """Return a function that is fine while the shape of its result is found, and fails then."""
    calls = itertools.count()

    def function(x):
        if next(calls) < 1:
            return x[:, :3]
        if how == "raises":
            raise KeyError("no such layer: conv9")
        return x[:1, :3] if how == "rows" else x

    return function


class PyTorch:
    as_jax = staticmethod(bridges.pytorch.as_jax)
    network, images = staticmethod(network), staticmethod(images)
    assert_forward = staticmethod(assert_same)
    # Compiled code has no callbacks there, or PyTorch no memory.
    platforms = ("tpu",) if torch.cuda.is_available() else ("gpu", "tpu")
    raised, compiled_raises = KeyError, ()
    rows_message = "must return one row for each of 4 inputs"
    value_rtol, gradient_close = 1e-6, {"rtol": 1e-5, "atol": 1e-7}
    # Another number of rows is another order of additions.
    rows_close, rows_gradient_close = {"rtol": 1e-5, "atol": 1e-6}, {"rtol": 1e-4, "atol": 1e-6}
    total_close, flipped_votes = {"rtol": 1e-5}, 0
    stop_gradient = staticmethod(torch.Tensor.detach)

    @staticmethod
    def forward(module, x):
        module.eval()
        with torch.no_grad():
            return module(torch.tensor(np.asarray(x))).numpy()

    @staticmethod
    def gradient(module, x):
        module.eval()
        leaf = torch.tensor(np.asarray(x), requires_grad=True)
        module(leaf).square().sum().backward()
        module.zero_grad()
        return leaf.grad.numpy()

    @staticmethod
    def watched(module, rows):
        module.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
        return module

    @staticmethod
    def add_to_bias(module):
        with torch.no_grad():
            module[5].bias += torch.tensor([1.0, 2.0, 3.0])

    @staticmethod
    def linear():
        module = nn.Linear(5, 3)
        weight, bias = (jnp.asarray(p.detach().numpy()) for p in (module.weight, module.bias))
        return module, weight.T, bias

    @staticmethod
    def broken(how):
        return TorchModule(breaks_at_second_call(how))

    @staticmethod
    def of(function):
        return TorchModule(function)


class TensorFlow:
    as_jax = staticmethod(bridges.tensorflow.as_jax)
    platforms = ("gpu", "tpu")
    raised, compiled_raises = tf.errors.UnknownError, (tf.errors.UnknownError, ValueError)
    rows_message = "must return one row for each of"
    value_rtol, gradient_close = 1e-5, {"rtol": 1e-4, "atol": 1e-6}
    rows_close, rows_gradient_close = {"rtol": 1e-4, "atol": 1e-5}, {"rtol": 1e-4, "atol": 1e-5}
    total_close, flipped_votes = {"rtol": 1e-4, "atol": 1e-5}, 2
    stop_gradient = staticmethod(tf.stop_gradient)

    @staticmethod
    def assert_forward(actual, expected):
        """Compare as closely as a graph that TensorFlow optimizes allows."""
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)

    @staticmethod
    def layers():
        return [
            keras.layers.Conv2D(4, 3, strides=2),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Dropout(0.5),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]

    @classmethod
    def network(cls):
        keras.utils.set_random_seed(0)
        return keras.Sequential([keras.Input((8, 8, 1)), *cls.layers()])

    @staticmethod
    def images(number=4, seed=0):
        return jnp.asarray(np.random.default_rng(seed).normal(size=(number, 8, 8, 1)), jnp.float32)

    @staticmethod
    def call(model, x):
        try:
            return model(x, training=False)
        except TypeError:
            return model(x)

    @classmethod
    def forward(cls, model, x):
        return np.asarray(cls.call(model, tf.constant(np.asarray(x))))

    @classmethod
    def gradient(cls, model, x):
        x = tf.constant(np.asarray(x))
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.reduce_sum(cls.call(model, x) ** 2)
        return tape.gradient(value, x).numpy()

    @staticmethod
    def watched(model, rows):
        def watch(x):
            tf.py_function(lambda x: rows.append(len(x)), [x], [])
            return model(x, training=False)

        return watch

    @staticmethod
    def add_to_bias(model):
        model.layers[-1].bias.assign_add([1.0, 2.0, 3.0])

    @staticmethod
    def linear():
        model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
        return model, *(jnp.asarray(v.numpy()) for v in model.variables)

    @staticmethod
    def broken(how):
        late = breaks_at_second_call(how)
        return lambda x: tf.ensure_shape(tf.py_function(late, [x], x.dtype), [None, None])

    @staticmethod
    def of(function):
        return function


BRIDGES = [PyTorch, TensorFlow]
