"""Arrays between JAX, NumPy and TensorFlow, without a copy where the memory allows."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf

_ALIGNMENT = 64


def to_tensorflow(array: Any) -> tf.Tensor:
    """View a JAX or NumPy array, or a buffer inside a callback, as a tensor. Nothing may write to it while it is used.

    TensorFlow ends the process when it meets memory that is not aligned to 64 bytes: such an array is copied.
    """
    on_cpu = array.__dlpack_device__()[0] == 1
    if not on_cpu and not tf.config.list_physical_devices("GPU"):
        return tf.constant(np.asarray(array))
    if on_cpu and not (0 not in array.shape and _is_aligned(np.asarray(array))):
        return tf.constant(np.asarray(array))
    if isinstance(array, np.ndarray) and not array.flags.writeable:
        array = np.asarray(_Writable(array))  # NumPy exports no other; TensorFlow does not write to its tensors
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


def to_jax(tensor: tf.Tensor) -> jax.Array:
    """View a tensor as a JAX array: without a copy if its memory is aligned to 64 bytes."""
    return jnp.from_dlpack(tf.cast(tensor, to_jax_dtype(tensor.dtype)))


def narrowed(scores: tf.Tensor, dtype: tf.DType | None = None) -> tf.Tensor:
    """Return scores `[..., K]` in a dtype, by default the one that JAX has for theirs, with the same class.

    32 bits cannot order all numbers of 64 bits. Where a score that was below the largest is not below it any more, it
    moves down by one step. Integers that do not fit become the closest ones that do.
    """
    dtype = tf.as_dtype(to_jax_dtype(scores.dtype)) if dtype is None else dtype
    if (
        scores.dtype not in (tf.float64, tf.int64)
        or dtype == scores.dtype
        or scores.shape.rank < 2
        or 0 in scores.shape
    ):
        return tf.cast(scores, dtype)
    clipped = scores if dtype.is_floating else tf.clip_by_value(scores, tf.cast(dtype.min + 1, scores.dtype), dtype.max)
    narrow = tf.cast(clipped, dtype)
    label = tf.argmax(scores, axis=-1)
    top = tf.expand_dims(tf.gather(narrow, label, axis=-1, batch_dims=scores.shape.rank - 1), -1)
    below = tf.math.nextafter(top, tf.constant(-np.inf, dtype)) if dtype.is_floating else top - 1
    is_other = tf.range(tf.shape(scores)[-1], dtype=label.dtype) != tf.expand_dims(label, -1)
    is_lost = tf.expand_dims(tf.argmax(narrow, axis=-1) != label, -1)
    return tf.where(is_lost & is_other & (narrow >= top), below, narrow)


def to_numpy(tensor: Any) -> np.ndarray:
    """Return a tensor as an array: a view of it on the CPU where NumPy knows the dtype."""
    known = tensor.dtype in (tf.float32, tf.float64, tf.int32, tf.int64)
    return np.asarray(memoryview(tensor)) if known and "CPU" in tensor.device else tensor.numpy()


def to_jax_dtype(dtype: tf.DType) -> np.dtype[Any]:
    """Return the dtype that JAX has for this one: float64 is float32 unless `jax_enable_x64` is set."""
    return jax.dtypes.canonicalize_dtype(dtype.as_numpy_dtype)


class _Writable:
    """An array that says that it may be written to."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def _is_aligned(array: np.ndarray) -> bool:
    return array.ctypes.data % _ALIGNMENT == 0
