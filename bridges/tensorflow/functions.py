"""TensorFlow models and functions run as compiled graphs: one for each input signature, for every batch size."""

import inspect
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


class Graph:
    """A function of tensors, compiled once for each signature with a free batch dimension.

    Args:
        run: function of tensors, each with a batch dimension, traceable by `tf.function`.
    """

    def __init__(self, run: Callable[..., Any]) -> None:
        self.run = run
        self._compiled: dict[Any, Any] = {}

    def __call__(self, *tensors: tf.Tensor) -> Any:
        """Run the function eagerly called, but as a graph."""
        return self.compiled(*tensors)(*tensors)

    def compiled(self, *tensors: tf.Tensor) -> Any:
        """Return the graph for tensors like these: a `tf.function` would look for it at each call, for 0.1 ms."""
        entry = tuple((tuple(t.shape)[1:], t.dtype) for t in tensors)
        if entry not in self._compiled:
            specs = tuple(tf.TensorSpec([None, *event], dtype) for event, dtype in entry)
            try:
                graph = tf.function(self.run, input_signature=specs).get_concrete_function()
            except (NotImplementedError, tf.errors.OperatorNotAllowedInGraphError, AttributeError) as error:
                if "numpy" not in str(error) and not isinstance(error, tf.errors.OperatorNotAllowedInGraphError):
                    raise
                raise TypeError(
                    "model must be one that tf.function can trace; this one runs only eagerly, call by call. "
                    f"{type(error).__name__}: {error}"
                ) from error
            self._compiled.setdefault(entry, graph)
        return self._compiled[entry]

    def __getstate__(self) -> dict[str, Any]:
        """Leave compiled code out of copies and pickles."""
        return {"run": self.run, "_compiled": {}}


def caller(model: Any) -> Callable[[tf.Tensor, bool], Any]:
    """Return `model(x, training=...)` as a function of x and training; `model(x)` where it takes no such argument."""
    if isinstance(model, keras.Layer) or _takes_training(model):
        return lambda x, training: model(x, training=training)
    return lambda x, training: model(x)  # noqa: ARG005


def float_dtype(model: Any) -> tf.DType | None:
    """Return the floating dtype that a model wants its input in, None for any."""
    if isinstance(model, keras.Layer):
        return tf.as_dtype(model.compute_dtype)
    variables: Any = getattr(model, "variables", ())
    return next((v.dtype for v in variables if v.dtype.is_floating), None) if isinstance(model, tf.Module) else None


def gradient(run: Callable[[Any], Any], x: Any, weights: Callable[[Any], Any] | None = None) -> Any:
    """Return the gradient in x of run(x), weighted by `weights(run(x))`, which is held constant.

    Raises:
        ValueError: run(x) does not depend on x differentiably.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        result = run(x)
    outputs: Any = None if weights is None else weights(result)
    value = tape.gradient(result, x, output_gradients=outputs)
    if value is None:
        raise ValueError("the output of the model does not depend on its input differentiably")
    return value


def _takes_training(model: Any) -> bool:
    try:
        parameters = inspect.signature(model).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(p.name == "training" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
