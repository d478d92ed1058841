"""The user's TensorFlow loss, read without changing it: labels in its form, loss by row, what it takes for scores."""

import copy
import functools
import inspect
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from bridges.inputs import as_targets

_NORMALISED = (keras.activations.softmax, keras.activations.sigmoid)


class Loss:
    """A loss of (labels, scores): an object of `keras.losses`, one of its functions, or any function.

    Args:
        function: the loss; None if there is none, for a classifier that is only certified.
        classes: number of classes.
        model: what the loss is for; where the loss does not say what it takes, the model's last layer does.
    """

    def __init__(self, function: Any, classes: int, model: Any) -> None:
        if function is not None and (not callable(function) or isinstance(function, type)):
            raise TypeError(f"loss_object must be a Keras loss object, a function or None, got {function!r}")
        self.function: Any = function
        self.classes = classes
        self._last: Any = (getattr(model, "layers", None) or [None])[-1]

    @property
    def takes_indices(self) -> bool:
        """Whether the loss takes class indices rather than one row for each input."""
        return _name(self.function).lower().startswith("sparse")

    @property
    def output(self) -> str:
        """What it takes the model's outputs for."""
        from_logits = self._from_logits()
        if from_logits is None:
            from_logits = getattr(self._last, "activation", None) not in _NORMALISED
        return "logits" if from_logits else "probabilities"

    def _from_logits(self) -> bool | None:
        """Return what the loss says; None if it says nothing."""
        if isinstance(self.function, keras.losses.Loss):
            return getattr(self.function, "from_logits", None)
        try:
            parameters = inspect.signature(self.function).parameters
        except (TypeError, ValueError):
            return None
        return bool(parameters["from_logits"].default) if "from_logits" in parameters else None

    def two_columns(self, scores: Any) -> Any:
        """Return scores of two classes from the one output of a binary model.

        Raises:
            ValueError: it is not known whether the output is a logit or a probability.
        """
        if "binary" not in _name(self.function).lower():
            raise ValueError(
                "a model with one output needs keras.losses.BinaryCrossentropy as its loss_object, which says how to "
                f"read it, got {self.function!r}"
            )
        return tf.concat([-scores if self.output == "logits" else 1 - scores, scores], axis=1)

    def labels(self, y: Any, number: int, width: int) -> np.ndarray:
        """Return labels in the form that the loss takes, for scores `[number, width]`."""
        return as_targets(y, number, self.classes, width, indices=self.takes_indices)

    def __call__(self, scores: Any, labels: Any) -> Any:
        """Return the loss under its own reduction, as one number."""
        return tf.reduce_mean(self.checked()(labels, scores))

    def by_row(self, scores: Any, labels: Any) -> Any:
        """Return the loss of each row. The user's object keeps its reduction."""
        function: Any = self.checked()
        if isinstance(function, keras.losses.Loss):
            function = copy.copy(function)
            function.reduction = None
        values = function(labels, scores)
        if values.shape.rank == 0:
            pairs = labels[:, None], scores[:, None]
            values = tf.map_fn(lambda pair: function(*pair), pairs, fn_output_signature=scores.dtype)
        return tf.reduce_mean(tf.reshape(values, [tf.shape(scores)[0], -1]), axis=1)

    def checked(self) -> Any:
        """Return the loss.

        Raises:
            TypeError: there is none.
        """
        if self.function is None:
            raise TypeError("a loss_object is needed for losses and their gradients: give it to the constructor")
        return self.function


def _name(function: Any) -> str:
    function = function.func if isinstance(function, functools.partial) else function
    return getattr(function, "__name__", type(function).__name__)
