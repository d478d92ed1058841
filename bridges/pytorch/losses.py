"""The user's PyTorch loss, read without changing it."""

import copy
import functools
import inspect
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from bridges import losses
from bridges.losses import LOG_PROBABILITIES, LOGITS, PROBABILITIES, unwrapped

_TAKE_BOTH = (nn.CrossEntropyLoss, F.cross_entropy)
_TAKE_INDICES = (*_TAKE_BOTH, nn.NLLLoss, nn.MultiMarginLoss, F.nll_loss, F.multi_margin_loss)
_LOG_PROBABILITIES = (nn.NLLLoss, F.nll_loss, nn.KLDivLoss, F.kl_div)
_PROBABILITIES = (nn.BCELoss, F.binary_cross_entropy)
_BINARY_LOGITS = (nn.BCEWithLogitsLoss, F.binary_cross_entropy_with_logits)
_LOGITS = (*_TAKE_BOTH, *_BINARY_LOGITS)


class Loss(losses.Loss):
    """A PyTorch loss: a module of `torch.nn`, of a subclass, or a function of (scores, labels)."""

    binary_loss = "BCELoss or BCEWithLogitsLoss"

    def __init__(self, function: Any, classes: int, from_logits: Any) -> None:
        if function is None:
            raise TypeError("loss must be a PyTorch loss object or a function, got None")
        super().__init__("loss", function, classes, from_logits)

    def read_by_loss(self) -> str | None:
        """Return what the loss takes the outputs for; None if it does not say."""
        known = {LOG_PROBABILITIES: _LOG_PROBABILITIES, PROBABILITIES: _PROBABILITIES, LOGITS: _LOGITS}
        return next((read for read, kinds in known.items() if _is(self.function, kinds)), None)

    @property
    def is_binary(self) -> bool | None:
        """Whether the loss is of one output for two classes; None if it is not known."""
        if _is(self.function, (*_PROBABILITIES, *_BINARY_LOGITS)):
            return True
        return False if self.takes_indices else None

    @property
    def takes_indices(self) -> bool:
        """Whether the loss takes class indices."""
        return _is(self.function, _TAKE_INDICES)

    @property
    def takes_rows(self) -> bool:
        """Whether the loss takes one row of numbers for each input."""
        return not self.takes_indices or _is(self.function, _TAKE_BOTH)

    def columns(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return scores of two classes from the one output of a binary network."""
        return self.two_columns(outputs, lambda columns: torch.cat(columns, dim=1))

    def __call__(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss under its own reduction, as one number."""
        value = self.function(scores, labels)
        return value if value.ndim == 0 else value.mean()

    def reduced(self, scores: torch.Tensor, labels: torch.Tensor, reduction: str) -> torch.Tensor:
        """Return the loss of each row, or the loss's own mean or sum of them. The user's object stays as it is."""
        if (values := self._by_own_reduction(scores, labels, "none")) is None:
            pairs = zip(scores.split(1), labels.split(1), strict=True)
            rows = torch.stack([self.function(row, label).mean() for row, label in pairs])
            if reduction != "mean":
                return rows if reduction == "none" else rows.sum()
            own = self(scores, labels)  # the mean, with the weights of the loss, unless it is the sum
            return rows.mean() if abs(own - rows.sum()) < abs(own - rows.mean()) else own
        if reduction == "none":
            return values.reshape(len(scores), -1).mean(dim=1)
        reduced = self._by_own_reduction(scores, labels, reduction)
        assert reduced is not None
        rows = reduced.reshape(len(scores), -1).mean(dim=1) if reduced.ndim else None
        return reduced if rows is None else {"mean": rows.mean(), "sum": rows.sum()}[reduction]

    def _by_own_reduction(self, scores: torch.Tensor, labels: torch.Tensor, reduction: str) -> torch.Tensor | None:
        """Return the loss under a reduction that it knows; None for "none" if it does not give the losses by row."""
        function = self.function
        if isinstance(function, functools.partial) and not function.args and not function.keywords:
            function = function.func
        if hasattr(function, "reduction"):
            own: Any = copy.copy(function)
            own.reduction = reduction
            values = own(scores, labels)
        elif "reduction" in _parameters(function):
            values = function(scores, labels, reduction=reduction)
        else:
            values = function(scores, labels)
        return values if values.ndim > 0 or reduction != "none" else None


def _is(function: Any, known: tuple[Any, ...]) -> bool:
    function = unwrapped(function)
    return any(isinstance(function, one) if isinstance(one, type) else function is one for one in known)


def _parameters(function: Any) -> Any:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
