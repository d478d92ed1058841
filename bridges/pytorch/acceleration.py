"""Faster ways to run a module for its votes, for callers who ask for them."""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

_WAYS = ("channels_last", "bfloat16", "compile")


class Accelerated:
    """A module run in some faster ways. The module itself is not changed.

    Args:
        module: the network.
        ways: of "channels_last", "bfloat16" and "compile".

    Raises:
        TypeError: `ways` is no collection of names. ValueError: an unknown name.

    Example:
        >>> Accelerated(nn.Linear(3, 2), ["bfloat16"])(torch.ones(4, 3)).dtype
        torch.bfloat16
    """

    def __init__(self, module: nn.Module, ways: Any = ()) -> None:
        if isinstance(ways, str) or not isinstance(ways, Collection):
            raise TypeError(f"acceleration must be a collection of names from {_WAYS}, got {ways!r}")
        unknown = [way for way in ways if way not in _WAYS]
        if unknown:
            raise ValueError(f"acceleration must consist of names from {_WAYS}, got {unknown}")
        self.module = module
        self.ways = frozenset(ways)
        self._compiled: Callable[[torch.Tensor], Any] | None = None

    @property
    def fixed_batch(self) -> bool:
        """Whether another number of rows would compile the module again."""
        return "compile" in self.ways

    @property
    def dtype_name(self) -> str:
        """What the votes are computed in."""
        dtype = next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32)
        return "bfloat16 autocast" if "bfloat16" in self.ways else str(dtype).removeprefix("torch.")

    def __call__(self, x: torch.Tensor) -> Any:
        """Run the module."""
        run = self._compiled or self.module
        if self.fixed_batch and self._compiled is None:
            run = self._compiled = torch.compile(self.module, dynamic=False)
        if "channels_last" in self.ways and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        if "bfloat16" not in self.ways:
            return run(x)
        with torch.autocast(x.device.type, torch.bfloat16):
            return run(x)

    def __getstate__(self) -> dict[str, Any]:
        """Leave compiled code out of copies and pickles."""
        return {**self.__dict__, "_compiled": None}
