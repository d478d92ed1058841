"""Run a module as a function: evaluation mode, no ambient settings, everything as it was afterwards."""

import contextlib
import itertools
import threading
from collections.abc import Collection, Generator
from typing import Any

import torch
from torch import nn

BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)  # pyright: ignore[reportPrivateUsage]

_GATE = threading.Condition()
_RUNNING: dict[int, int] = {}  # how many run a part that trains otherwise, by its id: it is not freed while it runs
_USERS: dict[int, list[tuple[int, bool]]] = {}  # threads that run a part, by its id, and whether in training mode


@contextlib.contextmanager
def _entered(module: nn.Module, *, trains: bool) -> Generator[list[nn.Module]]:
    """Run the body while no other thread runs a part of the module in another mode, or trains it too.

    The mode belongs to the module: one thread in training mode would let dropout into the certificates of another.
    """
    parts = list(module.modules())
    me = threading.get_ident()
    with _GATE:
        while _USERS and any(
            thread != me and (trains or training) for part in parts for thread, training in _USERS.get(id(part), ())
        ):
            _GATE.wait()
        for part in parts:
            _USERS.setdefault(id(part), []).append((me, trains))
    try:
        yield parts
    finally:
        with _GATE:
            for part in parts:
                users = _USERS[id(part)]
                users.remove((me, trains))
                if not users:
                    del _USERS[id(part)]
            _GATE.notify_all()


def placement(module: nn.Module, otherwise: torch.device) -> tuple[torch.device, torch.dtype | None]:
    """Return the device and the floating dtype of a module's tensors; of one without tensors, the device given."""
    device = None
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        device = device or tensor.device
        if tensor.is_floating_point():
            return device, tensor.dtype
    return device or otherwise, None


@contextlib.contextmanager
def evaluating(module: nn.Module, device: torch.device, *, gradient: bool = False) -> Generator[None]:
    """Run the body with the module in evaluation mode and with the thread's own modes shut out.

    Inference mode and autocast belong to a thread: those of the caller do not hold on XLA's threads, so that they are
    set here and never inherited.
    """
    with evaluation_mode(module), own_modes(device, gradient=gradient), _recurrent(module, device, gradient):
        yield


def _recurrent(module: nn.Module, device: torch.device, gradient: bool) -> contextlib.AbstractContextManager[Any]:
    """Leave out cuDNN for gradients of recurrent layers: it has none in evaluation mode."""
    if gradient and device.type == "cuda" and any(isinstance(part, nn.RNNBase) for part in module.modules()):
        return torch.backends.cudnn.flags(enabled=False)
    return contextlib.nullcontext()


@contextlib.contextmanager
def training(
    module: nn.Module,
    device: torch.device,
    frozen: Collection[type[nn.Module]] = (),
    *,
    gradient: bool = False,
    keep_buffers: bool = False,
) -> Generator[None]:
    """Run the body with the module in training mode, but for the parts of the frozen types.

    With `keep_buffers` the statistics that training mode updates are put back afterwards.
    """
    with _entered(module, trains=True) as parts:
        modes = [(part, part.training) for part in parts if hasattr(part, "training")]
        buffers = [(buffer, buffer.clone()) for buffer in module.buffers()] if keep_buffers else []
        for part, _ in modes:
            part.training = not isinstance(part, tuple(frozen))
        try:
            with own_modes(device, gradient=gradient):
                yield
        finally:
            for part, mode in modes:
                part.training = mode
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)


def own_modes(device: torch.device, *, gradient: bool = False) -> contextlib.AbstractContextManager[Any]:
    """Run the body with or without gradients, and out of the inference mode and autocast of the thread."""
    graph = torch.enable_grad() if gradient else torch.no_grad()
    if torch.is_inference_mode_enabled() or torch.is_autocast_enabled(device.type):
        return _left_modes(device, graph)
    return graph  # this runs for every batch, and the others take time even where there is nothing to leave


@contextlib.contextmanager
def _left_modes(device: torch.device, graph: contextlib.AbstractContextManager[Any]) -> Generator[None]:
    with torch.inference_mode(False), torch.autocast(device.type, enabled=False), graph:
        yield


@contextlib.contextmanager
def evaluation_mode(module: nn.Module) -> Generator[None]:
    """Switch training off on entry and back on where it was on, when the last of several threads leaves.

    Each part is counted by itself, because two modules may share it.
    """
    switched: list[nn.Module] = []
    with _entered(module, trains=False) as parts:
        with _GATE:
            for part in parts:
                running = _RUNNING.get(id(part), 0)
                if running or getattr(part, "training", False):  # a frozen script has no mode
                    _RUNNING[id(part)] = running + 1
                    part.training = False
                    switched.append(part)
        try:
            yield
        finally:
            with _GATE:
                for part in switched:
                    running = _RUNNING.pop(id(part)) - 1
                    if running:
                        _RUNNING[id(part)] = running
                    else:
                        part.training = True
