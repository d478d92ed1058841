"""Models of Keras for the command line: their files, and training."""

from pathlib import Path
from typing import Any

import keras

from bridges.command.models import Model, Optimizer, first_line
from bridges.tensorflow import TensorFlowV2RandomizedSmoothing, as_jax


def load_file(path: Path) -> Any:
    """Return a saved Keras model. Keras refuses code in it (safe mode)."""
    try:
        return keras.models.load_model(path, compile=False)
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(f"MODEL {path} cannot be loaded by Keras: {first_line(error)}") from None


def as_function(model: Model) -> Any:
    """Return the model as a classifier of jaxsmooth."""
    return as_jax(model.module)


def as_class(
    model: Model, shape: tuple[int, ...], classes: int, optimizer: Optimizer | None, settings: dict[str, Any]
) -> TensorFlowV2RandomizedSmoothing:
    """Return the model as the class that trains it."""
    made = None if optimizer is None else _make_optimizer(optimizer)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return TensorFlowV2RandomizedSmoothing(model.module, classes, shape, loss, made, **settings)


def _make_optimizer(optimizer: Optimizer) -> Any:
    name, rate, decay = optimizer
    if name == "sgd":
        return keras.optimizers.SGD(rate, 0.9, weight_decay=decay or None)
    return keras.optimizers.AdamW(rate, decay) if decay else keras.optimizers.Adam(rate)
