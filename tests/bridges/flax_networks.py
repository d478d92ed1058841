"""The small networks and losses of the shared tests in flax."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx


class FlattenModule(linen.Module):
    def __call__(self, x):
        return x.reshape(len(x), -1)


class ReLUModule(linen.Module):
    def __call__(self, x):
        return jax.nn.relu(x)


class LinenNetwork(linen.Module):
    outputs: int
    last: str | None

    @linen.compact
    def __call__(self, x):
        scores = linen.Dense(8, use_bias=False, name="1")(FlattenModule(name="0")(x))
        scores = linen.Dense(self.outputs, use_bias=False, name="3")(ReLUModule(name="2")(scores))
        return scores if self.last is None else getattr(jax.nn, self.last)(scores)


class LinenLinear(linen.Module):
    """One dense layer."""

    @linen.compact
    def __call__(self, x):
        return linen.Dense(3)(flatten(x))


class LinenDropout(linen.Module):
    @linen.compact
    def __call__(self, x, train):
        x = linen.BatchNorm(use_running_average=not train)(linen.Conv(2, (3, 3))(x))
        return linen.Dense(3)(linen.Dropout(0.5)(x, deterministic=not train).reshape(len(x), -1))


class NNXDropout(nnx.Module):
    def __init__(self, rngs):
        self.conv, self.norm = nnx.Conv(4, 2, (3, 3), rngs=rngs), nnx.BatchNorm(2, rngs=rngs)
        self.dropout, self.dense = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.dense(self.dropout(self.norm(self.conv(x))).reshape(len(x), -1))


def flatten(x):
    return x.reshape(len(x), -1)


class Watched(LinenNetwork):
    note: Any

    @linen.compact
    def __call__(self, x):
        self.note(x)
        return super().__call__(x)


def binary_probabilities(outputs, rows):
    return -(rows * jnp.log(outputs) + (1 - rows) * jnp.log(1 - outputs))


def probabilities(outputs, rows):
    return -(rows * jnp.log(outputs)).sum(1)
