"""An Equinox model, written for one example, as a JAX function of a batch."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import equinox as eqx
import jax

from bridges.outputs import Reading
from jaxsmooth.arguments import refuse_other_framework


def as_jax(model: Any, state: Any = None, *, output: Callable[[Any], Any] | None = None) -> "EquinoxFunction":
    """Return an Equinox model as a function of a batch, in inference mode.

    It is a callable pytree of the model's arrays: under jit they are arguments, so that new parameters compile nothing.
    `jaxsmooth.training` trains those in floating point, in training mode, under `jax.vmap` with the axis name of its
    batch normalisation; `f.model` and `f.model_state` are the model and the state that come of it. Everything else in
    the model is static. A model that is written for batches needs no `as_jax`: it is a callable pytree itself.

    Args:
        model: callable of one example, `[*event] -> [K]` scores, such as an `equinox.Module`. It is called under
            `jax.vmap`, in inference mode (`equinox.nn.inference_mode`), without a key.
        state: of a stateful model, `model(x, state) -> (scores, state)`, as `equinox.nn.make_with_state` returns it.
        output: a function from what the model returns for a batch to its scores. By default they are the array that it
            returns, the entry "logits" of a mapping, or the first entry of a tuple or list (`bridges.outputs.Reading`).

    Raises:
        TypeError: the model cannot be called, or holds something beside its arrays that cannot be hashed.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsmooth import Gaussian, certify
        >>> f = as_jax(eqx.nn.MLP(4, 3, 16, 1, key=jax.random.key(0)))
        >>> certify(f, Gaussian(0.5), jax.random.key(0), jnp.ones((2, 4)), n0=10, n=100).label.shape
        (2,)
    """
    refuse_other_framework("model", model, "equinox")
    if not callable(model) or isinstance(model, type):
        raise TypeError(f"model must be a callable of one example, such as an equinox.Module, got {model!r}")
    if output is not None and not callable(output):
        raise TypeError(f"output must be a function of what the model returns, got {output!r}")
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    others, rest = eqx.partition((rest, state), eqx.is_array)
    leaves, treedef = jax.tree.flatten(rest)
    static = _Static(treedef, tuple(leaves), repr([leaf for leaf in leaves if isinstance(leaf, (bool, int, float))]))
    try:
        hash(static)
    except TypeError as error:
        raise TypeError(f"model must be hashable apart from its arrays: {error}") from None
    return EquinoxFunction(params, others, static, Reading(output))


class _Static(NamedTuple):
    """What is in a model beside its arrays; the numbers among it as words, too, since 1 and True are equal."""

    treedef: Any
    leaves: tuple[Any, ...]
    words: str


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)  # equal to itself only, and so hashable, as jax.jit(f) asks for
class EquinoxFunction:
    """An Equinox model with the arrays that it had when this was made: a callable pytree.

    Attributes:
        params: floating-point arrays of the model.
        state: other arrays of the model, and those of its state.
        static: the rest of both.
        reading: how scores are read from what the model returns.
    """

    params: Any
    state: Any
    static: Any = field(metadata={"static": True})
    reading: Reading = field(metadata={"static": True})

    @property
    def model(self) -> Any:
        """The model with these arrays, in inference mode."""
        return eqx.nn.inference_mode(self._parts()[0])

    @property
    def model_state(self) -> Any:
        """The state of a stateful model with these arrays; None for another."""
        return self._parts()[1]

    def __call__(self, x: jax.Array) -> Any:
        """Return the model's scores for inputs `[B, *event]`."""
        model, state = self._parts()
        model = eqx.nn.inference_mode(model)
        run = model if state is None else lambda row: model(row, state)[0]
        return self.reading(jax.vmap(run)(x), type(model).__name__)

    def run(self, x: jax.Array, *, training: bool = False, key: Any = None) -> tuple[Any, Any]:
        """Return the scores and the state afterwards; in training mode each row has a key, if the model takes one."""
        if not training:
            return self(x), self.state
        model, state = self._parts()
        model = eqx.nn.inference_mode(model, value=False)
        settings = {"key": jax.random.split(key, len(x))} if "key" in inspect.signature(model).parameters else {}

        def of_stateful_row(row: jax.Array, settings: dict[str, Any]) -> tuple[Any, Any]:
            return model(row, state, **settings)

        axes: Any = {"axis_name": _axis_name(model), "in_axes": (0, 0)}
        if state is None:
            result = jax.vmap(lambda row, settings: model(row, **settings), **axes)(x, settings)
            return self.reading(result, type(model).__name__), self.state
        result, state = jax.vmap(of_stateful_row, **axes, out_axes=(0, None))(x, settings)
        others = eqx.filter((eqx.filter(model, eqx.is_inexact_array, inverse=True), state), eqx.is_array)
        return self.reading(result, type(model).__name__), others

    def _parts(self) -> Any:
        rest = eqx.combine(self.state, jax.tree.unflatten(self.static.treedef, self.static.leaves))
        return eqx.combine(self.params, rest[0]), rest[1]


def _axis_name(model: Any) -> Any:
    """Return the name of the batch axis that batch normalisation asks for."""
    leaves = jax.tree.leaves(model, is_leaf=lambda part: isinstance(part, eqx.nn.BatchNorm))
    names = {part.axis_name for part in leaves if isinstance(part, eqx.nn.BatchNorm)}
    return next(iter(names), "batch")
