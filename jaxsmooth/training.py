"""Training steps: an objective of `jaxsmooth.losses` under an optax transformation."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from jaxsmooth._foreign import is_nnx, linen_of
from jaxsmooth.arguments import as_key, in_brief, refuse_uncallable
from jaxsmooth.networks import StatefulNetwork, is_stateful
from jaxsmooth.types import Noise

Optimizer = optax.GradientTransformation | optax.MultiSteps

_NETWORK = 3  # folded into the key of a step: the key of dropout. The objectives fold in 1 and 2.


class TrainState(NamedTuple):
    """What a training run carries from step to step: a pytree, which orbax and `flax.serialization` store and restore.

    Attributes:
        f: the classifier with its parameters, and what else it carries, such as the statistics of batch normalisation.
            It is in evaluation mode wherever it is called: certify it as it is.
        optimizer_state: of its parameters.
        step: number of steps made, `i32[]`.
    """

    f: Any
    optimizer_state: optax.OptState
    step: jax.Array


def init_train_state(f: Any, optimizer: Optimizer) -> TrainState:
    """Return the state before the first step.

    A classifier with `params` and `state`, as `bridges.flax.as_jax` and `bridges.equinox.as_jax` return it, is trained
    in its parameters, in training mode; its state is what training mode makes of it. Of another callable pytree every
    array is a parameter.

    Args:
        f: such a classifier, or a callable pytree whose leaves are floating-point arrays, such as
            `jax.tree_util.Partial(apply, params)`. A `Partial` comes back with other arguments and the same arrays, in
            a form that orbax stores.
        optimizer: optax transformation.

    Raises:
        TypeError: f is not callable, has no arrays, or has a parameter that is not a floating-point array; it is the
            `apply` of a flax module with variables that are no parameters, which a gradient would change; the optimizer
            is not an optax transformation.

    Example:
        >>> f = Partial(lambda w, x: x @ w, jnp.zeros((2, 3)))
        >>> init_train_state(f, optax.sgd(0.1)).step
        Array(0, dtype=int32)
    """
    expected = "f must be a callable pytree of floating-point arrays, such as jax.tree_util.Partial(apply, params)"
    if is_nnx(f):
        raise TypeError(f"{expected}, got an nnx module: bridges.flax.as_jax(module) takes it and trains it")
    leaves = jax.tree_util.tree_leaves_with_path(_trained(f)) if callable(f) else []
    if not leaves:
        raise TypeError(f"{expected}, got a {type(f).__name__} of none")
    refuse_uncallable(f)  # or an object of another framework
    _refuse_variables(f)
    others = [(path, leaf) for path, leaf in leaves if not _is_parameter(leaf)]
    if others and others[0][0] == ():
        raise TypeError(
            f"{expected}, got the function {type(f).__name__}, which shows no arrays: give its parameters by "
            "jax.tree_util.Partial; a model of PyTorch or TensorFlow is trained by fit(objective=...) of its class"
        )
    if others:
        path, leaf = others[0]
        what = f"an array of dtype {leaf.dtype}" if hasattr(leaf, "dtype") else f"a {type(leaf).__name__}"
        kind: Any = type(f)
        is_equinox = any(base.__module__.startswith("equinox.") for base in kind.__mro__)
        advice = "bridges.equinox.as_jax(model) takes it" if is_equinox else "close over what is not trained"
        raise TypeError(
            f"{expected}, got {type(f).__name__} whose leaf {jax.tree_util.keystr(path)} is {what}, one of "
            f"{len(others)} such leaves: {advice}"
        )
    transformation = _as_transformation(optimizer)
    f = _storable(f)
    return TrainState(f, transformation.init(cast(optax.Params, _trained(f))), jnp.int32(0))


def make_train_step(
    loss: Callable[..., jax.Array], optimizer: Optimizer
) -> Callable[[TrainState, Noise, jax.Array, jax.Array, jax.Array], tuple[TrainState, jax.Array]]:
    """Return a compiled `step(state, noise, key, x, y) -> (state, loss)`.

    The noise of a step depends on the key and the number of the step: one key serves a whole run, each step has new
    noise, and a run that was stored and resumed goes on to the same parameters, bit for bit.

    A classifier with state is in training mode where the loss asks for its scores, and in evaluation mode where an
    attack does. All noisy copies of a step go through it in one batch, as in the papers' code, so that batch
    normalisation takes their statistics together; "stability" and "smoothmix" have two batches, one after the other.
    Dropout has a new key in each step.

    Args:
        loss: an objective of `jaxsmooth.losses`; `functools.partial` sets its hyperparameters. Or any function
            `loss(f, noise, key, x, y) -> f32[]`.
        optimizer: optax transformation, the one of `init_train_state`. One that takes more than the gradient, such as
            `optax.contrib.reduce_on_plateau` or `optax.lbfgs`, gets the loss, the gradient and the function. A mask is
            best a function of the parameters: those of a `Partial` are its arguments.

    Returns:
        A jitted function of a `TrainState`, a noise, one key of any of JAX's generators, inputs `[N, *event]` and
        labels `i32[N]`. It cannot refuse inputs and labels by their values: a label that is no class, and an input
        outside the `clip_values` of an objective that attacks, make the loss NaN.

    Example:
        >>> from jaxsmooth import Gaussian, losses
        >>> optimizer = optax.sgd(0.5)
        >>> step = make_train_step(losses.gaussian, optimizer)
        >>> state = init_train_state(Partial(lambda w, x: x @ w, jnp.zeros((2, 2))), optimizer)
        >>> x, y = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([0, 1])
        >>> for _ in range(20):
        ...     state, value = step(state, Gaussian(0.1), jax.random.key(0), x, y)
        >>> state.step, bool(value < 0.3)
        (Array(20, dtype=int32), True)
    """
    transformation = optax.with_extra_args_support(_as_transformation(optimizer))
    if not callable(loss):
        raise TypeError(f"loss must be a function such as jaxsmooth.losses.macer, got {in_brief(loss)}")

    @jax.jit
    def step(
        state: TrainState, noise: Noise, key: jax.Array, x: jax.Array, y: jax.Array
    ) -> tuple[TrainState, jax.Array]:
        key = jax.random.fold_in(as_key(key, any_generator=True), state.step)

        def value_at(trained: Any) -> tuple[jax.Array, Any]:
            f = _with_trained(state.f, trained)
            if not is_stateful(f):
                return loss(f, noise, key, x, y), f
            network = StatefulNetwork(f, jax.random.fold_in(key, _NETWORK))
            return loss(network, noise, key, x, y), network.f

        trained = _trained(state.f)
        (value, f), gradient = jax.value_and_grad(value_at, has_aux=True)(trained)
        updates, optimizer_state = transformation.update(
            gradient,
            state.optimizer_state,
            trained,
            value=value,
            grad=gradient,
            value_fn=lambda trained: value_at(trained)[0],
        )
        f = _with_trained(f, optax.apply_updates(trained, updates))
        return TrainState(f, optimizer_state, state.step + 1), value

    return step


@dataclass(frozen=True)
class _Unpacked:
    """A function that takes the arguments of a `Partial` as a tuple and a dict.

    orbax cannot restore a `Partial` one of whose two parts is empty, as most have it.
    """

    function: Callable[..., Any]

    def __call__(self, arguments: tuple[Any, ...], *x: Any, keywords: dict[str, Any], **others: Any) -> Any:
        """Call the function with its own arguments, then those of the call."""
        return self.function(*arguments, *x, **{**keywords, **others})


def _storable(f: Any) -> Any:
    if type(f) is not Partial or isinstance(f.func, _Unpacked):
        return f
    return Partial(_Unpacked(f.func), f.args, keywords=f.keywords)


def _trained(f: Any) -> Any:
    """Return what a gradient step changes of a classifier."""
    return f.params if is_stateful(f) else f


def _with_trained(f: Any, trained: Any) -> Any:
    return replace(f, params=trained) if is_stateful(f) else trained


def _refuse_variables(f: Any) -> None:
    """Refuse the `apply` of a flax module with batch statistics and the like: a gradient would change them."""
    module = linen_of(f)
    arguments = (*f.args, *f.keywords.values()) if isinstance(f, Partial) else ()
    for variables in arguments:
        if not hasattr(variables, "keys") or "params" not in variables:
            continue
        # Within a function of the user's only the name of the usual collection tells.
        others = [name for name in variables if name != "params" and (module is not None or name == "batch_stats")]
        if others:
            raise TypeError(
                f"f must have parameters only, got {'a flax module' if module is None else module}.apply with "
                f"{', '.join(map(repr, others))}, which a gradient would change: bridges.flax.as_jax(module, "
                "variables) trains in training mode, and updates them as flax does"
            )


def _as_transformation(optimizer: Any) -> optax.GradientTransformation:
    if isinstance(optimizer, optax.MultiSteps):
        return optimizer.gradient_transformation()
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(f"optimizer must be an optax.GradientTransformation, got {type(optimizer).__name__}")
    return optimizer


def _is_parameter(leaf: Any) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", bool), jnp.floating)
