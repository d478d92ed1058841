"""Odd inputs, votes, levels and sizes for the functions of the core, beside the good ones."""

from pathlib import Path
from tempfile import mkdtemp

import jax.numpy as jnp
import numpy as np

from tests.bad_input.harness import Same
from tests.bad_input.values import (
    ANYTHING,
    CLASSIFIERS,
    INTEGERS,
    KEYS,
    NOISES,
    NUMBERS,
    changed_arrays,
    constants,
    forms_of_array,
    forms_of_integer,
)


def scores(x):
    return x.reshape(len(x), -1)[:, :3]


def inputs():
    return np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)


def counts():
    return np.array([[8, 2, 0], [5, 5, 0], [0, 0, 0]], np.int32)


def folder() -> Path:
    return Path(mkdtemp(prefix="bad-input-"))


X = [*ANYTHING, *forms_of_array(inputs), *changed_arrays(inputs)]
IDS = [
    *constants(Same(None), [0], [0.0, 1.0, 2.0], [-1, 0, 1], [2**32, 0, 1], "ids", 5, [[0, 1, 2]], [True, False, True]),
    lambda: Same([0, 1, 2]),
    lambda: Same(np.arange(3, dtype=">i2")),
    lambda: Same(jnp.arange(3)),
    *ANYTHING,
]
FIRST = [*constants(-1, 2**32, 2**32 - 9, 0.5, None, "0", True, [0]), lambda: jnp.int32(-1), lambda: Same(np.uint8(0))]
COUNTS = [
    *ANYTHING,
    *forms_of_array(counts),
    *changed_arrays(counts),
    lambda: counts() - 1,
    lambda: counts() * 100,
    lambda: counts()[:, :1],
    lambda: Same(counts().astype(np.int64)),
    lambda: Same(counts().astype(np.uint8)),
]
LEVELS = [*NUMBERS, *ANYTHING]
LOST = [
    *constants("lost", 0.5, [0.0], [0.0, -1.0, 0.0], [0.0, float("nan"), 0.0], [[0.0, 0.0, 0.0]], float("inf")),
    lambda: Same(np.zeros(3)),
    lambda: Same([0.0, 0.0, 0.0]),
    lambda: np.full(3, np.inf),
    lambda: np.zeros(3, complex),
]
ALPHA = [*LEVELS, lambda: Same(np.float64(0.01)), lambda: Same(np.array(0.01))]
N = [*INTEGERS, *forms_of_integer(10)]
SAMPLING = {"f": CLASSIFIERS, "noise": NOISES, "key": KEYS, "x": X, "n": N, "batch_size": N, "ids": IDS}
# An input of another shape makes f return too few classes.
WORDS = {"noise": ("the scale of", "sigma"), "x": ("f must",)}
