"""Whether a run can tell two classifiers that differ in what is no array."""

import functools
import operator
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import torch
from flax import linen, nnx
from jax.tree_util import Partial
from torch import nn

import bridges.equinox
import bridges.flax
import bridges.pytorch
import bridges.tensorflow
from bridges.images import with_preprocessing
from jaxsmooth import Fixed, Gaussian, certify_dataset
from jaxsmooth.descriptions import described

KEY = jax.random.key(0)
X = np.random.default_rng(0).uniform(size=(6, 4)).astype(np.float32)
IMAGES = np.random.default_rng(0).uniform(size=(6, 8, 8, 3)).astype(np.float32)


class Slope(eqx.Module):
    weight: jax.Array
    slope: float

    def __call__(self, x):
        return self.slope * x @ self.weight


class Slanted(linen.Module):
    slope: float

    @linen.compact
    def __call__(self, x):
        return linen.Dense(3)(x) + self.slope * jnp.arange(3.0)[None]


class Inclined(nnx.Module):
    def __init__(self, slope):
        self.slope = slope
        self.layer = nnx.Linear(4, 3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.layer(x) + self.slope * jnp.arange(3.0)[None]


def torch_network(slope):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.LeakyReLU(slope))


def keras_network(slope):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.LeakyReLU(slope)])


def pair(x):
    return x @ jnp.eye(4, 3), -x @ jnp.eye(4, 3)


def torch_images(scale):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    return bridges.pytorch.as_jax(bridges.pytorch.WithPreprocessing(model, mean=0.5, scale=scale))


def keras_images(scale):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(3)])
    return bridges.tensorflow.as_jax(bridges.tensorflow.WithPreprocessing(model, mean=0.5, scale=scale))


def apply(weight, x, slope=1.0):
    return slope * x @ weight


def linen_function(slope):
    module = Slanted(slope)
    return bridges.flax.as_jax(module, module.init(KEY, jnp.asarray(X)))


PAIRS = {
    "equinox number": lambda i: bridges.equinox.as_jax(Slope(jnp.eye(4, 3), (1.0, -1.0)[i])),
    "equinox output": lambda i: bridges.equinox.as_jax(
        Slope(jnp.eye(4, 3), 1.0), output=lambda result: (1 - 2 * i) * result
    ),
    "linen setting": lambda i: linen_function((0.0, 9.0)[i]),
    "nnx setting": lambda i: bridges.flax.as_jax(Inclined((0.0, 9.0)[i])),
    "nnx output": lambda i: bridges.flax.as_jax(
        nnx.Linear(4, 3, rngs=nnx.Rngs(0)), output=lambda result, i=i: (1 - 2 * i) * result
    ),
    "partial": lambda i: Partial(functools.partial(apply, slope=(1.0, -1.0)[i]), jnp.eye(4, 3)),
    "torch setting": lambda i: bridges.pytorch.as_jax(torch_network((0.1, -3.0)[i])),
    "torch output": lambda i: bridges.pytorch.as_jax(
        torch_network(0.1), output=functools.partial(operator.mul, (1, -1)[i])
    ),
    "keras setting": lambda i: bridges.tensorflow.as_jax(keras_network((0.1, 0.9)[i])),
}
OF_IMAGES = {
    "jax images": lambda i: with_preprocessing(
        Partial(lambda w, x: x.reshape(len(x), -1) @ w, jnp.eye(192, 3)), mean=(0.1, 0.9)[i]
    ),
    "torch images": lambda i: torch_images((1.0, -1.0)[i] + 2.0),
    "keras images": lambda i: keras_images((1.0, -1.0)[i] + 2.0),
}


@pytest.mark.parametrize("name", [*PAIRS, *OF_IMAGES])
def test_a_run_goes_on_with_the_same_settings_and_with_no_others(name, tmp_path):
    """All arrays are equal. Inputs are settled at once, so that only the header can tell the two apart."""
    make, x = (OF_IMAGES[name], IMAGES) if name in OF_IMAGES else (PAIRS[name], X)
    if name == "torch images":
        x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    run = functools.partial(certify_dataset, mode=Fixed(n0=5, n=20), progress=False, check=False)
    path = tmp_path / "log.tsv"
    y = np.zeros(len(x), int)
    run(make(0), Gaussian(1e-3), KEY, (x, y), path, most=4)
    assert len(run(make(0), Gaussian(1e-3), KEY, (x, y), path, most=5)) == 5
    with pytest.raises(ValueError, match="classifier: weights"):
        run(make(1), Gaussian(1e-3), KEY, (x, y), path)


def test_words_are_the_same_in_every_process():
    code = (
        "from jaxsmooth.descriptions import described\n"
        "import operator, functools, jax\n"
        "f = lambda r: sorted(r, key=lambda t: float(abs(t)))[0]\n"
        "print(described([f, jax.jit(f), operator.itemgetter(1), functools.partial(f, 2), {'a', 'b'}, object()]))"
    )
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(2)}
    assert len(runs) == 1
    assert "0x" not in runs.pop()


def test_what_a_function_closes_over_and_its_own_name_are_told_once():
    def recursive(n):
        return recursive(n - 1) if n else 0

    assert described(recursive).count("code(") == 1
    assert described(functools.partial(recursive, np.ones(2))) != described(functools.partial(recursive, np.zeros(2)))
