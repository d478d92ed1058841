"""Class labels of inputs, and values picked by them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsmooth.arguments import as_array

LEAST_PROBABILITY = 1e-20
"""What a probability is taken as before its logarithm, where it is less."""


def as_labels(y: Any, number: int, classes: int) -> jax.Array:
    """Return labels as `i32[number]`, in [0, classes) where they are concrete."""
    labels = as_array("y", y, f"{number} integers", host=True)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"y must hold integers, got dtype {labels.dtype}")
    if labels.shape != (number,):
        raise ValueError(f"y must have one label for each of the {number} inputs, got shape {labels.shape}")
    if isinstance(labels, np.ndarray) and labels.size and not (labels.min() >= 0 and labels.max() < classes):
        raise ValueError(f"y must lie in [0, {classes}), got values from {labels.min()} to {labels.max()}")
    return jnp.asarray(labels, jnp.int32)


def at_labels(values: jax.Array, y: jax.Array) -> jax.Array:
    """Return the entry of each label, `[N, K] -> [N]`, NaN with a NaN gradient where a label is out of range."""
    valid = (y >= 0) & (y < values.shape[1])  # a negative index would count from the end
    taken = jnp.take_along_axis(values, jnp.where(valid, y, 0)[:, None], axis=1)[:, 0]
    return taken * jnp.where(valid, 1, jnp.nan).astype(values.dtype)


def along_rows(values: jax.Array, x: jax.Array) -> jax.Array:
    """Return one value for each row of x in a shape that broadcasts against x."""
    return values.reshape(-1, *(1,) * (x.ndim - 1))
