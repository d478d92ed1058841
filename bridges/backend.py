"""What a framework must supply to be smoothed: a network, its loss, its gradients, its training step."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from bridges.batches import Limits
from bridges.losses import Loss
from bridges.outputs import Reading
from jaxsmooth import Classifier

Scores = Callable[[np.ndarray | jax.Array], np.ndarray]
Weigh = Callable[[np.ndarray], np.ndarray]
Judge = Callable[[list[np.ndarray]], tuple[float, list[np.ndarray]]]
"""From the outputs for some batches to a loss of them, and its derivatives in them."""


class Backend(Protocol):
    """A network with a loss and an optimizer. Arrays are NumPy's where no other is named."""

    model: Any
    optimizer: Any
    limits: Limits

    @property
    def loss_function(self) -> Loss:
        """The user's loss."""
        ...

    @property
    def reading(self) -> Reading:
        """How outputs are read from what the network returns."""
        ...

    @property
    def layer_names(self) -> list[str] | None:
        """Names of the direct children of the network, None where it has no such thing."""
        ...

    def as_jax(self) -> Classifier:
        """Return the network as a JAX function."""
        ...

    def is_tensor(self, x: Any) -> bool:
        """Return whether x is a tensor of the framework."""
        ...

    def as_tensor(self, x: Any) -> Any:
        """Return an array, or a tensor with its graph, as a float32 tensor of the framework."""
        ...

    def like(self, x: Any, array: np.ndarray) -> Any:
        """Return an array as a tensor of the framework if x is one, else as it is."""
        ...

    def on_host(self, noisy: jax.Array) -> np.ndarray:
        """Return noisy inputs in the host's memory, as arrays that the network may write to if it does that."""
        ...

    def outputs(self, x: Any, *, training: bool = False) -> Any:
        """Return the outputs of the network for a tensor, with its graph."""
        ...

    def scoring(self, *, training: bool = False) -> AbstractContextManager[Scores]:
        """Lend a function from inputs to outputs `[B, C]`, for batch after batch.

        The network may write to the inputs, so the caller does not use them again.
        """
        ...

    def vjp(self, x: np.ndarray | jax.Array, weigh: Weigh, *, copies: int = 1, training: bool = False) -> np.ndarray:
        """Return the gradient in x of the outputs weighted by `weigh(outputs)`, which is held constant.

        Each `copies` rows that follow each other are the copies of one input: their gradients come as one sum.
        """
        ...

    def loss(self, x: np.ndarray, y: Any, reduction: str, *, training: bool = False) -> np.ndarray:
        """Return the loss of each row for "none", or the loss's own "mean" or "sum" of them."""
        ...

    def loss_from_scores(self, scores: np.ndarray, y: Any, reduction: str) -> np.ndarray:
        """Return the same of outputs."""
        ...

    def loss_gradient(self, x: np.ndarray, y: Any, *, training: bool = False) -> np.ndarray:
        """Return the gradient in x of the loss under its own reduction."""
        ...

    def refuse_untrainable(self, *, by_objective: bool = False) -> None:
        """Refuse to train without what it takes; by an objective, no loss of the user's is needed."""
        ...

    def advance(self, scheduler: Any, epoch: int) -> None:
        """Advance a scheduler at the end of an epoch."""
        ...

    def fit(self, batches: Iterable[tuple[np.ndarray, Any]], *, training: bool = True) -> None:
        """Make one training step for each batch."""
        ...

    def follow(self, batches: list[Any], judge: Judge, *, training: bool = True) -> None:
        """Make one training step along the gradient of `judge(outputs)`, the outputs `[B, C]` of each batch.

        Each batch is one call of the network, in the mode asked for.
        """
        ...

    def activations(self, x: Any, layer: Any, *, framework: bool = False) -> Any:
        """Return what a layer, by name or index, returns for an array or a tensor: an array or a tensor."""
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
        """Draw all weights again and forget the optimizer's state."""
        ...
