"""Networks in training: what a training objective asks of one, whatever framework it is written in.

An objective of `jaxsmooth.losses` needs two things of a network. It wants a value of the scores of some batches, along
whose gradient the parameters move: `value`. Its attack wants the gradient of the scores in their input: `pull_back`.
"""

import dataclasses
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
from jax import lax

from jaxsmooth._checks import shape_of_scores
from jaxsmooth._sampling import shaped_scores
from jaxsmooth.types import Classifier

Formula = Callable[..., jax.Array]
"""A loss of the scores of some batches: `formula([scores, ...], *arguments) -> f32[]`, which JAX can trace."""


class Network(ABC):
    """A network as a training objective sees it. A bridge makes one of a model of another framework.

    Scores are logits, or log-probabilities: anything whose softmax is the prediction.

    Attributes:
        clip_values: the range of its inputs, `(least, greatest)`, if it is known.
    """

    clip_values: Any = None

    @abstractmethod
    def classes(self, x: Any) -> int:
        """Return the number of classes, for inputs `[N, *event]`."""
        ...

    @abstractmethod
    def value(self, formula: Formula, batches: Sequence[jax.Array], *arguments: Any) -> jax.Array:
        """Return `formula([scores, ...], *arguments)` of the scores of each batch, in training mode.

        Every batch goes through the network in one call: batch normalisation sees all of its rows together.
        """
        ...

    @abstractmethod
    def pull_back(self, x: jax.Array, weigh: Callable[..., jax.Array], *arguments: Any) -> tuple[jax.Array, jax.Array]:
        """Return the scores of a batch and the gradient in x of their sum weighted by `weigh(scores, *arguments)`.

        The network is in evaluation mode. Both results are constants to every gradient.
        """
        ...


@runtime_checkable
class StatefulClassifier(Protocol):
    """A classifier whose parameters are trained and whose other arrays are not: a dataclass that is a pytree.

    Attributes:
        params: what a gradient step changes.
        state: other arrays, such as the statistics of batch normalisation, which training mode updates.
    """

    params: Any
    state: Any

    def __call__(self, x: jax.Array) -> Any:
        """Return scores in evaluation mode."""
        ...

    def run(self, x: jax.Array, *, training: bool, key: jax.Array) -> tuple[Any, Any]:
        """Return scores, and the state afterwards; the key is for dropout and the like."""
        ...


def is_stateful(f: Any) -> bool:
    """Return whether a classifier is a dataclass with parameters, state and a `run` for both modes."""
    if not (dataclasses.is_dataclass(f) and isinstance(f, StatefulClassifier)):
        return False
    return {"training", "key"} <= set(inspect.signature(f.run).parameters)


class FunctionNetwork(Network):
    """A JAX function that has no modes."""

    def __init__(self, f: Classifier) -> None:
        self.f = f

    def __call__(self, x: jax.Array) -> Any:
        """Return scores."""
        return self.f(x)

    def classes(self, x: Any) -> int:
        """Return the number of classes, for inputs `[N, *event]`."""
        return shape_of_scores(shaped_scores(self.f, x), len(x))[-1]

    def value(self, formula: Formula, batches: Sequence[jax.Array], *arguments: Any) -> jax.Array:
        """Return the formula of the scores of each batch."""
        return formula([self(batch) for batch in batches], *arguments)

    def pull_back(self, x: jax.Array, weigh: Callable[..., jax.Array], *arguments: Any) -> tuple[jax.Array, jax.Array]:
        """Return the scores of a batch, and the gradient in x of their weighted sum."""
        scores, pull = jax.vjp(self.f, x)
        (gradient,) = pull(weigh(scores, *arguments).astype(scores.dtype))
        return lax.stop_gradient(scores), lax.stop_gradient(gradient)


class StatefulNetwork(FunctionNetwork):
    """A classifier with state, in training mode: `f` has the new state after each call.

    Args:
        f: the classifier.
        key: of its random numbers.
    """

    f: Any

    def __init__(self, f: StatefulClassifier, key: jax.Array) -> None:
        super().__init__(f)
        self._key = key
        self._calls = 0

    def __call__(self, x: jax.Array) -> Any:
        """Return scores in training mode."""
        key = jax.random.fold_in(self._key, self._calls)
        self._calls += 1
        scores, state = self.f.run(x, training=True, key=key)
        self.f = dataclasses.replace(self.f, state=state)
        return scores


def as_network(f: Any) -> Network:
    """Return a network; a JAX function is one without modes."""
    return f if isinstance(f, Network) else FunctionNetwork(f)
