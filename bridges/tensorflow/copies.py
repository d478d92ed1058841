"""Copies of Keras models and optimizers, for pickle and deepcopy, that need no registration of the user's classes."""

from typing import Any, NamedTuple

import keras
import numpy as np

from bridges.tensorflow.layers import all_layers


class PackedModel(NamedTuple):
    """A Keras model as Keras saves it, with the classes of the user's that are in it."""

    rebuild: Any
    arguments: tuple[Any, ...]
    classes: dict[str, type]


class PackedOptimizer(NamedTuple):
    """A Keras optimizer as its configuration and, if it was used, the values of its variables."""

    kind: type
    config: dict[str, Any]
    values: list[np.ndarray] | None


def pack_model(model: Any) -> Any:
    """Return a model in a form to copy and pickle: itself, unless it is Keras's."""
    if not isinstance(model, keras.Model):
        return model
    classes = {type(layer).__name__: type(layer) for layer in all_layers(model)}
    own = {name: cls for name, cls in classes.items() if not cls.__module__.startswith("keras.")}
    rebuild, arguments = model.__reduce__()
    return PackedModel(rebuild, arguments, own)


def unpack_model(packed: Any) -> Any:
    """Return the model that was packed."""
    if not isinstance(packed, PackedModel):
        return packed
    for stream in packed.arguments:
        stream.seek(0)
    with keras.saving.custom_object_scope(packed.classes):
        return packed.rebuild(*packed.arguments)


def pack_optimizer(optimizer: Any) -> Any:
    """Return an optimizer in a form to copy and pickle: itself, unless it is Keras's."""
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        return optimizer
    values = [v.numpy() for v in optimizer.variables] if optimizer.built else None
    return PackedOptimizer(type(optimizer), optimizer.get_config(), values)


def unpack_optimizer(packed: Any, variables: list[Any]) -> Any:
    """Return the optimizer that was packed, for these variables."""
    if not isinstance(packed, PackedOptimizer):
        return packed
    optimizer: Any = packed.kind.from_config(packed.config)  # pyright: ignore[reportAttributeAccessIssue]
    if packed.values is not None:
        optimizer.build(variables)
        assign(optimizer.variables, packed.values)
    return optimizer


def forget(optimizer: Any, variables: list[Any]) -> None:
    """Put a Keras optimizer that was used back into the state of an unused one, its settings kept."""
    if isinstance(optimizer, keras.optimizers.Optimizer) and optimizer.built:
        fresh: Any = type(optimizer).from_config(optimizer.get_config())
        fresh.build(variables)
        assign(optimizer.variables, [v.numpy() for v in fresh.variables])


def assign(variables: list[Any], values: list[np.ndarray]) -> None:
    """Assign values to variables, all or, where the shapes differ, none.

    Raises:
        ValueError: there are more or fewer of them, or shapes differ.
    """
    shapes = [tuple(v.shape) for v in variables]
    given = [value.shape for value in values]
    if shapes != given:
        raise ValueError(f"expected variables of shapes {shapes}, got {given}")
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
