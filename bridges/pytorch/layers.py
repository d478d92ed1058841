"""The layers of a module: their names, their activations, fresh parameters."""

import contextlib
import threading
from collections.abc import Generator
from typing import Any, cast

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_map

from bridges.layers import layer_index

_POWER_ITERATIONS = 15  # as `spectral_norm` makes at first


def layer_names(model: nn.Module) -> list[str]:
    """Return the names of the direct children."""
    return [name for name, _ in model.named_children()]


def find_layer(model: nn.Module, layer: Any) -> nn.Module:
    """Return a direct child by its name or its index, with the errors of `layer_index`.

    Raises:
        ValueError: it is TorchScript, whose outputs cannot be recorded.
    """
    found = list(model.children())[layer_index(layer, layer_names(model))]
    if isinstance(found, torch.jit.ScriptModule):
        raise ValueError(f"layer must not be TorchScript, whose outputs cannot be recorded, and {layer!r} is")
    return found


@contextlib.contextmanager
def recorded(*layers: nn.Module, copies: bool = True) -> Generator[list[Any]]:
    """Collect what layers return while the body runs. No hook is left behind.

    They are copies, unless told otherwise, because the next layer may write to its input.
    """
    outputs: list[Any] = []
    me = threading.get_ident()

    def record(_: nn.Module, __: Any, output: Any) -> None:
        if threading.get_ident() == me:  # another thread may run the module, too
            outputs.append(tree_map(_copied, output) if copies else output)

    hooks = [layer.register_forward_hook(record) for layer in layers]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


def reinitialise(model: nn.Module) -> None:
    """Draw every parameter again, from PyTorch's generator, whatever stands before it.

    A part that has `reset_parameters`, as the layers of torch.nn have, is initialised by it. Parameters of other parts
    are drawn uniformly within 1 / sqrt(fan in), like those of a linear layer. Where `weight_norm`, `spectral_norm` or a
    parametrization computes a weight from others, those are set so that it is the weight that was drawn.
    """
    for part in model.modules():
        if isinstance(part, parametrize.ParametrizationList):
            continue  # the part that it belongs to sets it
        names = list(cast(Any, part).parametrizations) if parametrize.is_parametrized(part) else []
        # While they are cached, an initialiser writes to computed weights, and they stay.
        with parametrize.cached() if names else contextlib.nullcontext():
            hooked = {hook: getattr(part, hook.name).clone() for hook in _hooks(part)}
            for hook in _prunings(part):
                # An initialiser writes to this weight, which the mask is multiplied with in the next call.
                vars(part)[hook._tensor_name] = getattr(part, f"{hook._tensor_name}_orig")
            drawn = {name: getattr(part, name) for name in names}
            reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
            if reset is None:
                for weight in (*part.parameters(recurse=False), *drawn.values()):
                    _draw(weight)
            else:
                reset()
            drawn = {name: getattr(part, name).clone() for name in names}
        for name, weight in drawn.items():
            _set_parametrized(part, name, weight)
        for hook, before in hooked.items():
            weight = getattr(part, hook.name)
            if not torch.equal(weight, before):  # recurrent layers draw the parameters themselves
                _set_hooked(part, hook, weight)


def detach_computed(model: nn.Module) -> None:
    """Cut the graph of weights that a hook computed in the last call, since PyTorch copies no tensor within a graph.

    The next call computes them again.
    """
    for part in model.modules():
        for hook in _hooks(part):
            setattr(part, hook.name, getattr(part, hook.name).detach())


def _draw(weight: torch.Tensor) -> None:
    """Draw a weight uniformly within 1 / sqrt(fan in)."""
    bound = (weight[0].numel() if weight.ndim > 1 else max(1, weight.numel())) ** -0.5
    nn.init.uniform_(weight, -bound, bound)


def _hooks(part: nn.Module) -> list[Any]:
    """Return the hooks that compute weights before each call: those of `weight_norm` and the old `spectral_norm`."""
    return [
        hook for hook in cast(Any, part)._forward_pre_hooks.values() if isinstance(hook, (WeightNorm, SpectralNorm))
    ]


def _prunings(part: nn.Module) -> list[Any]:
    """Return the hooks that multiply weights with masks before each call."""
    return [hook for hook in cast(Any, part)._forward_pre_hooks.values() if isinstance(hook, BasePruningMethod)]


def _set_hooked(part: nn.Module, hook: Any, weight: torch.Tensor) -> None:
    """Set the parameters that a hook computes a weight from."""
    if isinstance(hook, SpectralNorm):
        getattr(part, f"{hook.name}_orig").copy_(weight)
        for _ in range(_POWER_ITERATIONS):  # the vectors of the old weight say nothing of the norm of the new one
            hook.compute_weight(part, do_power_iteration=True)
        return
    getattr(part, f"{hook.name}_v").copy_(weight)
    getattr(part, f"{hook.name}_g").copy_(torch.norm_except_dim(weight, 2, hook.dim))


def _set_parametrized(part: nn.Module, name: str, weight: torch.Tensor) -> None:
    """Set the parameters that a parametrization computes a weight from, or draw them if that cannot be turned round."""
    try:
        setattr(part, name, weight)
        for computed in cast(Any, part).parametrizations[name]:
            if hasattr(computed, "_power_method"):  # that of spectral_norm, as for the hook
                computed._power_method(computed._reshape_weight_to_matrix(weight), _POWER_ITERATIONS)
    except (NotImplementedError, ValueError, RuntimeError):
        for parameter in cast(Any, part).parametrizations[name].parameters(recurse=False):
            _draw(parameter)
