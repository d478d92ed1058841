"""Classifiers with parameters, of three kinds, are compiled once: new parameters are new values."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx
from jax.tree_util import Partial

from jaxsmooth import Gaussian, certify, class_gradients, smooth
from tests.classifiers import inputs

TRACES = []


class Equinox(NamedTuple):
    """A pytree that can be called, as an Equinox module is."""

    weights: jax.Array

    def __call__(self, x):
        TRACES.append(1)
        return x @ self.weights


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        TRACES.append(1)
        return linen.Dense(3)(x)


class NNX(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        TRACES.append(1)
        return self.dense(x)


def equinox(seed):
    return Equinox(jax.random.normal(jax.random.key(seed), (5, 3)))


def linen_partial(seed):
    return Partial(MODULE.apply, MODULE.init(jax.random.key(seed), jnp.zeros((1, 5))))


def nnx_partial(seed):
    graph, state = nnx.split(NNX(nnx.Rngs(seed)))
    return Partial(apply_nnx, graph, state)


def apply_nnx(graph, state, x):
    return nnx.merge(graph, state)(x)


MODULE = Linen()


@pytest.mark.parametrize("make", [equinox, linen_partial, nnx_partial])
def test_new_parameters_compile_nothing_again(key, make):
    first, second = make(0), make(1)
    TRACES.clear()

    def both(f):
        label = certify(f, Gaussian(0.5), key, inputs(4), n0=10, n=50).label
        return label, class_gradients(smooth(f, Gaussian(0.5), n=20), key, inputs(4))

    _, before = both(first)
    traced = len(TRACES)
    _, after = both(second)
    assert traced > 0
    assert len(TRACES) == traced
    assert jnp.abs(before - after).max() > 1e-3
