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
    policy: str
    policies: list[str]
    seeds: list[np.ndarray]


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
    return PackedModel(
        rebuild, arguments, own, model.dtype_policy.name, _policies(model), [v.numpy() for v in _seeds(model)]
    )


def unpack_model(packed: Any) -> Any:
    """Return the model that was packed.

    Raises:
        TypeError: its layers would compute in other dtypes than those of the model that was packed.
    """
    if not isinstance(packed, PackedModel):
        return packed
    for stream in packed.arguments:
        stream.seek(0)
    # Layers that a subclass makes in its constructor take the policy of the process, which may be another one now.
    usual = keras.config.dtype_policy()
    try:
        if packed.policy != usual.name:
            keras.config.set_dtype_policy(packed.policy)
        with keras.saving.custom_object_scope(packed.classes):
            model = packed.rebuild(*packed.arguments)
    finally:
        if packed.policy != usual.name:
            keras.config.set_dtype_policy(usual)
    if (policies := _policies(model)) != packed.policies:
        raise TypeError(
            f"model cannot be copied: its layers have the dtype policies {packed.policies}, those of the copy "
            f"{policies}. Give each layer its dtype in the constructor of the model"
        )
    assign(_seeds(model), packed.seeds)
    return model


def _seeds(model: Any) -> list[Any]:
    """Return the variables that Keras does not save: the states of random generators, as of dropout."""
    saved = {id(variable) for variable in model.weights}
    return [variable for variable in model.variables if id(variable) not in saved]


def _policies(model: Any) -> list[str]:
    return [layer.dtype_policy.name for layer in all_layers(model)]


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
