"""Linen and nnx modules as functions: pure, of their arrays, the rest static."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
from flax import linen, nnx, serialization

from bridges.flax.layers import record_linen, record_nnx
from bridges.outputs import Reading

Path = tuple[str, ...]

_TRAINING_ARGUMENTS = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}


class Structure(Protocol):
    """A module without its arrays: hashable, so that jit takes it as static."""

    def apply(
        self, params: Any, state: Any, x: jax.Array, *, training: bool = False, key: Any = None
    ) -> tuple[Any, Any]:
        """Return what the module returns, and its state afterwards, which evaluation mode does not change."""
        ...

    def record(
        self, params: Any, state: Any, x: jax.Array, *, training: bool = False, key: Any = None
    ) -> dict[Path, Any]:
        """Return what its layers return, by their paths, in order."""
        ...


@dataclass(frozen=True)
class LinenStructure:
    """A linen module."""

    module: linen.Module

    def apply(
        self, params: Any, state: Any, x: jax.Array, *, training: bool = False, key: Any = None
    ) -> tuple[Any, Any]:
        """Run it, in training mode with a key for its random numbers and with all collections mutable."""
        variables = {"params": params, **state}
        arguments = training_arguments(type(self.module).__call__, training)
        if not training:
            return self.module.apply(variables, x, **arguments), state
        collections = list(state)
        outputs, updated = cast(Any, self.module.apply(variables, x, **arguments, rngs=key, mutable=collections))
        return outputs, {name: _like(state[name], updated.get(name, state[name])) for name in collections}

    def record(
        self, params: Any, state: Any, x: jax.Array, *, training: bool = False, key: Any = None
    ) -> dict[Path, Any]:
        """Run it under an interceptor of its submodules' calls."""
        return record_linen(lambda: self.apply(params, state, x, training=training, key=key))


@dataclass(frozen=True)
class NNXStructure:
    """The graph of an nnx module."""

    graph: Any

    def apply(
        self, params: Any, state: Any, x: jax.Array, *, training: bool = False, key: Any = None
    ) -> tuple[Any, Any]:
        """Run it in a copy; random numbers come from the module's own streams, so the key is not used."""
        del key
        module = self._merged(params, state, training)
        outputs = module(x, **training_arguments(type(module).__call__, training))
        return outputs, nnx.to_pure_dict(nnx.state(module, _not_params)) if training else state

    def record(
        self, params: Any, state: Any, x: jax.Array, *, training: bool = False, key: Any = None
    ) -> dict[Path, Any]:
        """Run a copy whose layers note what they return."""
        del key
        module = self._merged(params, state, training)
        arguments = training_arguments(type(module).__call__, training)
        return record_nnx(module, lambda: module(x, **arguments))

    def _merged(self, params: Any, state: Any, training: bool) -> Any:
        module = nnx.merge(self.graph, params, state, copy=True)  # what it changes stays in it
        module.train() if training else module.eval()
        return module


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)  # equal to itself only, and so hashable, as jax.jit(f) asks for
class FlaxFunction:
    """A flax module with the arrays that it had when this was made: a callable pytree.

    Attributes:
        params: parameters.
        state: other variables, such as batch statistics.
        structure: the rest, static under jit.
        reading: how scores are read from what the module returns, static under jit.
    """

    params: Any
    state: Any
    structure: Structure = field(metadata={"static": True})
    reading: Reading = field(default=Reading(), metadata={"static": True})

    def __call__(self, x: jax.Array) -> Any:
        """Return the module's outputs for inputs `[B, *event]`, in evaluation mode."""
        return self.run(x)[0]

    def run(self, x: jax.Array, *, training: bool = False, key: Any = None) -> tuple[Any, Any]:
        """Return the module's outputs, and its state afterwards, which evaluation mode does not change."""
        result, state = self.structure.apply(self.params, self.state, x, training=training, key=key)
        return self.reading(result), state


def _as_state_dict(f: FlaxFunction) -> dict[str, Any]:
    """Return the arrays of a function as `flax.serialization` takes them: keys of JAX as their data."""
    leaves = enumerate(jax.tree.leaves(f))
    return {str(place): jax.random.key_data(leaf) if _is_key(leaf) else leaf for place, leaf in leaves}


def _from_state_dict(f: FlaxFunction, stored: dict[str, Any]) -> FlaxFunction:
    leaves, treedef = jax.tree.flatten(f)
    found = [stored[str(place)] for place in range(len(leaves))]
    pairs = zip(leaves, found, strict=True)
    return treedef.unflatten(
        [jax.random.wrap_key_data(new, impl=jax.random.key_impl(old)) if _is_key(old) else new for old, new in pairs]
    )


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", bool), jax.dtypes.prng_key)


serialization.register_serialization_state(FlaxFunction, _as_state_dict, _from_state_dict)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VotingFunction:
    """A flax module after standardisations of its input: what votes in the classes, as a callable pytree.

    Attributes:
        f: the module with its arrays.
        steps: mean and standard deviation of each standardisation.
        binary: the loss that says how to read one output as two classes; None where each class has its output.
    """

    f: FlaxFunction
    steps: tuple[tuple[jax.Array, jax.Array], ...]
    binary: Any = field(metadata={"static": True})

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return scores `[B, C]`."""
        for mean, std in self.steps:
            shape = x.shape[1:]
            x = (x - jnp.broadcast_to(mean, shape)[None]) / jnp.broadcast_to(std, shape)[None]
        outputs = self.f(x).astype(jnp.float32)
        return outputs if self.binary is None else self.binary.columns(outputs)


def _like(before: Any, after: Any) -> Any:
    """Return a collection afterwards, or as it was if a module has sown into it: it would grow in each step."""
    same = jax.tree.structure(before) == jax.tree.structure(after)
    return after if same and jax.tree.map(jnp.shape, before) == jax.tree.map(jnp.shape, after) else before


def training_arguments(call: Callable[..., Any], training: bool) -> dict[str, Any]:
    """Return the arguments by which a module is told its mode, of those that flax's users have names for.

    Example:
        >>> def call(self, x, train: bool): ...
        >>> training_arguments(call, False)
        {'train': False}
    """
    names = inspect.signature(call).parameters
    return {name: training == value for name, value in _TRAINING_ARGUMENTS.items() if name in names}


def _not_params(path: Any, value: Any) -> bool:
    del path
    return not isinstance(value, (nnx.Param, nnx.Intermediate))  # what a module sows is no state of it
