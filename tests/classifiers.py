"""Classifiers whose truth is known exactly, and whose rows do not depend on the batch."""

import jax
import jax.numpy as jnp
import numpy as np


def first_features(x):
    """Score each class by one feature: no arithmetic, so that no batch size or program can change a bit."""
    return x.reshape(len(x), -1)[:, :3]


def scaled_features(weights, x):
    """The same with one weight a class, for use with `jax.tree_util.Partial`."""
    return weights[None, :] * x[:, :3]


def half_space(x):
    """Class 0 where the first feature is positive: p = CDF(margin), and the true radius is the margin."""
    return jnp.stack([x[:, 0], -x[:, 0]], axis=1)


def grid_of_features(x):
    """Score two classes in each of 2 x 3 components: component (i, j) is the half space of feature 3 i + j."""
    features = x[:, :6].reshape(len(x), 2, 3)
    return jnp.stack([features, -features], axis=-1)


def one_of_the_grid(row, column):
    """Return the classifier that is one component of `grid_of_features`."""

    def f(x):
        return grid_of_features(x)[:, row, column]

    return f


def inputs(number, event=(5,), seed=0):
    """Inputs near the decision boundaries of `first_features` at noise of scale 1."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=(number, *event)), jnp.float32)


def assert_same(a, b):
    """Compare pytrees of arrays to the bit."""
    jax.tree.map(np.testing.assert_array_equal, a, b)
