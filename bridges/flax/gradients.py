"""Gradients of the smoothed classifier of a flax module, by `jaxsmooth.smooth`."""

import functools
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

import jaxsmooth
from bridges.batches import few_sizes, fill_rows
from bridges.flax.functions import VotingFunction
from bridges.inputs import input_ids


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SmoothedFunction:
    """A module's smoothed classifier.

    Attributes:
        f: the module, which returns logits or log-probabilities.
        noise, key: of the copies.
        n: copies of each input.
        rows: how many go through the module at once: all copies of some inputs, or a part of the copies of one.
    """

    f: VotingFunction
    noise: jaxsmooth.Gaussian
    key: jax.Array
    n: int = field(metadata={"static": True})
    rows: int = field(metadata={"static": True})

    def gradients(self, x: np.ndarray, wanted: list[np.ndarray], *, of_loss: bool) -> list[np.ndarray]:
        """Return the gradient in x of each input's own value, `f32` like x, for each of several arrays of labels.

        That is the averaged probability of its label, or -log of it, the probability taken as 1e-20 where it is less.
        """
        ids = input_ids(x)
        # Of few inputs a whole group would be too many. Each number of them compiles a program.
        size = min(max(1, self.rows // self.n), few_sizes(len(x)))
        gradients: list[np.ndarray] = []
        for labels in wanted:
            parts: list[jax.Array] = []
            for start in range(0, len(x), size):
                some = slice(start, start + size)
                filled = (fill_rows(np.asarray(each[some]), size) for each in (x, ids, labels))
                parts.append(_gradient(self, *filled, of_loss=of_loss))
            gradients.append(np.concatenate([np.asarray(part) for part in parts])[: len(x)])
        return gradients


@functools.partial(jax.jit, static_argnames="of_loss")
def _gradient(
    smoothed: SmoothedFunction, x: jax.Array, ids: jax.Array, labels: jax.Array, *, of_loss: bool
) -> jax.Array:
    g = jaxsmooth.smooth(smoothed.f, smoothed.noise, n=smoothed.n, batch_size=smoothed.rows, ids=ids)
    if of_loss:
        return jax.grad(lambda x: jaxsmooth.cross_entropy(g(smoothed.key, x), labels).sum())(jnp.asarray(x))
    return jaxsmooth.class_gradients(g, smoothed.key, x, labels)[:, 0]
