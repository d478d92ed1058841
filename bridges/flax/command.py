"""Models of Flax for the command line: training."""

from typing import Any

import optax

from bridges.command.models import Model, Optimizer
from bridges.flax import FlaxRandomizedSmoothing, as_jax


def as_function(model: Model) -> Any:
    """Return the model as a classifier of jaxsmooth."""
    return as_jax(model.module, model.variables)


def as_class(
    model: Model, shape: tuple[int, ...], classes: int, optimizer: Optimizer | None, settings: dict[str, Any]
) -> FlaxRandomizedSmoothing:
    """Return the model as the class that trains it."""
    made = None if optimizer is None else _make_optimizer(optimizer)
    loss = optax.softmax_cross_entropy_with_integer_labels
    return FlaxRandomizedSmoothing(model.module, loss, shape, classes, made, variables=model.variables, **settings)


def _make_optimizer(optimizer: Optimizer) -> optax.GradientTransformation:
    """Return an optimizer whose rate is part of its state, so that a schedule may set it between epochs."""
    name, rate, decay = optimizer
    if name == "sgd":
        return optax.inject_hyperparams(_sgd)(learning_rate=rate, decay=decay)
    return optax.inject_hyperparams(optax.adamw)(learning_rate=rate, weight_decay=decay)


def _sgd(learning_rate: Any, decay: Any) -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(decay), optax.sgd(learning_rate, 0.9))
