"""A PyTorch module as a JAX function with a gradient."""

import contextlib
import functools
import math
import weakref
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.experimental.buffer_callback import buffer_callback
from torch import nn

from bridges.pytorch.modes import evaluating, placement
from bridges.pytorch.transfer import to_jax, to_jax_dtype, to_torch, to_torch_dtype
from jaxsmooth.checks import is_traced


def as_jax(module: Any) -> "TorchFunction":
    """Return a JAX function that runs a PyTorch module, forward and reverse-mode gradient.

    The function runs inside and outside of `jax.jit`, and under `jax.grad`, `jax.vmap`, `jax.lax.scan`, `jax.lax.map`
    and `jax.shard_map`. Outside of jit arrays cross by DLPack; inside, XLA hands the module its own buffers, and the
    module's result is written into XLA's. The module is called in evaluation mode, without autocast or inference mode,
    with its own dtype and device, and is left as it was: modes, gradients, parameters. A training step that
    changes the parameters takes effect at the next call; nothing is compiled anew.

    Args:
        module: takes one tensor `[B, *event]` and returns one `[B, *result]`, for every B, a row of the result
            depending on that row of the input alone.

    Returns:
        A function of one floating-point array `[B, *event]`. Two functions of the same module are equal. Results have
        the module's dtype, float64 becoming float32 unless `jax_enable_x64` is set.

    Raises:
        TypeError: `module` is not an `nn.Module`, returns no tensor, or the input is not floating-point.
        ValueError: the result of a batch has another number of rows.
        NotImplementedError: inside jit on a platform without buffer callbacks (TPU), and second derivatives.
        An exception in the module arrives as it is outside of jit, and inside of it as JAX's runtime error with the
        module's message.

    Notes:
        On a GPU, JAX reserves three quarters of the memory when it starts. Set `XLA_PYTHON_CLIENT_PREALLOCATE=false`
        or `XLA_PYTHON_CLIENT_MEM_FRACTION` before importing JAX to leave room for PyTorch.
        Under `shard_map`, an exception on one device keeps the others waiting at the next collective.

    Example:
        >>> module = nn.Linear(3, 2)
        >>> f = as_jax(module)
        >>> x = jnp.ones((4, 3))
        >>> jax.jit(f)(x).shape, jax.grad(lambda x: f(x).sum())(x).shape
        ((4, 2), (4, 3))
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    return TorchFunction(module)


class TorchFunction:
    """What `as_jax` returns: a callable that is equal to every other one of the same module."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._signatures: dict[Any, _Signature] = {}

    def __call__(self, x: jax.Array, /) -> jax.Array:
        """Run the module on a batch `[B, *event]`."""
        x = x if is_traced(x) else jnp.asarray(x)
        if not jnp.issubdtype(x.dtype, jnp.floating) or x.ndim == 0:
            raise TypeError(f"a module takes a floating-point batch [B, *event], got dtype {x.dtype}, shape {x.shape}")
        return _run(self, x)

    def __eq__(self, other: object) -> bool:
        """Tell whether both run the same module."""
        return isinstance(other, TorchFunction) and other.module is self.module

    def __hash__(self) -> int:
        """Hash the identity of the module."""
        return hash((TorchFunction, id(self.module)))

    def __repr__(self) -> str:
        """Name the module's class."""
        return f"as_jax({type(self.module).__name__})"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the module on a tensor that the module may not write to or keep."""
        home, dtype = placement(self.module)
        with evaluating(self.module, home):
            private = self.signature(x.shape[1:], x.dtype).takes_its_input or self._is_watched()
            result = self.module(_move(x, home, dtype, private))
        self._check_rows(result, len(x))
        return result

    def gradient(self, x: torch.Tensor, cotangent: torch.Tensor) -> torch.Tensor:
        """Return the gradient of <cotangent, module(x)> in x."""
        home, dtype = placement(self.module)
        with evaluating(self.module, home, gradient=True):
            leaf = _move(x, home, dtype, self._is_watched()).detach().requires_grad_()
            private = self.signature(x.shape[1:], x.dtype).takes_its_input
            result = self.module(leaf.clone() if private else leaf)
            self._check_rows(result, len(x))
            gradient = None
            if result.requires_grad:
                weights = cotangent.to(result.device, result.dtype).reshape(result.shape)
                (gradient,) = torch.autograd.grad(result, leaf, weights, allow_unused=True)
        if gradient is None:
            raise ValueError(f"the output of {type(self.module).__name__} does not depend on its input differentiably")
        return gradient

    def signature(self, event: tuple[int, ...], dtype: torch.dtype) -> "_Signature":
        """Find out, on two rows of zeros, what the module returns and how it treats its input."""
        home, own = placement(self.module)
        entry = (tuple(event), dtype, home, own)
        if entry not in self._signatures:
            with torch.random.fork_rng(devices=[]), evaluating(self.module, home):
                self._signatures[entry] = self._probe(tuple(event), dtype)
        return self._signatures[entry]

    def _probe(self, event: tuple[int, ...], dtype: torch.dtype) -> "_Signature":
        home, own = placement(self.module)
        # The memory is NumPy's, so that it can be seen whether anything still refers to it afterwards.
        memory = np.zeros(2 * math.prod(event) * dtype.itemsize, np.uint8)
        x = torch.from_numpy(memory).view(dtype).reshape(2, *event)
        version = x._version
        result = self.module(_move(x, home, own, private=False))
        self._check_rows(result, 2)
        shape, result_dtype, writes = tuple(result.shape[1:]), result.dtype, x._version != version
        own_tensors = (*self.module.parameters(), *self.module.buffers())
        held = {tensor.untyped_storage().data_ptr() for tensor in (x, *own_tensors)}
        borrowed = result.untyped_storage().data_ptr() in held
        observer = weakref.ref(memory)
        del x, result, memory
        return _Signature(shape, to_jax_dtype(result_dtype), writes or observer() is not None, borrowed)

    def _is_watched(self) -> bool:
        """Tell whether hooks see the module's tensors: what they keep must not be a view of XLA's memory."""
        parts = self.module.modules()
        return any(p._forward_hooks or p._forward_pre_hooks for p in parts)  # pyright: ignore[reportPrivateUsage]

    def _check_rows(self, result: Any, rows: int) -> None:
        name = type(self.module).__name__
        if not isinstance(result, torch.Tensor):
            raise TypeError(f"{name} must return a tensor, got {type(result).__name__}")
        if result.ndim == 0 or len(result) != rows:
            raise ValueError(f"{name} must return one row for each of {rows} inputs, got shape {tuple(result.shape)}")


class _Signature(NamedTuple):
    """What a module does with inputs of one shape and dtype.

    Attributes:
        shape: of one row of the result.
        dtype: of the result in JAX.
        takes_its_input: whether it writes to its input or keeps a view of it, so that it needs one of its own.
        lends_its_result: whether the result is a view of the input, a parameter or a buffer.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    takes_its_input: bool
    lends_its_result: bool


def _move(x: torch.Tensor, device: torch.device, dtype: torch.dtype | None, private: bool) -> torch.Tensor:
    """Return the tensor on this device and in this dtype: itself where it is, unless it is to be private."""
    moved = x.to(device, dtype or x.dtype)
    return moved.clone() if private and moved is x else moved


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(function: TorchFunction, x: jax.Array) -> jax.Array:
    signature = function.signature(x.shape[1:], to_torch_dtype(x.dtype))
    if not is_traced(x):
        result = function.forward(to_torch(x))
        return to_jax(result.clone() if signature.lends_its_result else result)
    shape = jax.ShapeDtypeStruct((x.shape[0], *signature.shape), signature.dtype)
    return _call_back(function.forward, shape, (x.ndim - 1,), x)


def _run_forward(function: TorchFunction, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _run(function, x), x


def _run_backward(function: TorchFunction, x: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    return (_gradient(function, x, cotangent),)


_run.defvjp(_run_forward, _run_backward)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _gradient(function: TorchFunction, x: jax.Array, cotangent: jax.Array) -> jax.Array:
    if not (is_traced(x) or is_traced(cotangent)):
        tensor = to_torch(x)
        return to_jax(function.gradient(tensor, to_torch(cotangent)).to(tensor.device, tensor.dtype))
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return _call_back(function.gradient, shape, (x.ndim - 1, cotangent.ndim - 1), x, cotangent)


@_gradient.defjvp
def _second_derivative(function: TorchFunction, primals: Any, tangents: Any) -> Any:
    raise NotImplementedError(f"second derivatives are not available through {function!r}")


def _call_back(run: Any, shape: jax.ShapeDtypeStruct, event_ndims: tuple[int, ...], *arrays: jax.Array) -> jax.Array:
    """Call a function of tensors from compiled code, on XLA's own buffers."""
    if jax.default_backend() not in ("cpu", "gpu"):
        raise NotImplementedError(
            f"a PyTorch module cannot be called from compiled code on {jax.default_backend()}: "
            "use jaxsmooth.stream_votes, which calls it outside of jit"
        )

    def callback(context: Any, out: Any, *buffers: Any) -> None:
        target = to_torch(out)
        with _stream(context, target):
            tensors = [to_torch(buffer) for buffer in buffers]
            # Every leading dimension is a batch: vmap adds some.
            rows = [t.reshape(-1, *t.shape[t.ndim - ndim :]) for t, ndim in zip(tensors, event_ndims, strict=True)]
            result = run(*rows)
            if result.numel() != target.numel():
                raise ValueError(f"expected a result of shape {tuple(target.shape)}, got {tuple(result.shape)}")
            target.copy_(result.reshape(target.shape))

    result = buffer_callback(callback, shape, vmap_method="broadcast_all")(*arrays)
    # A no-op in which the result comes to vary over a mesh, under shard_map, as the arrays do.
    return jnp.where(sum(jnp.zeros_like(a, shape=(), dtype=jnp.int32) for a in arrays) == 0, result, result)


def _stream(context: Any, target: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Run on XLA's stream on a GPU."""
    if not target.is_cuda:
        return contextlib.nullcontext()
    return torch.cuda.stream(torch.cuda.ExternalStream(context.stream, device=target.device))
