"""The user's PyTorch loss, read without changing it: labels in its form, loss by row, what it takes for scores."""

import copy
import inspect
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from bridges.inputs import as_targets

_INDEX = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss, F.cross_entropy, F.nll_loss, F.multi_margin_loss)
_LOG_PROBABILITIES = (nn.NLLLoss, F.nll_loss)
_PROBABILITIES = (nn.BCELoss, F.binary_cross_entropy)
_BINARY_LOGITS = (nn.BCEWithLogitsLoss, F.binary_cross_entropy_with_logits)


class Loss:
    """A PyTorch loss: a module of `torch.nn` or a function of (scores, labels)."""

    def __init__(self, function: Any, classes: int) -> None:
        if not callable(function) or isinstance(function, type):
            raise TypeError(f"loss must be a PyTorch loss object or a function, got {function!r}")
        self.function: Any = function
        self.classes = classes

    @property
    def takes_indices(self) -> bool:
        """Whether the loss takes class indices rather than one row for each input."""
        return _is(self.function, _INDEX)

    @property
    def output(self) -> str:
        """What it takes the model's outputs for."""
        if _is(self.function, _LOG_PROBABILITIES):
            return "log-probabilities"
        return "probabilities" if _is(self.function, _PROBABILITIES) else "logits"

    def two_columns(self, scores: torch.Tensor) -> torch.Tensor:
        """Return scores of two classes from the one output of a binary model.

        Raises:
            ValueError: it is not known whether the output is a logit or a probability.
        """
        if _is(self.function, _BINARY_LOGITS):
            return torch.cat([-scores, scores], dim=1)
        if _is(self.function, _PROBABILITIES):
            return torch.cat([1 - scores, scores], dim=1)
        raise ValueError(
            "a model with one output needs BCELoss or BCEWithLogitsLoss as its loss, which says how to read it, "
            f"got {self.function!r}"
        )

    def labels(self, y: Any, number: int, width: int, device: torch.device) -> torch.Tensor:
        """Return labels in the form that the loss takes, for scores `[number, width]`."""
        targets = as_targets(y, number, self.classes, width, indices=self.takes_indices)
        return torch.as_tensor(targets, device=device)

    def __call__(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss under its own reduction, as one number."""
        value = self.function(scores, labels)
        return value if value.ndim == 0 else value.mean()

    def by_row(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of each row. The user's object keeps its reduction."""
        if hasattr(self.function, "reduction"):
            function: Any = copy.copy(self.function)
            function.reduction = "none"
            values = function(scores, labels)
        elif "reduction" in _parameters(self.function):
            values = self.function(scores, labels, reduction="none")
        else:
            pairs = zip(scores.split(1), labels.split(1), strict=True)
            values = torch.stack([self.function(row, label).mean() for row, label in pairs])
        return values.reshape(len(scores), -1).mean(dim=1)


def _is(function: Any, known: tuple[Any, ...]) -> bool:
    return function in known or type(function) in known


def _parameters(function: Any) -> Any:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
