"""Arrays between JAX and PyTorch by DLPack, without a copy where the memory allows."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch


def to_torch(array: Any) -> torch.Tensor:
    """View a JAX array, or a buffer inside a callback, as a tensor. It is not to be written to."""
    # A tensor made in the caller's inference mode could never take part in a gradient.
    with torch.inference_mode(False):
        if isinstance(array, jax.Array) and not _is_in_reach(array):
            return torch.from_dlpack(jax.device_put(array, jax.local_devices(backend="cpu")[0]))
        return torch.from_dlpack(array)


def _is_in_reach(array: jax.Array) -> bool:
    """Tell whether PyTorch can see the memory that the array is in."""
    return all(device.platform == "cpu" for device in array.devices()) or torch.cuda.is_available()


def to_jax(tensor: torch.Tensor) -> jax.Array:
    """View a tensor as a JAX array: without a copy if it is contiguous and its memory is aligned to 64 bytes."""
    tensor = tensor.detach().contiguous()
    return jnp.from_dlpack(tensor.to(to_torch_dtype(to_jax_dtype(tensor.dtype))))


def narrowed(scores: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return scores `[..., K]` in a dtype, by default the one that JAX has for theirs, with the same class.

    32 bits cannot order all numbers of 64 bits. Where a score that was below the largest is not below it any more, it
    moves down by one step. Integers that do not fit become the closest ones that do.
    """
    dtype = to_torch_dtype(to_jax_dtype(scores.dtype)) if dtype is None else dtype
    if (
        scores.dtype not in (torch.float64, torch.int64)
        or dtype == scores.dtype
        or scores.ndim < 2
        or 0 in scores.shape
    ):
        return scores.to(dtype)
    is_real = dtype.is_floating_point
    limits = None if is_real else torch.iinfo(dtype)
    narrow = (scores if limits is None else scores.clamp(limits.min + 1, limits.max)).to(dtype)
    label = scores.argmax(-1, keepdim=True)
    top = narrow.gather(-1, label)
    below = torch.nextafter(top, torch.full_like(top, -torch.inf)) if is_real else top - 1
    is_other = torch.ones_like(narrow, dtype=torch.bool).scatter(-1, label, False)
    is_lost = narrow.argmax(-1, keepdim=True) != label
    return torch.where(is_lost & is_other & (narrow >= top), below, narrow)


def to_jax_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """Return the dtype that JAX has for this one: float64 is float32 unless `jax_enable_x64` is set."""
    return jax.dtypes.canonicalize_dtype(jnp.dtype(str(dtype).removeprefix("torch.")))


def to_torch_dtype(dtype: Any) -> torch.dtype:
    """Return PyTorch's dtype of the same name."""
    return getattr(torch, np.dtype(dtype).name)
