"""A PyTorch module as a JAX function with a gradient."""

import contextlib
from collections.abc import Callable, Generator
from typing import Any, Literal, overload

import jax
import numpy as np
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from bridges.callbacks import BridgedFunction, Signature
from bridges.outputs import Reading, settings_as_weights
from bridges.pytorch.modes import BATCH_NORMS, evaluating, own_modes, placement
from bridges.pytorch.transfer import narrowed, to_jax, to_jax_dtype, to_torch, to_torch_dtype
from bridges.randomness import seed_words
from jaxsmooth import RandomClassifier
from jaxsmooth.arguments import as_flag, refuse_other_framework
from jaxsmooth.descriptions import without_addresses


@overload
def as_jax(
    module: Any, *, output: Callable[[Any], Any] | None = None, random: Literal[False] = False
) -> "TorchFunction": ...


@overload
def as_jax(module: Any, *, output: Callable[[Any], Any] | None = None, random: Literal[True]) -> RandomClassifier: ...


def as_jax(module: Any, *, output: Callable[[Any], Any] | None = None, random: bool = False) -> Any:
    """Return a JAX function that runs a PyTorch module, forward and reverse-mode gradient.

    The function runs inside and outside of `jax.jit`, and under `jax.grad`, `jax.vmap`, `jax.lax.scan`, `jax.lax.map`
    and `jax.shard_map`. Outside of jit arrays cross by DLPack; inside, XLA hands the module its own buffers, and the
    module's result is written into XLA's. The module is called in evaluation mode, without autocast or inference mode,
    with its own dtype and device, and is left as it was: modes, gradients, parameters. A training step that
    changes the parameters takes effect at the next call and compiles nothing.

    Args:
        module: takes one tensor `[B, *event]` and returns one `[B, *result]`, for every B. A row of the result depends
            only on that row of the input. It may also return a mapping with "logits", as Hugging Face's models do, or a
            tuple or list whose first entry are the scores (`bridges.outputs.Reading` has the rules).
        output: a function from what the module returns to one such tensor, for anything else.
        random: whether the module is random given its input, such as a denoiser that samples or dropout that stays on.
            It is called in the modes that its parts are in: switch on what is to be random, and nothing else; batch
            normalisation in training mode is refused at the call. What is returned is then a
            `jaxsmooth.RandomClassifier` with `of_batch=True`, for `compiled=False`: PyTorch's generator is seeded for
            each batch from the keys of its rows, so that votes repeat, and depend on the batch size. The generator of
            the caller stays as it was.

    Returns:
        A function of one array `[B, *event]`: floats, or integers, which reach the module as they are. Two functions of
        the same module are equal. Results have the module's dtype, float64 becoming float32 unless `jax_enable_x64` is
        set.

    Raises:
        TypeError: `module` is not an `nn.Module`, returns no tensor, or the input holds no numbers.
        ValueError: the result of a batch has another number of rows, or it is ambiguous which part of it is meant.
        NotImplementedError: inside jit on a platform without buffer callbacks (TPU) or that PyTorch has not, and second
            derivatives.
        An exception in the module arrives as it is outside of jit, and inside of it as JAX's runtime error with the
        module's message.

    Notes:
        On a GPU, the module runs inside of jit on XLA's stream, in order with PyTorch's default stream; outside of jit
        on PyTorch's, and the call waits for it. JAX reserves three quarters of the memory when it starts: set
        `XLA_PYTHON_CLIENT_PREALLOCATE=false` or `XLA_PYTHON_CLIENT_MEM_FRACTION` before importing JAX to leave room for
        PyTorch.
        Under `shard_map`, an exception on one device keeps the others waiting at the next collective.

    Example:
        >>> import jax.numpy as jnp
        >>> module = nn.Linear(3, 2)
        >>> f = as_jax(module)
        >>> x = jnp.ones((4, 3))
        >>> jax.jit(f)(x).shape, jax.grad(lambda x: f(x).sum())(x).shape
        ((4, 2), (4, 3))
    """
    refuse_other_framework("module", module, "pytorch")
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    if output is not None and not callable(output):
        raise TypeError(f"output must be a function of what the module returns, got {output!r}")
    if as_flag("random", random):
        return RandomClassifier(RandomTorchFunction(module, Reading(output)), of_batch=True)
    return TorchFunction(module, Reading(output))


class TorchFunction(BridgedFunction):
    """A PyTorch module as a JAX function."""

    framework = "PyTorch"

    def __init__(self, module: nn.Module, reading: Reading) -> None:
        super().__init__(module, reading)
        self._signatures: dict[Any, Signature] = {}

    def weights(self) -> dict[str, np.ndarray]:
        """Return all tensors of the modules, as bytes: NumPy has not every dtype of PyTorch; and their settings."""
        state = {name: value for name, value in self.model.state_dict().items() if isinstance(value, torch.Tensor)}
        numbers: list[str] = []
        for prefix, part in self.model.named_modules():
            # Buffers that are not saved, and tensors that are plain attributes.
            own = {**dict(part.named_buffers(recurse=False)), **vars(part)}
            state |= {f"{prefix}.{name}": value for name, value in own.items() if isinstance(value, torch.Tensor)}
            # Numbers that are attributes are settings of `forward`. Integers may count its calls.
            numbers += [f"{prefix}.{name}={own[name]!r}" for name in sorted(own) if isinstance(own[name], float)]
        return {
            f"{name} {value.dtype} {tuple(value.shape)}": value.detach()
            .cpu()
            .contiguous()
            .reshape(-1)
            .view(torch.uint8)
            .numpy()
            for name, value in state.items()
        } | settings_as_weights(self.reading.output, without_addresses(repr(self.model)), " ".join(numbers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the module on a tensor that the module may not write to or keep."""
        home, dtype = placement(self.model, x.device)
        with evaluating(self.model, home):
            private = self._signature(x.shape[1:], x.dtype).takes_its_input or self._is_watched()
            result = self._run(_move(x, home, dtype, private))
        self._check_result(result, len(x))
        return narrowed(result).to(x.device)

    def gradient(self, x: torch.Tensor, cotangent: torch.Tensor) -> torch.Tensor:
        """Return the gradient of <cotangent, module(x)> in x."""
        home, dtype = placement(self.model, x.device)
        with evaluating(self.model, home, gradient=True):
            leaf = _move(x, home, dtype, self._is_watched()).detach().requires_grad_()
            private = self._signature(x.shape[1:], x.dtype).takes_its_input
            result = self._run(leaf.clone() if private else leaf)
            self._check_result(result, len(x))
            gradient = None
            if result.requires_grad:
                weights = cotangent.to(result.device, result.dtype).reshape(result.shape)
                (gradient,) = torch.autograd.grad(result, leaf, weights, allow_unused=True)
        if gradient is None:
            raise ValueError(f"the output of {type(self.model).__name__} does not depend on its input differentiably")
        return gradient.to(x.device, x.dtype)

    def signature(self, event: tuple[int, ...], dtype: np.dtype[Any]) -> Signature:
        """Find out, on two rows of zeros, what the module returns and how it treats its input."""
        return self._signature(event, to_torch_dtype(dtype))

    def view(self, array: Any) -> torch.Tensor:
        """View a JAX array or a buffer as a tensor."""
        return to_torch(array)

    def as_rows(self, tensor: torch.Tensor, event_ndim: int) -> torch.Tensor:
        """Make one batch dimension of all dimensions before the last `event_ndim`."""
        return tensor.reshape(-1, *tensor.shape[tensor.ndim - event_ndim :])

    def to_jax(self, tensor: torch.Tensor, *, private: bool) -> jax.Array:
        """View a tensor as a JAX array; as a copy of it if it is to be private."""
        if tensor.is_cuda:  # else JAX could use the memory of what the model still reads for something else
            torch.cuda.current_stream(tensor.device).synchronize()
        return to_jax(tensor.clone() if private else tensor)

    def write(self, tensor: torch.Tensor, out: Any) -> None:
        """Write a tensor into a buffer of the same size."""
        target = to_torch(out)
        if tensor.numel() != target.numel():
            raise ValueError(f"expected a result of shape {tuple(target.shape)}, got {tuple(tensor.shape)}")
        target.copy_(tensor.reshape(target.shape))

    def on_stream(self, context: Any, out: Any) -> contextlib.AbstractContextManager[Any]:
        """Run on XLA's stream on a GPU."""
        device = to_torch(out).device
        if device.type != "cuda":
            return contextlib.nullcontext()
        return _on_stream(context.stream, device)

    def check_platform(self, platform: str) -> None:
        """Refuse a GPU too where PyTorch has none."""
        super().check_platform("a GPU" if platform == "gpu" and not torch.cuda.is_available() else platform)

    def _signature(self, event: tuple[int, ...], dtype: torch.dtype) -> Signature:
        home, own = placement(self.model, torch.device("cpu"))
        entry = (tuple(event), dtype, home, own)
        if entry not in self._signatures:
            devices = [home] if home.type == "cuda" else []
            with torch.random.fork_rng(devices), evaluating(self.model, home):
                self._signatures[entry] = self._probe(*entry)
        return self._signatures[entry]

    def _probe(
        self, event: tuple[int, ...], dtype: torch.dtype, home: torch.device, own: torch.dtype | None
    ) -> Signature:
        # Where the module is: a copy made on the way there would hide what the module does to its input.
        x = torch.zeros(2, *event, dtype=dtype, device=home)
        version = x._version
        observer = StorageWeakRef(x.untyped_storage())
        result = self._run(_move(x, home, own, private=False))
        self._check_result(result, 2)
        shape = tuple(result.shape[1:])
        result_dtype = result.dtype
        writes = x._version != version
        own_tensors = (*self.model.parameters(), *self.model.buffers())
        held = {tensor.untyped_storage().data_ptr() for tensor in (x, *own_tensors)}
        borrowed = result.untyped_storage().data_ptr() in held
        del x, result
        return Signature(shape, to_jax_dtype(result_dtype), writes or not observer.expired(), borrowed)

    def _is_watched(self) -> bool:
        """Tell whether hooks see the module's tensors: what they keep must not be a view of XLA's memory."""
        parts = self.model.modules()
        return any(p._forward_hooks or p._forward_pre_hooks for p in parts)  # pyright: ignore[reportPrivateUsage]

    def _run(self, x: torch.Tensor) -> torch.Tensor:
        return self.read(self.model(x))

    def _check_result(self, result: Any, rows: int) -> None:
        if not isinstance(result, torch.Tensor):
            raise TypeError(f"{type(self.model).__name__} must return a tensor, got {type(result).__name__}")
        self.check_rows(tuple(result.shape), rows)


class RandomTorchFunction:
    """A PyTorch module that is random given its input, as a function of a batch and its keys.

    Args:
        module: called in the modes that its parts are in.
        reading: how scores are read from what it returns.
    """

    def __init__(self, module: nn.Module, reading: Reading) -> None:
        self.module = module
        self.reading = reading

    def __call__(self, x: jax.Array, keys: jax.Array) -> jax.Array:
        """Return the scores of a batch, random numbers seeded from the keys of its rows."""
        self._refuse_statistics()
        first, second = map(int, seed_words(x, keys, "PyTorch"))
        rows = to_torch(x)
        home, dtype = placement(self.module, rows.device)
        with torch.random.fork_rng([home] if home.type == "cuda" else []), own_modes(home):
            torch.manual_seed((first << 31) ^ second)
            result = self.reading(self.module(_move(rows, home, dtype, private=True)), type(self.module).__name__)
        return to_jax(narrowed(result).to(rows.device).clone())

    def _refuse_statistics(self) -> None:
        """Refuse batch normalisation in training mode: rows would depend on each other, and the statistics change."""
        for name, part in self.module.named_modules():
            if part.training and isinstance(part, BATCH_NORMS):
                raise ValueError(
                    f"module must have its batch normalisation in evaluation mode, got {type(part).__name__} {name!r} "
                    "in training mode: call eval() on the module, and train() on the parts that are to be random, such "
                    "as dropout"
                )


@contextlib.contextmanager
def _on_stream(pointer: int, device: torch.device) -> Generator[None]:
    """Run on XLA's stream, after what PyTorch's own was given before, and before what it will be given."""
    own = torch.cuda.current_stream(device)
    xla = torch.cuda.ExternalStream(pointer, device=device)
    xla.wait_stream(own)  # a training step may still be writing the weights
    try:
        with torch.cuda.stream(xla):
            yield
    finally:
        own.wait_stream(xla)


def _move(x: torch.Tensor, device: torch.device, dtype: torch.dtype | None, private: bool) -> torch.Tensor:
    """Return the tensor on this device and in this dtype: itself where it is, unless it is to be private.

    Integers stay what they are.
    """
    moved = x.to(device, dtype if dtype is not None and x.is_floating_point() else x.dtype)
    return moved.clone() if private and moved is x else moved
