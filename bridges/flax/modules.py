"""Linen and nnx modules with their variables, and `as_jax`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from flax.core import FrozenDict, unfreeze

from bridges.flax.functions import FlaxFunction, LinenStructure, NNXStructure, training_arguments
from bridges.flax.layers import redrawn
from bridges.outputs import Reading
from jaxsmooth.arguments import refuse_other_framework


def as_jax(model: Any, variables: Any = None, *, output: Callable[[Any], Any] | None = None) -> FlaxFunction:
    """Return a flax module as a function of its inputs only, in evaluation mode.

    It is a callable pytree: under jit its arrays are arguments, so that new parameters compile nothing. Evaluation
    mode is flax's own (`eval()` of nnx), and an argument `train`, `training`, `is_training`, `deterministic` or
    `use_running_average` of the module's `__call__` is set accordingly.

    `jaxsmooth.training` trains it in training mode. What comes of it goes back into an nnx module by
    `nnx.update(model, f.params, f.state)`, and makes the linen variables `{"params": f.params, **f.state}`.

    Args:
        model: `flax.linen` or `flax.nnx` module.
        variables: of a linen module, as its `init` returns them.
        output: a function from what the module returns to its scores. By default they are the array that it returns,
            the entry "logits" of a mapping, or the first entry of a tuple or list (`bridges.outputs.Reading` has the
            rules).

    Raises:
        TypeError: the model is no such module, or a linen module comes without variables.

    Example:
        >>> from jaxsmooth import Gaussian, certify
        >>> f = as_jax(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
        >>> certify(f, Gaussian(0.5), jax.random.key(0), jnp.ones((2, 4)), n0=10, n=100).label.shape
        (2,)
    """
    if output is not None and not callable(output):
        raise TypeError(f"output must be a function of what the module returns, got {output!r}")
    return as_model(model, variables, Reading(output)).function()


class LinenModel:
    """A linen module with its variables, which are replaced, never changed."""

    def __init__(self, module: linen.Module, variables: Any, reading: Reading) -> None:
        self.module = module
        self.reading = reading
        self.variables: Any = unfreeze(variables) if isinstance(variables, FrozenDict) else variables

    def function(self) -> FlaxFunction:
        """Return it as a function, with the variables that it has now."""
        state = {name: value for name, value in self.variables.items() if name != "params"}
        return FlaxFunction(self.variables.get("params", {}), state, LinenStructure(self.module), self.reading)

    def update(self, f: FlaxFunction) -> None:
        """Take over the arrays of a function."""
        self.variables = {"params": f.params, **f.state}

    def redraw(self, key: jax.Array, shape: tuple[int, ...]) -> None:
        """Take over fresh variables, of the same dtypes.

        Raises:
            ValueError: the module's `init` makes other variables than it has.
        """
        arguments = training_arguments(type(self.module).__call__, False)
        fresh = unfreeze(self.module.init(key, jnp.zeros((1, *shape)), **arguments))
        if jax.tree.map(jnp.shape, fresh) != jax.tree.map(jnp.shape, self.variables):
            raise ValueError(
                f"variables are not those that init makes for inputs of shape {shape}: they cannot be reset"
            )
        self.variables = jax.tree.map(lambda new, old: new.astype(old.dtype), fresh, self.variables)


class NNXModel:
    """An nnx module, which is changed in place as its own training would."""

    def __init__(self, module: nnx.Module, reading: Reading) -> None:
        self.module = module
        self.reading = reading

    def function(self) -> FlaxFunction:
        """Return it as a function, with the variables that it has now."""
        graph, params, state = nnx.split(self.module, nnx.Param, ...)
        # Plain dicts of arrays, which every library stores.
        arrays = nnx.to_pure_dict(params), nnx.to_pure_dict(state)
        return FlaxFunction(*arrays, NNXStructure(graph), self.reading)

    def update(self, f: FlaxFunction) -> None:
        """Put the arrays of a function into the module."""
        nnx.update(self.module, f.params, f.state)

    def redraw(self, key: jax.Array, shape: tuple[int, ...]) -> None:
        """Give the module fresh arrays."""
        del shape
        for variable, value in redrawn(self.module, key):
            variable.set_value(value)


def as_model(model: Any, variables: Any, reading: Reading) -> LinenModel | NNXModel:
    """Return a model of either kind.

    Raises:
        TypeError: the model is no module, or variables are missing or not a mapping, or an nnx module has some.
    """
    refuse_other_framework("model", model, "flax")
    if isinstance(model, nnx.Module):
        if variables is not None:
            raise TypeError("variables must be None for an nnx module, which holds its own")
        return NNXModel(model, reading)
    if not isinstance(model, linen.Module):
        raise TypeError(f"model must be a flax.linen or flax.nnx module, got {type(model).__name__}")
    if not hasattr(variables, "items"):
        raise TypeError(
            "variables must be what the module's init returned, a mapping such as {'params': ...}, "
            f"got {type(variables).__name__}"
        )
    return LinenModel(model, variables, reading)
