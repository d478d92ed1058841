"""The layers of a Keras model: their names, their outputs, fresh variables."""

import contextlib
import threading
from collections.abc import Generator
from typing import Any

import keras
import tensorflow as tf

from bridges.layers import layer_index

_RECORDING = threading.RLock()


def layer_names(model: Any) -> list[str] | None:
    """Return the names of a Keras model's layers; None for anything else."""
    return [layer.name for layer in model.layers] if isinstance(model, keras.Model) else None


def find_layer(model: Any, layer: Any) -> Any:
    """Return a layer by its name or its index, with the errors of `layer_index`.

    Raises:
        ValueError: the model has no layers.
    """
    names = layer_names(model)
    if names is None:
        raise ValueError(f"layer must name a layer of a Keras model, which {type(model).__name__} is not")
    return model.layers[layer_index(layer, names)]


def all_layers(model: Any) -> list[Any]:
    """Return the layers of a Keras model, those within layers included, and the model itself."""
    # There is no public name for this, and other ways miss layers that are inside layers.
    return list(model._flatten_layers()) if isinstance(model, keras.Layer) else []  # pyright: ignore


@contextlib.contextmanager
def recorded(*layers: Any) -> Generator[list[Any]]:
    """Collect what layers return in eager calls of this thread while the body runs. Nothing is left behind."""
    outputs: list[Any] = []
    me = threading.get_ident()

    def recording(call: Any) -> Any:
        def record(*args: Any, **kwargs: Any) -> Any:
            output = call(*args, **kwargs)
            if threading.get_ident() == me:  # another thread may trace a graph
                outputs.append(output)
            return output

        return record

    with _RECORDING:  # what two threads put in the place of one method would be put back in the wrong order
        before = [vars(layer).get("call") for layer in layers]
        for layer in layers:
            vars(layer)["call"] = recording(layer.call)
        try:
            yield outputs
        finally:
            for layer, call in zip(layers, before, strict=True):
                if call is None:
                    del vars(layer)["call"]
                else:
                    vars(layer)["call"] = call


def reinitialise(model: Any) -> None:
    """Draw every variable again.

    A Keras layer gets the variables of a new layer of the same configuration. Trainable variables of no such layer are
    drawn uniformly within 1 / sqrt(fan in), as PyTorch draws those of a linear layer. Statistics of the data, of layers
    with the method `adapt`, are kept.
    """
    done: set[int] = set()
    for layer in all_layers(model):
        if not all_layers(layer)[1:] and layer.variables and not hasattr(layer, "adapt") and _renew(layer):
            done.update(map(id, layer.variables))
    for variable in getattr(model, "trainable_variables", ()):
        if id(variable) not in done:
            fan_in = tf.size(variable[..., 0]) if len(variable.shape) > 1 else tf.size(variable)
            bound = tf.cast(fan_in, variable.dtype) ** -0.5
            variable.assign(tf.random.uniform(variable.shape, -bound, bound, variable.dtype))


def _renew(layer: Any) -> bool:
    """Give a layer the variables of a new one; False if there is no way to make one."""
    try:
        fresh = type(layer).from_config(layer.get_config())
        fresh.build_from_config(layer.get_build_config())
    except (NotImplementedError, TypeError, ValueError):
        return False
    if [tuple(v.shape) for v in fresh.variables] != [tuple(v.shape) for v in layer.variables]:
        return False
    for variable, value in zip(layer.variables, fresh.variables, strict=True):
        variable.assign(value)
    return True
