"""The constructor's arguments, checked and read."""

import logging
from typing import Any

import torch
from torch import nn

_LOGGER = logging.getLogger(__name__)


def check_types(model: Any, optimizer: Any) -> None:
    """Refuse a model or an optimizer of another kind."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer or None, got {type(optimizer).__name__}")


def as_device(device_type: Any) -> torch.device:
    """Return the device that is meant: CUDA for "gpu" if there is one, else the CPU."""
    if device_type == "gpu":
        if torch.cuda.is_available():
            return torch.device("cuda")
        _LOGGER.info("there is no CUDA device: the network runs on the CPU")
        return torch.device("cpu")
    try:
        return torch.device(device_type)
    except (RuntimeError, TypeError):
        raise ValueError(f"device_type must be 'gpu', 'cpu' or a PyTorch device, got {device_type!r}") from None
