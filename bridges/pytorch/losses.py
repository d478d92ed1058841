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
_SIGNS = (nn.SoftMarginLoss, F.soft_margin_loss, nn.HingeEmbeddingLoss, F.hinge_embedding_loss)


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
        """Whether the loss takes class indices: of PyTorch's losses it is known, others are tried."""
        if _is_of_torch(self.function):
            return _is(self.function, _TAKE_INDICES)
        return self.tried()[0]

    @property
    def takes_rows(self) -> bool:
        """Whether the loss takes one row of numbers for each input."""
        if _is_of_torch(self.function):
            return not self.takes_indices or _is(self.function, _TAKE_BOTH)
        return self.tried()[1] or not self.tried()[0]

    @property
    def takes_signs(self) -> bool:
        """Whether labels are -1 and 1 in the rows that the loss takes, not 0 and 1."""
        return _is(self.function, _SIGNS)

    @property
    def takes_log_rows(self) -> bool:
        """Whether the rows that the loss takes are log-probabilities."""
        keywords = getattr(self.function, "keywords", {})
        return bool(getattr(unwrapped(self.function), "log_target", keywords.get("log_target", False)))

    def try_labels(self) -> tuple[bool, bool]:
        """Try class indices, and rows, on scores that say nothing."""
        tensors = list(self.function.buffers()) if isinstance(self.function, nn.Module) else []
        device = tensors[0].device if tensors else None
        scores = torch.full((self.classes + 1, self.classes), 1 / self.classes, device=device)
        indices = torch.arange(self.classes + 1, device=device) % self.classes
        rows = F.one_hot(indices, self.classes).float()
        with torch.no_grad(), torch.random.fork_rng([]):  # the user's loss may draw
            takes_indices = losses.accepts(self.function, scores, indices)
            return takes_indices, losses.accepts(self.function, scores, rows)

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
            own = self(scores, labels)
            # The mean over no row, where the loss ignores the label.
            rows = torch.where(rows.isnan() & own.isfinite(), torch.zeros_like(rows), rows)
            if reduction != "mean":
                return rows if reduction == "none" else rows.sum()
            # Of all rows twice, the sum is twice as large, and the mean, with the weights of the loss, is the same.
            twice = self(torch.cat([scores, scores]), torch.cat([labels, labels]))
            return rows.mean() if abs(twice - 2 * own) < abs(twice - own) else own
        if reduction == "none":
            by_row = values.reshape(len(scores), -1)
            return by_row.sum(dim=1) if getattr(self.function, "reduction", "") == "batchmean" else by_row.mean(dim=1)
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
            if not (reduction == "mean" and own.reduction == "batchmean"):  # that is its own mean
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


def _is_of_torch(function: Any) -> bool:
    """Return whether a loss is one of PyTorch's, and of no subclass, which may take other labels."""
    function = unwrapped(function)
    kind = type(function) if isinstance(function, nn.Module) else function
    return str(getattr(kind, "__module__", "")).startswith("torch.nn.")


def _parameters(function: Any) -> Any:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
