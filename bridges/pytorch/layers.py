"""The layers of a module: their names, their activations, fresh parameters."""

import contextlib
from collections.abc import Generator
from typing import Any

from torch import nn

from bridges.layers import layer_index


def layer_names(model: nn.Module) -> list[str]:
    """Return the names of the direct children."""
    return [name for name, _ in model.named_children()]


def find_layer(model: nn.Module, layer: Any) -> nn.Module:
    """Return a direct child by its name or its index, with the errors of `layer_index`."""
    return list(model.children())[layer_index(layer, layer_names(model))]


@contextlib.contextmanager
def recorded(*layers: nn.Module) -> Generator[list[Any]]:
    """Collect what layers return while the body runs. No hook is left behind."""
    outputs: list[Any] = []

    def record(_: nn.Module, __: Any, output: Any) -> None:
        outputs.append(output)

    hooks = [layer.register_forward_hook(record) for layer in layers]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def reinitialise(model: nn.Module) -> None:
    """Draw every parameter again, from PyTorch's generator.

    A part that has `reset_parameters`, as the layers of torch.nn have, is initialised by it. Parameters of other parts
    are drawn uniformly within 1 / sqrt(fan in), like those of a linear layer.
    """
    for part in model.modules():
        reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
        if reset is not None:
            reset()
            continue
        for parameter in part.parameters(recurse=False):
            bound = (parameter[0].numel() if parameter.ndim > 1 else max(1, parameter.numel())) ** -0.5
            nn.init.uniform_(parameter, -bound, bound)
