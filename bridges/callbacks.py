"""A model of another framework as a JAX function with a gradient: DLPack outside of jit, buffer callbacks inside."""

import contextlib
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.buffer_callback import buffer_callback

from bridges.outputs import Reading
from jaxsmooth.arguments import is_traced


class Signature(NamedTuple):
    """What a model does with inputs of one shape and dtype.

    Attributes:
        shape: of one row of the result.
        dtype: of the result in JAX.
        takes_its_input: whether it writes to its input or keeps a view of it, so that it needs one of its own.
        lends_its_result: whether the result is memory that the model or the caller has too.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    takes_its_input: bool
    lends_its_result: bool


class BridgedFunction(ABC):
    """What a framework's `as_jax` returns: a callable that is equal to every other one of the same model.

    A framework says how to run its model and its gradient on its own tensors, and how tensors come and go.
    """

    framework: str

    def __init__(self, model: Any, reading: Reading) -> None:
        self.model = model
        self.reading = reading

    def __call__(self, x: jax.Array, /) -> jax.Array:
        """Run the model on a batch `[B, *event]`: floats, which it gets in its own dtype, or integers as they are."""
        x = x if is_traced(x) else jnp.asarray(x)
        is_number = jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer)
        if not is_number or x.ndim == 0:
            raise TypeError(f"a model takes a batch [B, *event] of numbers, got dtype {x.dtype}, shape {x.shape}")
        return _run(self, x)

    def __eq__(self, other: object) -> bool:
        """Tell whether both run the same model and read the same part of what it returns."""
        return type(other) is type(self) and other.model is self.model and other.reading == self.reading

    def __hash__(self) -> int:
        """Hash the identity of the model."""
        return hash((type(self), id(self.model), self.reading))

    def __repr__(self) -> str:
        """Name the model's class."""
        return f"as_jax({type(self.model).__name__})"

    @abstractmethod
    def signature(self, event: tuple[int, ...], dtype: np.dtype[Any]) -> Signature:
        """Find out what the model does with inputs of this shape and dtype."""

    @abstractmethod
    def weights(self) -> dict[str, np.ndarray]:
        """Return everything that the model has learnt, by name: a run over a data set tells it by their digest."""

    @abstractmethod
    def forward(self, x: Any) -> Any:
        """Run the model on a tensor that it may not write to or keep."""

    @abstractmethod
    def gradient(self, x: Any, cotangent: Any) -> Any:
        """Return the gradient of <cotangent, model(x)> in x, in the dtype of x."""

    @abstractmethod
    def view(self, array: Any) -> Any:
        """View a JAX array, or a buffer inside a callback, as a tensor."""

    @abstractmethod
    def as_rows(self, tensor: Any, event_ndim: int) -> Any:
        """Make one batch dimension of all dimensions before the last `event_ndim`."""

    @abstractmethod
    def to_jax(self, tensor: Any, *, private: bool) -> jax.Array:
        """View a tensor as a JAX array; as a copy of it if it is to be private."""

    @abstractmethod
    def write(self, tensor: Any, out: Any) -> None:
        """Write a tensor into a buffer of the same size."""

    def on_stream(self, context: Any, out: Any) -> contextlib.AbstractContextManager[Any]:
        """Run on XLA's stream, where there is one."""
        del context, out
        return contextlib.nullcontext()

    def check_platform(self, platform: str) -> None:
        """Refuse compiled code on a platform where XLA cannot call the model."""
        if platform not in ("cpu", "gpu"):
            raise NotImplementedError(
                f"a {self.framework} model cannot be called from compiled code on {platform}: "
                "use jaxsmooth.stream_votes, which calls it outside of jit"
            )

    def read(self, result: Any) -> Any:
        """Return the scores in what the model returned."""
        return self.reading(result, type(self.model).__name__)

    def check_rows(self, result_shape: tuple[int, ...], rows: int) -> None:
        """Refuse a result that does not have one row for each input."""
        if not result_shape or result_shape[0] != rows:
            name = type(self.model).__name__
            raise ValueError(f"{name} must return one row for each of {rows} inputs, got shape {result_shape}")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(function: BridgedFunction, x: jax.Array) -> jax.Array:
    signature = function.signature(x.shape[1:], x.dtype)
    # Outside of jit the model is called at once.
    if not is_traced(x):
        result = function.to_jax(function.forward(function.view(x)), private=signature.lends_its_result)
        return _beside(x, result)
    shape = jax.ShapeDtypeStruct((x.shape[0], *signature.shape), signature.dtype)
    return _call_back(function, function.forward, shape, (x.ndim - 1,), x)


def _run_forward(function: BridgedFunction, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _run(function, x), x


def _run_backward(function: BridgedFunction, x: jax.Array, cotangent: jax.Array) -> tuple[Any]:
    if jnp.issubdtype(x.dtype, jnp.integer):  # tokens have no gradient
        return (np.zeros(x.shape, jax.dtypes.float0),)
    return (_gradient(function, x, cotangent),)


_run.defvjp(_run_forward, _run_backward)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _gradient(function: BridgedFunction, x: jax.Array, cotangent: jax.Array) -> jax.Array:
    if not (is_traced(x) or is_traced(cotangent)):
        return _beside(x, function.to_jax(function.gradient(function.view(x), function.view(cotangent)), private=False))
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return _call_back(function, function.gradient, shape, (x.ndim - 1, cotangent.ndim - 1), x, cotangent)


@_gradient.defjvp
def _second_derivative(function: BridgedFunction, primals: Any, tangents: Any) -> Any:
    raise NotImplementedError(f"second derivatives are not available through {function!r}")


def _beside(x: jax.Array, result: jax.Array) -> jax.Array:
    """Return a result on the device of its input, which the framework may not have."""
    # Under an outer transformation outside of jit, x may be NumPy's, as the caller gave it.
    devices = getattr(x, "devices", result.devices)
    return result if result.devices() == devices() else jax.device_put(result, x.sharding)


def _call_back(
    function: BridgedFunction,
    run: Callable[..., Any],
    shape: jax.ShapeDtypeStruct,
    event_ndims: tuple[int, ...],
    *arrays: jax.Array,
) -> jax.Array:
    """Call a function of tensors from compiled code, on XLA's own buffers."""
    function.check_platform(jax.default_backend())

    def callback(context: Any, out: Any, *buffers: Any) -> None:
        with function.on_stream(context, out):
            tensors = [function.view(buffer) for buffer in buffers]
            # Every leading dimension is a batch: vmap adds some.
            rows = [function.as_rows(t, ndim) for t, ndim in zip(tensors, event_ndims, strict=True)]
            result = run(*rows)
            function.write(result, out)

    result = buffer_callback(callback, shape, vmap_method="broadcast_all")(*arrays)
    # A no-op in which the result comes to vary over a mesh, under shard_map, as the arrays do.
    return jnp.where(sum(jnp.zeros_like(a, shape=(), dtype=jnp.int32) for a in arrays) == 0, result, result)
