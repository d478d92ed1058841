"""The user's loss of (outputs, labels), as optax's are: labels in its form, loss by row, what it takes for scores."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bridges.inputs import as_targets
from jaxsmooth.arguments import as_flag

_INDEX = (
    optax.softmax_cross_entropy_with_integer_labels,
    optax.losses.multiclass_hinge_loss,
    optax.losses.multiclass_perceptron_loss,
    optax.losses.multiclass_sparsemax_loss,
)
_LOG_PROBABILITIES = (optax.kl_divergence, optax.losses.kl_divergence_with_log_targets)


class Loss:
    """A loss of (outputs, labels): a function of optax, or any function, of one row or many.

    Args:
        function: the loss.
        classes: number of classes.
        from_logits: whether the model returns logits or probabilities; a loss that takes log-probabilities says so.
    """

    def __init__(self, function: Any, classes: int, from_logits: bool) -> None:
        if not callable(function) or isinstance(function, type):
            raise TypeError(f"loss must be a function of (outputs, labels), got {function!r}")
        self.function: Any = function
        self.classes = classes
        self.from_logits = as_flag("from_logits", from_logits)

    @property
    def takes_indices(self) -> bool:
        """Whether the loss takes class indices rather than one row for each input."""
        return _unwrapped(self.function) in _INDEX

    @property
    def output(self) -> str:
        """What it takes the model's outputs for."""
        if _unwrapped(self.function) in _LOG_PROBABILITIES:
            return "log-probabilities"
        return "logits" if self.from_logits else "probabilities"

    def two_columns(self, scores: jax.Array) -> jax.Array:
        """Return scores of two classes from the one output of a binary model.

        Raises:
            ValueError: it is not known that the output is that of a binary model.
        """
        name = getattr(_unwrapped(self.function), "__name__", "")
        if "binary" not in name and "sigmoid" not in name:
            raise ValueError(
                "a model with one output needs optax.sigmoid_binary_cross_entropy as its loss, or one with 'binary' or "
                f"'sigmoid' in its name, got {self.function!r}"
            )
        return jnp.concatenate([-scores if self.from_logits else 1 - scores, scores], axis=1)

    def labels(self, y: Any, number: int, width: int) -> np.ndarray:
        """Return labels in the form that the loss takes, for outputs `[number, width]`."""
        return as_targets(y, number, self.classes, width, indices=self.takes_indices)

    def __call__(self, scores: jax.Array, labels: jax.Array) -> jax.Array:
        """Return the loss as one number: the mean, if the function returns several."""
        return self.function(scores, labels).mean()

    def by_row(self, scores: jax.Array, labels: jax.Array) -> jax.Array:
        """Return the loss of each row, also of a function that adds rows up."""
        if self.function(scores, labels).ndim == 0:
            return jax.vmap(lambda row, label: self.function(row[None], label[None]))(scores, labels)
        return self.function(scores, labels).reshape(len(scores), -1).mean(axis=1)


def _unwrapped(function: Any) -> Any:
    """Return what a partial function is of."""
    return function.func if isinstance(function, functools.partial) else function
