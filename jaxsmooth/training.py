"""Training steps: an objective of `jaxsmooth.losses` under an optax transformation."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from jaxsmooth.arguments import in_brief, refuse_uncallable
from jaxsmooth.types import Noise


class TrainState(NamedTuple):
    """What a training run carries from step to step: a pytree, to be stored with `flax.serialization` or orbax.

    Attributes:
        f: callable pytree of floating-point arrays, such as `jax.tree_util.Partial(apply, params)`.
        optimizer_state: of its arrays.
        step: number of steps made, `i32[]`.
    """

    f: Any
    optimizer_state: optax.OptState
    step: jax.Array


def init_train_state(f: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """Return the state before the first step.

    Args:
        f: callable pytree whose leaves are floating-point arrays: the parameters.
        optimizer: optax transformation.

    Raises:
        TypeError: f is not callable, has no arrays, or has a leaf that is not a floating-point array; the optimizer is
            not an optax transformation.

    Example:
        >>> from jax.tree_util import Partial
        >>> f = Partial(lambda w, x: x @ w, jnp.zeros((2, 3)))
        >>> init_train_state(f, optax.sgd(0.1)).step
        Array(0, dtype=int32)
    """
    expected = "f must be a callable pytree of floating-point arrays, such as jax.tree_util.Partial(apply, params)"
    leaves = jax.tree_util.tree_leaves_with_path(f) if callable(f) else []
    if not leaves:
        raise TypeError(f"{expected}, got {in_brief(f)}")
    refuse_uncallable(f)  # or an object of another framework
    others = [(path, leaf) for path, leaf in leaves if not _is_parameter(leaf)]
    if others:
        path, leaf = others[0]
        what = f"an array of dtype {leaf.dtype}" if hasattr(leaf, "dtype") else f"a {type(leaf).__name__}"
        raise TypeError(
            f"{expected}, got {type(f).__name__} whose leaf {jax.tree_util.keystr(path)} is {what}, one of "
            f"{len(others)} such leaves: close over what is not trained"
        )
    if not isinstance(optimizer, optax.GradientTransformation):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"optimizer must be an optax.GradientTransformation, got {type(optimizer).__name__}")
    return TrainState(f, optimizer.init(cast(optax.Params, f)), jnp.int32(0))


def make_train_step(
    loss: Callable[..., jax.Array], optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Noise, jax.Array, jax.Array, jax.Array], tuple[TrainState, jax.Array]]:
    """Return a compiled `step(state, noise, key, x, y) -> (state, loss)`.

    The noise of a step depends on the key and the number of the step: one key serves a whole run, each step has new
    noise, and a run that was stored and resumed goes on to the same parameters, bit for bit.

    Args:
        loss: an objective of `jaxsmooth.losses`; `functools.partial` sets its hyperparameters.
        optimizer: optax transformation, the one of `init_train_state`.

    Returns:
        A jitted function of a `TrainState`, a noise, one key, inputs `[N, *event]` and labels `i32[N]`.

    Example:
        >>> from jax.tree_util import Partial
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

    @jax.jit
    def step(
        state: TrainState, noise: Noise, key: jax.Array, x: jax.Array, y: jax.Array
    ) -> tuple[TrainState, jax.Array]:
        key = jax.random.fold_in(key, state.step)
        value, gradient = jax.value_and_grad(loss)(state.f, noise, key, x, y)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, state.f)
        return TrainState(optax.apply_updates(state.f, updates), optimizer_state, state.step + 1), value

    return step


def _is_parameter(leaf: Any) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", bool), jnp.floating)
