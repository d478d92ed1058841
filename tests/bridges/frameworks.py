"""The network of `reference` in each framework: what the shared tests run on."""

import functools
import os
from types import SimpleNamespace
from typing import ClassVar

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import tensorflow as tf
import torch
from flax import nnx
from torch import nn

import bridges.flax
import bridges.pytorch
import bridges.tensorflow
from bridges.flax import FlaxRandomizedSmoothing
from bridges.flax.backend import FlaxBackend
from bridges.pytorch import PyTorchRandomizedSmoothing
from bridges.pytorch.backend import TorchBackend
from bridges.tensorflow import TensorFlowV2RandomizedSmoothing
from bridges.tensorflow.backend import TensorFlowBackend
from tests.bridges.flax_networks import (
    LinenDropout,
    LinenLinear,
    LinenNetwork,
    NNXDropout,
    Watched,
    binary_probabilities,
    flatten,
    probabilities,
)
from tests.bridges.reference import SETTINGS, SHAPE, inputs, weights


class PyTorch:
    name = package = "pytorch"
    cls, backend = PyTorchRandomizedSmoothing, TorchBackend
    as_jax = staticmethod(bridges.pytorch.as_jax)
    losses: ClassVar = {
        "logits": nn.CrossEntropyLoss(),
        "sum": nn.CrossEntropyLoss(reduction="sum"),
        "function": nn.functional.cross_entropy,
        "rows": nn.MSELoss(),
        "probabilities": nn.BCELoss(),
        "binary logits": nn.BCEWithLogitsLoss(),
        "binary probabilities": nn.BCELoss(),
    }
    saved = model_file, optimizer_file = "net.model", "net.optimizer"
    optimizer_kind = torch.optim.Adam

    @staticmethod
    def network(outputs=3, last=None):
        layers = [nn.Linear(16, 8, bias=False), nn.Linear(8, outputs, bias=False)]
        for layer, weight in zip(layers, weights(outputs), strict=True):
            layer.weight.data = torch.tensor(weight.T.copy())
        ends = {None: [], "softmax": [nn.Softmax(1)], "sigmoid": [nn.Sigmoid()]}[last]
        return nn.Sequential(nn.Flatten(), layers[0], nn.ReLU(), layers[1], *ends)

    @staticmethod
    def linear(shape):
        return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 3))

    @classmethod
    def smoothed(cls, model=None, loss="logits", trainable=False, **changes):
        model = model or cls.network()
        if trainable:
            changes["optimizer"] = torch.optim.Adam(model.parameters(), 0.02)
        return PyTorchRandomizedSmoothing(model, cls.losses.get(loss, loss), **{**SETTINGS, **changes})

    @staticmethod
    def squared(outputs, rows):
        return ((outputs - rows) ** 2).sum()

    @staticmethod
    def with_dropout():
        layers = (nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8, 3))
        return nn.Sequential(*layers).train()

    @staticmethod
    def variables(classifier):
        return [value.clone().numpy() for value in classifier.model.state_dict().values()]

    @staticmethod
    def tensor(x):
        return torch.tensor(x)

    @staticmethod
    def dataset(x, y):
        data = torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y))
        return torch.utils.data.DataLoader(data, batch_size=64, shuffle=True)

    @staticmethod
    def watch(model):
        seen = []
        model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone().numpy()))
        return model, seen

    @staticmethod
    def scheduler(steps):
        return SimpleNamespace(step=lambda: steps.append(1))

    @staticmethod
    def model_of(dtype):
        return PyTorch.network().to(getattr(torch, dtype))


class TensorFlow:
    name = package = "tensorflow"
    cls, backend = TensorFlowV2RandomizedSmoothing, TensorFlowBackend
    as_jax = staticmethod(bridges.tensorflow.as_jax)
    losses: ClassVar = {
        "logits": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "sum": keras.losses.CategoricalCrossentropy(from_logits=True, reduction="sum"),
        "function": lambda y, scores: keras.losses.categorical_crossentropy(y, scores, from_logits=True),
        "rows": keras.losses.MeanSquaredError(),
        "probabilities": keras.losses.CategoricalCrossentropy(),
        "binary logits": keras.losses.BinaryCrossentropy(from_logits=True),
        "binary probabilities": keras.losses.BinaryCrossentropy(),
    }
    saved = optimizer_file, model_file = "net.optimizer.npz", "net.weights.h5"
    optimizer_kind = keras.optimizers.Adam

    @staticmethod
    def network(outputs=3, last=None, dtype="float32"):
        layers = [
            keras.layers.Flatten(name="0", dtype=dtype),
            keras.layers.Dense(8, use_bias=False, name="1", dtype=dtype),
            keras.layers.ReLU(name="2", dtype=dtype),
            keras.layers.Dense(outputs, use_bias=False, name="3", activation=last, dtype=dtype),
        ]
        model = keras.Sequential([keras.Input(SHAPE, dtype=dtype), *layers])
        model.set_weights(weights(outputs))
        return model

    @staticmethod
    def linear(shape):
        return keras.Sequential([keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(3)])

    @classmethod
    def smoothed(cls, model=None, loss="logits", trainable=False, **changes):
        model = model or cls.network()
        if trainable:
            changes["optimizer"] = keras.optimizers.Adam(0.02)
        loss = cls.losses[loss] if isinstance(loss, str) else loss
        return TensorFlowV2RandomizedSmoothing(model, **{"loss_object": loss, **SETTINGS, **changes})

    @staticmethod
    def squared(rows, outputs):
        return tf.reduce_sum((outputs - rows) ** 2)

    @staticmethod
    def with_dropout():
        image = {"data_format": "channels_last"}
        layers = [keras.layers.Conv2D(2, 3, padding="same", **image), keras.layers.BatchNormalization()]
        ends = [keras.layers.Dropout(0.5), keras.layers.Flatten(), keras.layers.Dense(3)]
        return keras.Sequential([keras.Input(SHAPE), *layers, *ends])

    @staticmethod
    def variables(classifier):
        return [value.numpy().copy() for value in classifier.model.weights]

    @staticmethod
    def tensor(x):
        return tf.constant(x)

    @staticmethod
    def dataset(x, y):
        return tf.data.Dataset.from_tensor_slices((x, y)).shuffle(600, seed=0).batch(64)

    @staticmethod
    def watch(model):
        seen = []

        def call(x, training=False):
            tf.py_function(lambda x: seen.append(x.numpy()), [x], [])
            return model(x, training=training)

        call.trainable_variables = model.trainable_variables
        call.variables = model.variables
        return call, seen

    @staticmethod
    def scheduler(steps):
        return steps.append

    @staticmethod
    def model_of(dtype):
        return TensorFlow.network(dtype=dtype)


class NNX:
    """A network is the arguments of the class that hold it."""

    name = "flax-nnx"
    package = "flax"
    cls, backend = FlaxRandomizedSmoothing, FlaxBackend
    losses: ClassVar = {
        "logits": optax.softmax_cross_entropy_with_integer_labels,
        "sum": lambda scores, rows: optax.softmax_cross_entropy(scores, rows).sum(),
        "function": lambda scores, rows: optax.softmax_cross_entropy(scores, rows),
        "rows": optax.l2_loss,
        "probabilities": probabilities,
        "binary logits": optax.sigmoid_binary_cross_entropy,
        "binary probabilities": binary_probabilities,
    }
    saved = optimizer_file, model_file = "net.optimizer.npz", "net.variables.npz"
    optimizer_kind = optax.GradientTransformation
    squared = staticmethod(lambda outputs, rows: ((outputs - rows) ** 2).sum())
    tensor = staticmethod(jnp.asarray)

    @staticmethod
    def as_jax(model):
        return bridges.flax.as_jax(**model)

    @staticmethod
    def network(outputs=3, last=None):
        layers = [nnx.Linear(*w.shape, use_bias=False, rngs=nnx.Rngs(0)) for w in weights(outputs)]
        for layer, weight in zip(layers, weights(outputs), strict=True):
            layer.kernel[...] = jnp.asarray(weight)
        ends = [] if last is None else [getattr(jax.nn, last)]
        return {"model": nnx.Sequential(flatten, layers[0], jax.nn.relu, layers[1], *ends)}

    @staticmethod
    def linear(shape):
        return {"model": nnx.Sequential(flatten, nnx.Linear(int(np.prod(shape)), 3, rngs=nnx.Rngs(0)))}

    @classmethod
    def smoothed(cls, model=None, loss="logits", trainable=False, **changes):
        model = cls.network() if model is None else model
        if trainable:
            changes["optimizer"] = optax.adam(0.02)
        changes.setdefault("from_logits", not (isinstance(loss, str) and "probabilities" in loss))
        model = model if isinstance(model, dict) else {"model": model}
        loss = cls.losses[loss] if isinstance(loss, str) else loss
        return FlaxRandomizedSmoothing(**{**model, "loss": loss, **SETTINGS, **changes})

    @staticmethod
    def with_dropout():
        return {"model": NNXDropout(nnx.Rngs(0))}

    @staticmethod
    def variables(classifier):
        state = nnx.state(classifier.model, lambda _, value: not isinstance(value, nnx.RngState))
        return [np.array(leaf) for leaf in jax.tree.leaves(state)]

    @staticmethod
    def dataset(x, y):
        return [(jnp.asarray(x[i : i + 64]), jnp.asarray(y[i : i + 64])) for i in range(0, len(x), 64)]

    @staticmethod
    def watch(model):
        seen = []
        note = functools.partial(jax.debug.callback, lambda x: seen.append(np.array(x)))
        return {"model": nnx.Sequential(lambda x: (note(x), x)[1], model["model"])}, seen

    @staticmethod
    def scheduler(steps):
        return steps.append

    @classmethod
    def model_of(cls, dtype):
        model = cls.network()["model"]
        # JAX has float64 only where it is enabled, and float32 in its stead elsewhere.
        dtype = jax.dtypes.canonicalize_dtype(dtype)
        nnx.update(model, jax.tree.map(lambda leaf: leaf.astype(dtype), nnx.state(model)))
        return {"model": model}


class Linen(NNX):
    name = "flax-linen"

    @staticmethod
    def linear(shape):
        model = LinenLinear()
        return {"model": model, "variables": model.init(jax.random.key(0), np.zeros((1, *shape), np.float32))}

    @staticmethod
    def network(outputs=3, last=None):
        kernels = {name: {"kernel": jnp.asarray(w)} for name, w in zip("13", weights(outputs), strict=True)}
        return {"model": LinenNetwork(outputs, last), "variables": {"params": kernels}}

    @staticmethod
    def with_dropout():
        model = LinenDropout()
        return {"model": model, "variables": model.init(jax.random.key(0), inputs(1), train=False)}

    @staticmethod
    def variables(classifier):
        return [np.array(leaf) for leaf in jax.tree.leaves(classifier.variables)]

    @staticmethod
    def watch(model):
        seen = []
        note = functools.partial(jax.debug.callback, lambda x: seen.append(np.array(x)))
        network = model["model"]
        return {**model, "model": Watched(network.outputs, network.last, note)}, seen

    @classmethod
    def model_of(cls, dtype):
        dtype = jax.dtypes.canonicalize_dtype(dtype)
        return jax.tree.map(lambda leaf: leaf.astype(dtype) if hasattr(leaf, "dtype") else leaf, cls.network())


FRAMEWORKS = [PyTorch, TensorFlow, NNX, Linen]
