"""The user's TensorFlow loss, read without changing it."""

import inspect
from typing import Any

import keras
import tensorflow as tf

from bridges import losses
from bridges.losses import LOGITS, PROBABILITIES, unwrapped

_REDUCTIONS = {"none": None, "mean": "sum_over_batch_size", "sum": "sum"}


class Loss(losses.Loss):
    """A loss of (labels, scores): an object of `keras.losses`, one of its functions, or any function; None for none."""

    binary_loss = "keras.losses.BinaryCrossentropy"
    of = "labels and outputs, such as keras.losses.get(name)"

    def __init__(self, function: Any, classes: int, from_logits: Any) -> None:
        super().__init__("loss_object", function, classes, from_logits)

    def read_by_loss(self) -> str | None:
        """Return what the loss takes the outputs for; None if it does not say."""
        function = self.function
        if isinstance(function, keras.losses.Loss):
            said = getattr(function, "from_logits", None)
            if said is None:  # losses of a function keep its arguments
                said = getattr(function, "_fn_kwargs", {}).get("from_logits")
        else:
            said = _default(function, "from_logits")
        return None if said is None else (LOGITS if said else PROBABILITIES)

    @property
    def is_binary(self) -> bool | None:
        """Whether the loss is of one output for two classes; None if it is not known."""
        name = _names(self.function)
        if "binary" in name:
            return True
        return False if "categorical" in name else None

    @property
    def takes_indices(self) -> bool:
        """Whether the loss takes class indices."""
        return "sparse" in _names(self.function)

    def columns(self, outputs: Any) -> Any:
        """Return scores of two classes from the one output of a binary network."""
        return self.two_columns(outputs, lambda columns: tf.concat(columns, axis=1))

    def __call__(self, scores: Any, labels: Any) -> Any:
        """Return the loss under its own reduction, as one number."""
        return tf.reduce_mean(self.checked()(labels, scores))

    def reduced(self, scores: Any, labels: Any, reduction: str) -> Any:
        """Return the loss of each row, or the loss's own mean or sum of them. The user's object stays as it is."""
        values = self._with_reduction(reduction)(labels, scores)
        if values.shape.rank == 0:
            by_row = self._with_reduction("none")
            rows = by_row(labels, scores)
            if rows.shape.rank != 0:
                return values  # a Keras loss under a reduction that it knows
            pairs = labels[:, None], scores[:, None]
            rows = tf.map_fn(lambda pair: by_row(*pair), pairs, fn_output_signature=scores.dtype)
            if reduction != "mean":
                return rows if reduction == "none" else tf.reduce_sum(rows)
            own = self(scores, labels)
            # Of all rows twice, the sum is twice as large, and the mean, with the weights of the loss, is the same.
            twice = self(tf.concat([scores, scores], 0), tf.concat([labels, labels], 0))
            return tf.where(abs(twice - 2 * own) < abs(twice - own), tf.reduce_mean(rows), own)
        rows = tf.reduce_mean(tf.reshape(values, [tf.shape(scores)[0], -1]), axis=1)
        return {"none": tf.identity, "mean": tf.reduce_mean, "sum": tf.reduce_sum}[reduction](rows)

    def _with_reduction(self, reduction: str) -> Any:
        """Return the loss, a Keras object under another reduction."""
        function: Any = self.checked()
        if not isinstance(function, keras.losses.Loss):
            return function
        # Keras copies by its registry of classes, which does not know the user's.
        own: Any = object.__new__(type(function))
        vars(own).update(vars(function))
        own.reduction = _REDUCTIONS[reduction]
        return own


def _names(function: Any) -> str:
    """Return the names of a function, or of an object's class and those it derives from."""
    function = unwrapped(function)
    name = getattr(function, "__name__", None)
    return (name or " ".join(base.__name__ for base in type(function).__mro__)).lower()


def _default(function: Any, name: str) -> bool | None:
    """Return the default of an argument of a function; None if it has none."""
    try:
        parameter = inspect.signature(function).parameters[name]
    except (TypeError, ValueError, KeyError):
        return None
    return None if parameter.default is inspect.Parameter.empty else bool(parameter.default)
