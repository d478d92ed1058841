"""The same small networks in three frameworks, with the ways to run them that are compared.

- bare: the network itself, on ready-made inputs, a batch at a time, or its plain training loop.
- loop: one image after the other in the style of Cohen et al.'s script, with the framework's own random numbers.
- ours, art: the smoothing classes, ART's where it has one and is installed.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import tensorflow as tf
import torch
from torch import nn

from bridges.flax import FlaxRandomizedSmoothing
from bridges.pytorch import PyTorchRandomizedSmoothing
from bridges.tensorflow import TensorFlowV2RandomizedSmoothing
from tests.benchmarks import models, pytorch_certify, tensorflow_certify

SIGMA = 0.25


class Contenders(NamedTuple):
    """One network in one framework.

    Attributes:
        shape: of one input.
        forward: runs the network on a ready-made batch of this many rows, as often as asked.
        count: the votes for each class on noisy copies of one image, in the framework's own way.
        step: runs forward and backward of a mean loss in the input, likewise.
        epoch: trains one epoch on inputs and labels, in the framework's own way.
        ours, art: the classes, None where there is none.
        wait: until the weights of ours are there, for training may return before.
    """

    shape: tuple[int, ...]
    forward: Callable[[int, int], None]
    count: Callable[[np.ndarray, int, int], np.ndarray]
    step: Callable[[int, int], None]
    epoch: Callable[[np.ndarray, np.ndarray, int], None]
    ours: Any
    art: Any
    wait: Callable[[], Any] = lambda: None


def _art(name: str, *arguments: Any, **settings: Any) -> Any:
    if importlib.util.find_spec("art") is None:
        return None
    return getattr(importlib.import_module("art.estimators.certification.randomized_smoothing"), name)(
        *arguments, **settings
    )


def pytorch(name: str) -> Contenders:
    """Return the contenders of a network in PyTorch."""
    build, shape, _ = pytorch_certify.NETWORKS[name]
    network, loss = build().eval(), nn.CrossEntropyLoss()
    settings: dict[str, Any] = {"loss": loss, "input_shape": shape, "nb_classes": 10, "scale": SIGMA}

    def optimizer() -> torch.optim.Optimizer:
        return torch.optim.SGD(network.parameters(), 1e-4)

    def forward(rows: int, times: int) -> None:
        x = torch.randn(rows, *shape)
        with torch.inference_mode():
            for _ in range(times):
                network(x)

    def count(x: np.ndarray, n: int, rows: int) -> np.ndarray:
        image, votes = torch.tensor(x), np.zeros(10, int)
        with torch.inference_mode():
            for start in range(0, n, rows):
                batch = image.repeat((min(rows, n - start), *[1] * len(shape)))
                classes = network(batch + torch.randn_like(batch) * SIGMA).argmax(1).numpy()
                votes += np.bincount(classes, minlength=10)
        return votes

    def step(rows: int, times: int) -> None:
        y = torch.zeros(rows, dtype=torch.long)
        for _ in range(times):
            x = torch.randn(rows, *shape, requires_grad=True)
            torch.autograd.grad(loss(network(x), y), x)

    def epoch(x: np.ndarray, y: np.ndarray, rows: int) -> None:
        network.train()
        trained = optimizer()
        for start in range(0, len(x), rows):
            noisy = torch.tensor(x[start : start + rows])
            trained.zero_grad()
            loss(network(noisy + SIGMA * torch.randn_like(noisy)), torch.tensor(y[start : start + rows])).backward()
            trained.step()
        network.eval()

    ours = PyTorchRandomizedSmoothing(network, optimizer=optimizer(), seed=0, **settings)
    art = _art("PyTorchRandomizedSmoothing", network, optimizer=optimizer(), **settings)
    return Contenders(shape, forward, count, step, epoch, ours, art)


def tensorflow(name: str) -> Contenders:  # noqa: C901
    """Return the contenders of a network in TensorFlow."""
    build, shape, _ = tensorflow_certify.NETWORKS[name]
    network = build()
    function = tf.function(lambda x: network(x, training=False), reduce_retracing=True)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    settings: dict[str, Any] = {"input_shape": shape, "nb_classes": 10, "scale": SIGMA, "loss_object": loss}
    trained = keras.optimizers.SGD(1e-4)

    @tf.function(reduce_retracing=True)
    def gradient(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = loss(y, network(x, training=False))
        return tape.gradient(value, x)

    @tf.function(reduce_retracing=True)
    def train(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            value = loss(y, network(x, training=True))
        variables = network.trainable_variables
        trained.apply(tape.gradient(value, variables), variables)

    def forward(rows: int, times: int) -> None:
        x = tf.random.normal((rows, *shape))
        for _ in range(times):
            function(x).numpy()

    def count(x: np.ndarray, n: int, rows: int) -> np.ndarray:
        votes = np.zeros(10, int)
        for start in range(0, n, rows):
            noise = tf.random.normal((min(rows, n - start), *shape), stddev=SIGMA)
            votes += np.bincount(tf.argmax(function(x + noise), 1).numpy(), minlength=10)
        return votes

    def step(rows: int, times: int) -> None:
        x, y = tf.random.normal((rows, *shape)), tf.zeros(rows, tf.int32)
        for _ in range(times):
            gradient(x, y).numpy()

    def epoch(x: np.ndarray, y: np.ndarray, rows: int) -> None:
        for start in range(0, len(x), rows):
            batch = tf.constant(x[start : start + rows])
            train(batch + tf.random.normal(batch.shape, stddev=SIGMA), tf.constant(y[start : start + rows]))

    ours = TensorFlowV2RandomizedSmoothing(network, optimizer=keras.optimizers.SGD(1e-4), seed=0, **settings)
    art = _art("TensorFlowV2RandomizedSmoothing", network, optimizer=keras.optimizers.SGD(1e-4), **settings)
    return Contenders(shape, forward, count, step, epoch, ours, art)


def flax(name: str) -> Contenders:
    """Return the contenders of a network in Flax; ART has no class for it."""
    module, shape, _ = models.MODELS[name]
    network = module()
    variables = network.init(jax.random.key(0), jnp.zeros((1, *shape)))
    apply = jax.jit(network.apply)

    def mean_loss(variables: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(network.apply(variables, x), y).mean()

    gradient, of_weights = jax.jit(jax.grad(mean_loss, 1)), jax.jit(jax.grad(mean_loss))
    noisy = jax.jit(lambda x, key, rows: x + SIGMA * jax.random.normal(key, (rows, *shape)), static_argnums=2)
    update = jax.jit(lambda variables, step: jax.tree.map(lambda v, g: v - 1e-4 * g, variables, step))

    def forward(rows: int, times: int) -> None:
        x = jax.random.normal(jax.random.key(0), (rows, *shape))
        for _ in range(times):
            apply(variables, x).block_until_ready()

    def count(x: np.ndarray, n: int, rows: int) -> np.ndarray:
        votes = np.zeros(10, int)
        for start in range(0, n, rows):
            batch = noisy(x, jax.random.key(start), rows)
            classes = np.asarray(apply(variables, batch).argmax(axis=1))[: n - start]
            votes += np.bincount(classes, minlength=10)
        return votes

    def step(rows: int, times: int) -> None:
        x, y = jax.random.normal(jax.random.key(0), (rows, *shape)), jnp.zeros(rows, jnp.int32)
        for _ in range(times):
            gradient(variables, x, y).block_until_ready()

    def epoch(x: np.ndarray, y: np.ndarray, rows: int) -> None:
        weights = variables
        for start in range(0, len(x), rows):
            batch = noisy(x[start : start + rows], jax.random.key(start), rows)
            weights = update(weights, of_weights(weights, batch, y[start : start + rows]))
        jax.block_until_ready(weights)

    ours = FlaxRandomizedSmoothing(
        network,
        optax.softmax_cross_entropy_with_integer_labels,
        shape,
        10,
        variables=variables,
        optimizer=optax.sgd(1e-4),
        scale=SIGMA,
        seed=0,
    )
    wait = lambda: jax.block_until_ready(ours.variables)  # noqa: E731
    return Contenders(shape, forward, count, step, epoch, ours, None, wait)


FRAMEWORKS: dict[str, tuple[Callable[[str], Contenders], tuple[str, ...]]] = {
    "torch": (pytorch, tuple(pytorch_certify.NETWORKS)),
    "tensorflow": (tensorflow, ("mlp 64", "cnn 32x32x3", "resnet-20 32x32x3")),
    "flax": (flax, tuple(models.MODELS)),
}
"""Name -> (maker of contenders, networks: an MLP, a small CNN, a ResNet-20)."""
