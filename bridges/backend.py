"""What a framework must supply to be smoothed: a network, its loss, its gradients, its training step."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from jaxsmooth import Classifier

Scores = Callable[[np.ndarray | jax.Array], np.ndarray]
Weigh = Callable[[np.ndarray], np.ndarray]


class Backend(Protocol):
    """A network with a loss and an optimizer. Arrays are NumPy's where no other is named."""

    model: Any
    layer_values: int
    """How many values in the output of the widest layer the framework is fastest with."""
    gradient_values: int
    """Likewise for a gradient, which keeps the outputs of all layers."""
    most_rows: int
    """How many rows at once it gains from, where they are small."""

    @property
    def layer_names(self) -> list[str] | None:
        """Names of the direct children of the network, None where it has no such thing."""
        ...

    @property
    def output(self) -> str:
        """What the network returns: "logits", "log-probabilities" or "probabilities"."""
        ...

    @property
    def takes_indices(self) -> bool:
        """Whether the loss takes class indices rather than one row for each input."""
        ...

    @property
    def least_batch(self) -> int | None:
        """The fewest rows that should be scored at once where each number of rows is compiled anew, None where none is.

        Fewer are filled up to it, more to one of few sizes or to a whole batch.
        """
        ...

    def as_jax(self) -> Classifier:
        """Return the network as a JAX function."""
        ...

    def like(self, x: Any, array: np.ndarray) -> Any:
        """Return an array as a tensor of the framework if x is one, else as it is."""
        ...

    def scoring(self, *, training: bool = False) -> AbstractContextManager[Scores]:
        """Lend a function from inputs to outputs `[B, C]`, for batch after batch.

        The network may write to the inputs: they are not to be used again.
        """
        ...

    def vjp(self, x: np.ndarray | jax.Array, weigh: Weigh, *, copies: int = 1, training: bool = False) -> np.ndarray:
        """Return the gradient in x of the outputs weighted by `weigh(outputs)`, which is held constant.

        The gradients of every so many rows, the copies of one input, come as their sum.
        """
        ...

    def loss(self, x: np.ndarray, y: Any, *, training: bool = False) -> np.ndarray:
        """Return the loss of each row."""
        ...

    def loss_from_scores(self, scores: np.ndarray, y: Any) -> np.ndarray:
        """Return the loss of each row of outputs."""
        ...

    def loss_gradient(self, x: np.ndarray, y: Any, *, training: bool = False) -> np.ndarray:
        """Return the gradient in x of the loss under its own reduction."""
        ...

    def fit(self, batches: Iterable[tuple[np.ndarray, Any]], *, training: bool = True) -> None:
        """Make one training step for each batch."""
        ...

    def activations(self, x: np.ndarray, layer: Any, *, framework: bool = False) -> Any:
        """Return what a layer, by name or index, returns: an array, or a tensor of the framework with its graph."""
        ...

    def activation_gradient(
        self, loss: Callable[[Any, Any], Any], x: np.ndarray, y: np.ndarray, layer: Any, *, training: bool = False
    ) -> np.ndarray:
        """Return the gradient in x of a loss of the activations of x and those of y at a layer."""
        ...

    def widest_layer(self, x: np.ndarray) -> int:
        """Return how many values the largest output of a layer has, for these inputs."""
        ...

    def save(self, path: Path) -> None:
        """Write the weights, and the optimizer's state, to files that begin with this path."""
        ...

    def load(self, path: Path) -> None:
        """Read what `save` wrote."""
        ...

    def reset(self) -> None:
        """Draw all weights anew and forget the optimizer's state."""
        ...
