"""The form in which ART's tools call a PyTorch network."""

from collections.abc import Callable
from typing import Any

from torch import nn


class ListingModule(nn.Module):
    """A network whose outputs come as the last entry of a list, as those of ART's own wrapper do.

    Args:
        model: the network. Its parameters and its mode are those of this module.
        read: returns the outputs in what the network returns.
    """

    def __init__(self, model: nn.Module, read: Callable[[Any], Any]) -> None:
        super().__init__()
        self.training = model.training
        self._model = model
        self._read = read

    @property
    def module_of_ours(self) -> nn.Module:
        """The network."""
        return self._model

    def forward(self, x: Any) -> list[Any]:
        """Return the outputs in a list."""
        return [self._read(self._model(x))]
