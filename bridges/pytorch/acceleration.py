"""Faster ways to run a module for its votes, for callers who ask for them."""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

_WAYS = ("channels_last", "bfloat16", "compile")


class Accelerated(nn.Module):
    """A module run in some faster ways. The module itself is not changed.

    The classes make one for their `acceleration`. `as_jax` takes one as it takes any module, for example to certify the
    bfloat16 version of a network from the votes of the network (`jaxsmooth.certify_changed`).

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
        super().__init__()
        self.module = module
        self.ways = frozenset(ways)
        # In a list, so that it is no second part of this module.
        self._compiled: list[Callable[[torch.Tensor], Any]] = []

    @property
    def fixed_batch(self) -> bool:
        """Whether another number of rows would compile the module again."""
        return "compile" in self.ways

    @property
    def dtype_name(self) -> str:
        """What the votes are computed in."""
        dtype = next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32)
        return "bfloat16 autocast" if "bfloat16" in self.ways else str(dtype).removeprefix("torch.")

    def forward(self, x: torch.Tensor) -> Any:
        """Run the module."""
        if self.fixed_batch and not self._compiled:
            self._compiled.append(torch.compile(self.module, dynamic=False))
        run = self._compiled[0] if self._compiled else self.module
        if "channels_last" in self.ways and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        if "bfloat16" not in self.ways:
            return run(x)
        with torch.autocast(x.device.type, torch.bfloat16):
            return run(x)

    def __getstate__(self) -> dict[str, Any]:
        """Leave compiled code out of copies and pickles."""
        return {**self.__dict__, "_compiled": []}

    def extra_repr(self) -> str:
        """Return the ways: a network in bfloat16 is another classifier."""
        return ", ".join(sorted(self.ways))
