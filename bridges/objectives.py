"""The objectives of `jaxsmooth.losses` for a network of any framework: formulas in JAX, passes in the framework.

An objective asks a network for two things (`jaxsmooth.networks`). Its formula on logits is JAX's, with its derivative
in them; the framework computes the logits, and follows that derivative to its own parameters or inputs.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bridges.backend import Backend
from bridges.gradients import LEAST_PROBABILITY, refuse_versions
from bridges.losses import PROBABILITIES
from bridges.preprocessing import Preprocessing
from jaxsmooth import losses
from jaxsmooth.arguments import as_integer, as_nonnegative, in_brief
from jaxsmooth.networks import Formula, Network


class EpochObjective(NamedTuple):
    """An objective that changes with the epoch, such as one whose attack grows.

    Attributes:
        at: a function from the index of an epoch to an objective.

    Example:
        >>> growing = EpochObjective(lambda epoch: functools.partial(losses.smoothadv, epsilon=min(1, (epoch + 1) / 4)))
        >>> growing.at(0).keywords
        {'epsilon': 0.25}
    """

    at: Callable[[int], Callable[..., jax.Array]]


def objective_at(objective: Any, epoch: int) -> Callable[..., Any]:
    """Return the objective of an epoch.

    Raises:
        TypeError: it is no function.
    """
    if isinstance(objective, EpochObjective):
        objective = objective.at(epoch)
    if not callable(objective) or isinstance(objective, type):
        raise TypeError(
            "objective must be one of jaxsmooth.losses, such as losses.macer or functools.partial(losses.macer, m=4), "
            f"got {in_brief(objective)}"
        )
    return objective


class _Step:
    """A training step to be made, in place of the value of an objective, which must return it as it is."""

    def __init__(self, formula: Formula, batches: Sequence[jax.Array], arguments: tuple[Any, ...]) -> None:
        self.formula = formula
        self.batches = batches
        self.arguments = arguments

    def _refuse(self, *others: Any) -> Any:
        del others
        raise TypeError(
            "objective must return what one of jaxsmooth.losses returns, as it is: the network's framework follows the "
            "gradient of that value only. Settings such as lambda_ weigh its terms, the learning rate the whole"
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __neg__ = __float__ = _refuse


class BackendNetwork(Network):
    """A backend's network after the steps before it, for one training step.

    Args:
        backend: with an optimizer.
        preprocessing: the steps before the network.
        classes: number of classes.
        training: whether the network is in training mode where the loss asks for its scores.
        clip_values: the range of the inputs, or None.
    """

    def __init__(
        self, backend: Backend, preprocessing: Preprocessing, classes: int, training: bool, clip_values: Any
    ) -> None:
        self._backend = backend
        self._preprocessing = preprocessing
        self._classes = classes
        self._training = training
        self.clip_values = clip_values

    def classes(self, x: Any) -> int:
        """Return the number of classes."""
        del x
        return self._classes

    def __call__(self, x: Any) -> Any:
        """Refuse: an objective of the user's own cannot follow a gradient through another framework."""
        del x
        raise TypeError(
            "objective must be one of jaxsmooth.losses: one of your own cannot call the network of another framework. "
            "It may ask it by `value` and `pull_back`, as jaxsmooth.networks.Network has them"
        )

    def train(self, objective: Callable[..., Any], noise: Any, key: jax.Array, x: np.ndarray, y: np.ndarray) -> None:
        """Make one training step."""
        pending = objective(self, noise, key, x, y)
        if not isinstance(pending, _Step):
            raise TypeError(f"objective must return what one of jaxsmooth.losses returns, got {in_brief(pending)}")
        kind = self._backend.loss_function.output

        def judge(outputs: list[np.ndarray]) -> tuple[float, list[np.ndarray]]:
            value, weights = _value_and_weights(pending.formula, kind, outputs, pending.arguments)
            return float(value), [np.asarray(weight) for weight in weights]

        batches = [self._prepared(batch, fit=True) for batch in pending.batches]
        self._backend.follow(batches, judge, training=self._training)

    def value(self, formula: Formula, batches: Sequence[jax.Array], *arguments: Any) -> Any:
        """Return what stands for the formula of the scores of each batch; `train` makes the step that follows it."""
        return _Step(formula, batches, arguments)

    def pull_back(self, x: jax.Array, weigh: Callable[..., jax.Array], *arguments: Any) -> tuple[jax.Array, jax.Array]:
        """Return the scores of a batch, and the gradient in x of their weighted sum, in evaluation mode."""
        kind = self._backend.loss_function.output
        seen: list[jax.Array] = []

        def of_outputs(outputs: np.ndarray) -> np.ndarray:
            scores, weights = _weights_of_outputs(weigh, kind, outputs, arguments)
            seen.append(scores)
            return np.asarray(weights)

        gradient = self._backend.vjp(self._prepared(x), of_outputs)
        return seen[0], jnp.asarray(self._preprocessing.gradient(x, gradient))

    def _prepared(self, x: jax.Array, *, fit: bool = False) -> Any:
        prepared, _ = self._preprocessing.before(x, fit=fit)
        refuse_versions(prepared, x)
        return prepared


def _as_logits(outputs: Any, kind: str) -> jax.Array:
    """Return logits from what the network returns. Log-probabilities are logits, too."""
    outputs = jnp.asarray(outputs, jnp.float32)
    return jnp.log(jnp.maximum(outputs, LEAST_PROBABILITY)) if kind == PROBABILITIES else outputs


@functools.partial(jax.jit, static_argnums=(0, 1))
def _value_and_weights(formula: Formula, kind: str, outputs: list[Any], arguments: tuple[Any, ...]) -> Any:
    """Return the formula of the outputs, and its gradient in them."""
    return jax.value_and_grad(lambda outputs: formula([_as_logits(each, kind) for each in outputs], *arguments))(
        outputs
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _weights_of_outputs(weigh: Any, kind: str, outputs: Any, arguments: tuple[Any, ...]) -> Any:
    """Return the logits, and the weights of the outputs that follow from the weights of the logits."""
    scores, pull = jax.vjp(lambda outputs: _as_logits(outputs, kind), jnp.asarray(outputs, jnp.float32))
    return scores, pull(weigh(scores, *arguments))[0]


Settings = Mapping[str, Any]


class ClassObjective(NamedTuple):
    """The objective of one of ART's classes, made from the settings of an instance.

    Attributes:
        names: of the settings, which are attributes of the instance, too.
        check: refuses settings that are not as described.
        make: from the settings to the objective.
        copies: from the settings to how many rows of a batch each input takes.
    """

    names: tuple[str, ...]
    check: Callable[[Settings], None]
    make: Callable[[Settings], Any]
    copies: Callable[[Settings], int] = lambda _: 1


def _check_macer(settings: Settings) -> None:
    for name in ("beta", "gamma", "lmbda"):
        as_nonnegative(name, settings[name])
    as_integer("gaussian_samples", settings["gaussian_samples"], 1)


def _macer(settings: Settings) -> Any:
    numbers = {"beta": settings["beta"], "gamma": settings["gamma"], "lambda_": settings["lmbda"]}
    return functools.partial(losses.macer, m=settings["gaussian_samples"], **numbers)


MACER = ClassObjective(("beta", "gamma", "lmbda", "gaussian_samples"), _check_macer, _macer)


def _check_smoothadv(settings: Settings) -> None:
    as_nonnegative("epsilon", settings["epsilon"])
    for name in ("num_noise_vec", "num_steps", "warmup"):
        as_integer(name, settings[name], 1)


def _smoothadv(settings: Settings) -> Any:
    attack = {"m": settings["num_noise_vec"], "steps": settings["num_steps"]}
    return EpochObjective(
        lambda epoch: functools.partial(
            losses.smoothadv, epsilon=settings["epsilon"] * _warm(settings, epoch), **attack
        )
    )


SMOOTHADV = ClassObjective(
    ("epsilon", "num_noise_vec", "num_steps", "warmup"),
    _check_smoothadv,
    _smoothadv,
    lambda settings: settings["num_noise_vec"],
)


def _check_smoothmix(settings: Settings) -> None:
    as_nonnegative("eta", settings["eta"])
    as_nonnegative("step_size", settings["step_size"])
    for name in ("num_noise_vec", "num_steps", "warmup"):
        as_integer(name, settings[name], 1)
    as_integer("mix_step", settings["mix_step"], 0, settings["num_steps"] - 1)
    for name in ("maxnorm_s", "maxnorm"):
        if settings[name] is not None:
            as_nonnegative(name, settings[name])


def _smoothmix(settings: Settings) -> Any:
    own = settings["maxnorm_s"]
    largest = settings["step_size"] * settings["mix_step"] if own is None else own
    attack = {"m": settings["num_noise_vec"], "steps": settings["num_steps"], "alpha": settings["step_size"]}
    attack |= {"mix_step": settings["mix_step"], "maxnorm": settings["maxnorm"]}

    def at(epoch: int) -> Any:
        share = _warm(settings, epoch)
        return functools.partial(losses.smoothmix, eta=share * settings["eta"], maxnorm_s=share * largest, **attack)

    return EpochObjective(at)


SMOOTHMIX = ClassObjective(
    ("eta", "num_noise_vec", "num_steps", "warmup", "mix_step", "maxnorm_s", "maxnorm", "step_size"),
    _check_smoothmix,
    _smoothmix,
    lambda settings: settings["num_noise_vec"],
)


def _warm(settings: Settings, epoch: int) -> float:
    """Return the share of its full strength that an objective has in an epoch, as in the authors' code."""
    return min(1.0, (epoch + 1) / settings["warmup"])
