"""What the shared classes need of PyTorch: outputs, losses, gradients, training steps, activations."""

import contextlib
import copy
import functools
import inspect
import zipfile
from collections.abc import Callable, Collection, Generator, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from torch import nn

from bridges.archives import refuse_packed
from bridges.backend import Judge, Scores, Weigh
from bridges.batches import CPU, GPU
from bridges.layers import only_output, pair
from bridges.losses import PROBABILITIES, kind_of_rows
from bridges.outputs import Reading
from bridges.pytorch.acceleration import Accelerated
from bridges.pytorch.call import TorchFunction
from bridges.pytorch.layers import detach_computed, find_layer, layer_names, recorded, reinitialise
from bridges.pytorch.losses import Loss
from bridges.pytorch.modes import evaluating, evaluation_mode, own_modes, placement, training
from bridges.pytorch.transfer import narrowed, to_torch

# Nodes of the graph that change no number, and the ones that tell what outputs are.
_SHAPES = ("View", "UnsafeView", "Squeeze", "Unsqueeze", "Reshape", "ToCopy", "Alias", "Clone", "Transpose", "Permute")
_OPERATIONS = {
    "SigmoidBackward": PROBABILITIES,
}


class TorchBackend:
    """A module with its loss and optimizer, on one device.

    Args:
        model: the network, moved to the device.
        loss: of (outputs, labels).
        optimizer: of the network's parameters, or None.
        classes: number of classes.
        device: where it runs.
        acceleration: faster ways to compute scores in evaluation mode.
        output: the user's function from what the network returns to its outputs, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: Any,
        classes: int,
        device: torch.device,
        acceleration: Collection[str] = (),
        output: Callable[[Any], Any] | None = None,
    ) -> None:
        self.reading = Reading(output, classes, "model_output")
        self.accelerated = Accelerated(model, acceleration)
        self.model = model.to(device)
        self.loss_function = loss
        self.optimizer = optimizer
        self.classes = classes
        self.device = device
        self.frozen: set[type[nn.Module]] = set()
        self.use_amp = False
        limits = CPU if device.type == "cpu" else GPU
        # torch.compile takes some 20 seconds for each number of rows: there are only whole batches.
        self.limits = limits._replace(least=limits.rows) if self.accelerated.fixed_batch else limits

    @property
    def layer_names(self) -> list[str]:
        """Names of the direct children of the module."""
        return layer_names(self.model)

    def as_jax(self) -> TorchFunction:
        """Return the module as a JAX function."""
        return TorchFunction(self.model, self.reading)

    def is_tensor(self, x: Any) -> bool:
        """Return whether x is a tensor."""
        return isinstance(x, torch.Tensor)

    def as_tensor(self, x: Any) -> torch.Tensor:
        """Return an array, or a tensor with its graph, as a float32 tensor on the device."""
        return x.to(self.device, torch.float32) if isinstance(x, torch.Tensor) else self._tensor(x)

    def like(self, x: Any, array: np.ndarray) -> Any:
        """Return an array as a tensor on the device of x if x is one, else as it is."""
        return torch.as_tensor(array, device=x.device) if isinstance(x, torch.Tensor) else array

    def on_host(self, noisy: jax.Array) -> np.ndarray:
        """Return a view that the module may write to, because nothing reads noisy inputs again."""
        return torch.from_dlpack(jax.block_until_ready(noisy)).cpu().numpy()

    def outputs(self, x: torch.Tensor, *, training: bool = False) -> torch.Tensor:
        """Return the outputs of the network for a tensor, with its graph."""
        with self._running(training, gradient=True):
            return self._forward(x)

    @contextlib.contextmanager
    def scoring(self, *, training: bool = False) -> Generator[Scores]:
        """Lend a function from inputs to scores `[B, C]`; two classes from one output of a binary model."""
        run = self.accelerated if self.accelerated.ways and not training else self.model
        dtype = placement(self.model, self.device)[1] or torch.float32

        def scores(x: np.ndarray | jax.Array) -> np.ndarray:
            with self._running(True) if training else own_modes(self.device):
                outputs = self._outputs(run, self._view(x), dtype)
                if outputs.shape[1] < self.classes:
                    outputs = self.loss_function.columns(outputs)
                outputs = outputs.detach()
                is_wide = outputs.dtype.itemsize > 4
                return (narrowed(outputs, torch.float32) if is_wide else outputs.float()).cpu().numpy()

        # Once for all batches, because it takes time. Gradients are off only for the network.
        with contextlib.nullcontext() if training else evaluation_mode(self.model):
            yield scores

    def vjp(self, x: np.ndarray | jax.Array, weigh: Weigh, *, copies: int = 1, training: bool = False) -> np.ndarray:
        """Return the gradient in x of the scores weighted by `weigh(scores)`, held constant, summed over copies."""
        with self._running(training, gradient=True):
            leaf = self._view(x).requires_grad_()
            scores = self._two_columns(self._forward(leaf))
            cotangent = self._tensor(weigh(_to_numpy(scores))).to(scores.dtype)
            (gradient,) = torch.autograd.grad(scores, leaf, cotangent)
            return _to_numpy(gradient.unflatten(0, (-1, copies)).sum(1) if copies > 1 else gradient)

    def loss(self, x: np.ndarray, y: Any, reduction: str, *, training: bool = False) -> np.ndarray:
        """Return the loss of each row for "none", or the loss's own "mean" or "sum" of them."""
        with self._running(training):
            outputs = self._forward(self._tensor(x))
            return _to_numpy(self.loss_function.reduced(outputs, self._labels(y, outputs), reduction))

    def loss_from_scores(self, scores: np.ndarray, y: Any, reduction: str) -> np.ndarray:
        """Return the same of outputs."""
        with torch.no_grad():
            outputs = self._tensor(scores)
            return _to_numpy(self.loss_function.reduced(outputs, self._labels(y, outputs), reduction))

    def last_operation(self, x: np.ndarray) -> str | None:
        """Return what the network makes of these inputs: by the numbers, of one output by the last operation."""
        with self._running(False, gradient=True):
            try:
                # Row by row, since the caller may bear no larger batch.
                outputs = [self._forward(self._tensor(x[i : i + 1]).requires_grad_()) for i in range(len(x))]
            except Exception:  # what the network cannot do is said where it is needed
                return None
        if outputs[0].shape[1] > 1:
            return kind_of_rows(_to_numpy(torch.cat(outputs)))
        node: Any = outputs[0].grad_fn
        while node is not None and node.name().startswith(_SHAPES):
            node = next((parent for parent, _ in node.next_functions if parent is not None), None)
        return None if node is None else _OPERATIONS.get(node.name().rstrip("0123456789"))

    def loss_gradient(self, x: np.ndarray, y: Any, *, training: bool = False) -> np.ndarray:
        """Return the gradient in x of the loss under its own reduction."""
        with self._running(training, gradient=True):
            leaf = self._tensor(x).requires_grad_()
            outputs = self._forward(leaf)
            return _gradient(self.loss_function(outputs, self._labels(y, outputs)), leaf)

    def refuse_untrainable(self, *, by_objective: bool = False) -> None:
        """Refuse to train without an optimizer."""
        del by_objective
        if self.optimizer is None:
            raise ValueError("an optimizer is needed to train: give it to the constructor")
        own = {id(parameter) for parameter in self.model.parameters()}
        served = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        if not any(id(parameter) in own for parameter in served):
            raise ValueError("the optimizer must be of the model's parameters, got one that has none of them")
        if not any(parameter.requires_grad for parameter in served):
            raise ValueError("the model must have a parameter that requires a gradient, and all of them are frozen")

    def advance(self, scheduler: Any, epoch: int) -> None:
        """Advance a scheduler of `torch.optim.lr_scheduler`."""
        del epoch
        scheduler.step()

    def fit(self, batches: Iterable[tuple[np.ndarray, Any]], *, training: bool = True) -> None:
        """Make one optimizer step for each batch, in the mode asked for."""
        for x, y in batches:
            with self._running(training, gradient=True, fitting=True):
                self._optimize(functools.partial(self._loss_with_gradient, x, y))

    def follow(self, batches: list[Any], judge: Judge, *, training: bool = True) -> None:
        """Make one training step along the gradient of `judge(outputs)`, the outputs `[B, C]` of each batch."""
        with self._running(training, gradient=True, fitting=True):
            self._optimize(functools.partial(self._judged_with_gradient, batches, judge))

    def _optimize(self, loss_with_gradient: Callable[[], Any]) -> None:
        """Make one step of the optimizer."""
        # Some optimizers, such as L-BFGS, ask for the loss several times in a step.
        closure = inspect.signature(self.optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            self.optimizer.step(loss_with_gradient)
        else:
            loss_with_gradient()
            self.optimizer.step()

    def _judged_with_gradient(self, batches: list[Any], judge: Judge) -> float:
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, enabled=self.use_amp):
            outputs = [self._two_columns(self._training_outputs(x)) for x in batches]
        value, weights = judge([_to_numpy(each) for each in outputs])
        pairs = zip(weights, outputs, strict=True)
        torch.autograd.backward(outputs, [self._view(weight).to(each.dtype) for weight, each in pairs])
        return value

    def _loss_with_gradient(self, x: np.ndarray, y: Any) -> torch.Tensor:
        self.optimizer.zero_grad()
        # Autocast covers the forward pass and the loss only, as PyTorch asks for.
        with torch.autocast(self.device.type, enabled=self.use_amp):
            outputs = self._training_outputs(x)
            loss = self.loss_function(outputs, self._labels(y, outputs))
        loss.backward()
        return loss

    def _training_outputs(self, x: np.ndarray | jax.Array) -> torch.Tensor:
        try:
            return self._forward(self._tensor(x) if isinstance(x, np.ndarray) else self._view(x))
        except ValueError as error:
            # Batch normalisation refuses one input in training mode, with a message that does not say what to do.
            if len(x) > 1:
                raise
            raise ValueError(f"{error}. This batch has one input: drop_last=True leaves it out") from error

    def activations(self, x: Any, layer: Any, *, framework: bool = False) -> Any:
        """Return what a layer returns for the inputs: an array, or a tensor with its graph."""
        with recorded(find_layer(self.model, layer)) as outputs, self._running(False, gradient=framework):
            self._forward(self.as_tensor(x))
        output = only_output(outputs, layer)
        return output if framework else _to_numpy(output)

    def widest_layer(self, x: np.ndarray) -> int:
        """Return how many values the largest output of a layer has, for these inputs."""
        # TorchScript takes no hooks.
        layers = [layer for layer in self.model.modules() if not isinstance(layer, torch.jit.ScriptModule)]
        with recorded(*layers, copies=False) as outputs, self._running(False):
            outputs.append(self._forward(self._tensor(x)))
        return max(output.numel() for output in outputs if isinstance(output, torch.Tensor))

    def activation_gradient(
        self, loss: Callable[[Any, Any], Any], x: np.ndarray, y: np.ndarray, layer: Any, *, training: bool = False
    ) -> np.ndarray:
        """Return the gradient in x of a loss of the activations of x and those of y at a layer."""
        with recorded(find_layer(self.model, layer)) as outputs, self._running(training, gradient=True):
            leaf = self._tensor(x).requires_grad_()
            # Two calls record two outputs of the layer, in this order.
            self._forward(leaf)
            self._forward(self._tensor(y))
            return _gradient(loss(*(only_output([output], layer) for output in pair(outputs, layer))), leaf)

    def save(self, path: Path) -> None:
        """Write the state of the model to `<path>.model`, that of the optimizer to `<path>.optimizer`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(self.model.state_dict(), f"{path}.model")
        if self.optimizer is not None:
            torch.save(self.optimizer.state_dict(), f"{path}.optimizer")
        else:  # that of other weights
            Path(f"{path}.optimizer").unlink(missing_ok=True)

    def load(self, path: Path) -> None:
        """Read what `save` wrote. The files hold only tensors: nothing in them is executed."""
        states = [_load(Path(f"{path}.model"), self.device)]
        if self.optimizer is not None:
            states.append(_load(Path(f"{path}.optimizer"), self.device))
        # Loading may fail half-way. The model then gets its weights back.
        before = copy.deepcopy(self.model.state_dict())
        try:
            self.model.load_state_dict(states[0])
            if self.optimizer is not None:
                self.optimizer.load_state_dict(states[1])
        except Exception:
            self.model.load_state_dict(before)
            raise

    def reset(self) -> None:
        """Draw all parameters again and forget the optimizer's state."""
        with torch.no_grad():
            reinitialise(self.model)
        if self.optimizer is not None:
            self.optimizer.state.clear()

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles are made of, with the places of the optimizer's parameters in the model."""
        detach_computed(self.model)
        places = {id(parameter): place for place, parameter in enumerate(self.model.parameters())}
        groups = [] if self.optimizer is None else self.optimizer.param_groups
        served = [[places.get(id(parameter)) for parameter in group["params"]] for group in groups]
        return {**self.__dict__, "served": served}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state back.

        PyTorch copies the parameters of TorchScript within a graph, and its optimizer's copy does not know them.
        """
        served = state.pop("served")
        self.__dict__.update(state)
        own = list(self.model.parameters())
        for parameter in own:
            if not parameter.is_leaf:
                parameter.detach_().requires_grad_()
        for group, places in zip(self.optimizer.param_groups if self.optimizer else [], served, strict=True):
            for at, place in enumerate(places):
                if place is not None and group["params"][at] is not own[place]:
                    if (moments := self.optimizer.state.pop(group["params"][at], None)) is not None:
                        self.optimizer.state[own[place]] = moments
                    group["params"][at] = own[place]

    def set_training(self, kinds: tuple[type[nn.Module], ...], train: bool) -> None:
        """Let the parts of these types follow training mode, or keep them in evaluation mode."""
        self.frozen = self.frozen - set(kinds) if train else self.frozen | set(kinds)

    def _running(self, is_training: bool, *, gradient: bool = False, fitting: bool = False) -> Any:
        if is_training:
            return training(self.model, self.device, self.frozen, gradient=gradient, keep_buffers=not fitting)
        return evaluating(self.model, self.device, gradient=gradient)

    def _dtype(self) -> torch.dtype:
        return placement(self.model, self.device)[1] or torch.float32

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._outputs(self.model, x, self._dtype())

    def _outputs(self, run: Callable[[torch.Tensor], Any], x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        x = x.to(dtype)
        # A leaf that requires a gradient may not be written to, and a module may write to its input.
        outputs = run(x.clone() if x.requires_grad else x)
        if not isinstance(outputs, torch.Tensor) or self.reading.output is not None:
            outputs = self.reading(outputs, type(self.model).__name__)
        width = outputs.shape[1] if outputs.ndim == 2 else None
        if width != self.classes and (width, self.classes) != (1, 2):
            raise ValueError(f"the model must return [N, {self.classes}] for nb_classes, got {tuple(outputs.shape)}")
        return outputs

    def _two_columns(self, outputs: torch.Tensor) -> torch.Tensor:
        return self.loss_function.columns(outputs) if outputs.shape[1] == 1 else outputs

    def _labels(self, y: Any, outputs: torch.Tensor) -> torch.Tensor:
        labels = torch.as_tensor(self.loss_function.labels(y, len(outputs), outputs.shape[1]), device=self.device)
        return labels.to(outputs.dtype) if labels.is_floating_point() else labels

    def _view(self, x: np.ndarray | jax.Array) -> torch.Tensor:
        """Return a tensor on the device, without a copy where it is there and may be written to."""
        if isinstance(x, jax.Array):
            return to_torch(x).to(self.device, torch.float32)
        return torch.from_numpy(np.require(x, np.float32, "W")).to(self.device)

    def _tensor(self, x: np.ndarray) -> torch.Tensor:
        """Return a tensor of its own on the device."""
        return torch.tensor(np.asarray(x, np.float32), device=self.device)


def _gradient(value: torch.Tensor, leaf: torch.Tensor) -> np.ndarray:
    (gradient,) = torch.autograd.grad(value, leaf)
    return _to_numpy(gradient)


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


def _load(path: Path, device: torch.device) -> Any:
    """Return what `torch.save` wrote. It compresses nothing: another file could be far larger in memory."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            refuse_packed(path, sum(info.file_size for info in archive.infolist()))
    return torch.load(path, map_location=device, weights_only=True)
