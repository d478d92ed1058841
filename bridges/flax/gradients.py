"""Gradients of the smoothed classifier of a flax module, by `jaxsmooth.smooth`."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

import jaxsmooth
from bridges.batches import few_sizes, fill_rows
from bridges.flax.functions import VotingFunction
from bridges.inputs import input_ids


@dataclass(frozen=True)
class SmoothedFunction:
    """A module's smoothed classifier at some inputs.

    Attributes:
        f: the module, which returns logits or log-probabilities.
        noise, key: of the copies.
        x: inputs.
        n: copies of each.
        rows: how many go through the module at once: all copies of some inputs, or a part of the copies of one.
    """

    f: VotingFunction
    noise: jaxsmooth.Gaussian
    key: jax.Array
    x: np.ndarray
    n: int
    rows: int

    def gradient(self, labels: np.ndarray, *, of_loss: bool) -> np.ndarray:
        """Return the gradient in x of each input's own value, `f32` like x.

        That is the averaged probability of its label, or -log of it, the probability taken as 1e-20 where it is less.
        """
        size = max(1, self.rows // self.n)
        ids = input_ids(self.x)
        parts: list[jax.Array] = []
        for start in range(0, len(self.x), size):
            some = slice(start, start + size)
            # Of few inputs a whole group would be too many. Each number of them compiles a program.
            inputs = min(size, few_sizes(len(self.x)))
            arrays = (fill_rows(np.asarray(each), inputs) for each in (self.x[some], ids[some], labels[some]))
            parts.append(_gradient(self.f, self.noise, self.key, *arrays, self.n, self.rows, of_loss))
        return np.concatenate([np.asarray(part) for part in parts])[: len(self.x)]


@functools.partial(jax.jit, static_argnums=(6, 7, 8))
def _gradient(
    f: VotingFunction,
    noise: jaxsmooth.Gaussian,
    key: jax.Array,
    x: jax.Array,
    ids: jax.Array,
    labels: jax.Array,
    n: int,
    rows: int,
    of_loss: bool,
) -> jax.Array:
    g = jaxsmooth.smooth(f, noise, n=n, batch_size=rows, ids=ids)
    if of_loss:
        return jax.grad(lambda x: jaxsmooth.cross_entropy(g(key, x), labels).sum())(jnp.asarray(x))
    return jaxsmooth.class_gradients(g, key, x, labels)[:, 0]
