"""The user's loss of (outputs, labels), as optax's are, read without changing it."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bridges import losses
from bridges.losses import LOG_PROBABILITIES, LOGITS, unwrapped

_TAKE_INDICES = (
    optax.softmax_cross_entropy_with_integer_labels,
    optax.losses.multiclass_hinge_loss,
    optax.losses.multiclass_perceptron_loss,
    optax.losses.multiclass_sparsemax_loss,
)
_LOGITS = (
    *(optax.softmax_cross_entropy_with_integer_labels, optax.softmax_cross_entropy),
    *(optax.sigmoid_binary_cross_entropy, optax.sigmoid_focal_loss, optax.losses.multiclass_sparsemax_loss),
)
_LOG_PROBABILITIES = (optax.kl_divergence, optax.losses.kl_divergence_with_log_targets)


class Loss(losses.Loss):
    """A loss of (outputs, labels): a function of optax, or any function, of one row or many."""

    binary_loss = "optax.sigmoid_binary_cross_entropy, or a loss with 'binary' or 'sigmoid' in its name,"

    def __init__(self, function: Any, classes: int, from_logits: Any) -> None:
        if function is None:
            raise TypeError("loss must be a function of (outputs, labels), got None")
        super().__init__("loss", function, classes, from_logits)

    def read_by_loss(self) -> str | None:
        """Return what the loss takes the outputs for; None if it does not say."""
        function = unwrapped(self.function)
        if function in _LOG_PROBABILITIES:
            return LOG_PROBABILITIES
        return LOGITS if function in _LOGITS else None

    @property
    def is_binary(self) -> bool | None:
        """Whether the loss is of one output for two classes; None if it is not known."""
        name = getattr(unwrapped(self.function), "__name__", "")
        if "binary" in name or "sigmoid" in name:
            return True
        return False if self.takes_indices or "softmax" in name else None

    @property
    def takes_indices(self) -> bool:
        """Whether the loss takes class indices: of optax's losses it is known, others are tried."""
        function = unwrapped(self.function)
        if str(getattr(function, "__module__", "")).startswith("optax."):
            return function in _TAKE_INDICES
        return self.tried()[0]

    @property
    def takes_rows(self) -> bool:
        """Whether the loss takes one row of numbers for each input."""
        return not self.takes_indices or (unwrapped(self.function) not in _TAKE_INDICES and self.tried()[1])

    def try_labels(self) -> tuple[bool, bool]:
        """Try class indices, and rows, on scores that say nothing, without running the loss."""
        run = partial(jax.eval_shape, self.function)
        scores = jax.ShapeDtypeStruct((self.classes + 1, self.classes), jnp.float32)
        indices = jax.ShapeDtypeStruct((self.classes + 1,), jnp.int32)
        return losses.accepts(run, scores, indices), losses.accepts(run, scores, scores)

    @property
    def takes_signs(self) -> bool:
        """Whether labels are -1 and 1 in the rows that the loss takes, not 0 and 1."""
        return unwrapped(self.function) in (optax.hinge_loss, optax.losses.perceptron_loss)

    @property
    def takes_log_rows(self) -> bool:
        """Whether the rows that the loss takes are log-probabilities."""
        return unwrapped(self.function) is optax.losses.kl_divergence_with_log_targets

    def columns(self, outputs: jax.Array) -> jax.Array:
        """Return scores of two classes from the one output of a binary network."""
        return self.two_columns(outputs, lambda columns: jnp.concatenate(columns, axis=1))

    def __call__(self, scores: jax.Array, labels: jax.Array) -> jax.Array:
        """Return the loss as one number: the mean, if the function returns several."""
        return self.function(scores, labels).mean()

    def reduced(self, scores: jax.Array, labels: jax.Array, reduction: str) -> jax.Array:
        """Return the loss of each row, or its mean or sum, also of a function that adds rows up."""
        values = self.function(scores, labels)
        if values.ndim == 0:
            rows = jax.vmap(lambda row, label: self.function(row[None], label[None]))(scores, labels)
            if reduction != "mean":
                return rows if reduction == "none" else rows.sum()
            # Of all rows twice, the sum is twice as large, and the mean, with the weights of the loss, is the same.
            twice = self.function(jnp.concatenate([scores, scores]), jnp.concatenate([labels, labels]))
            return jnp.where(jnp.abs(twice - 2 * values) < jnp.abs(twice - values), rows.mean(), values)
        by_row = values.reshape(len(scores), -1).mean(axis=1)
        return {"none": by_row, "mean": by_row.mean(), "sum": by_row.sum()}[reduction]
