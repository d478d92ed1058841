"""Checks at the edge: bad input is refused with the argument's name, what came and what was expected.

Values that JAX traces cannot be read, so only their shapes and dtypes are checked.
"""

import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxsmooth.types import Noise

_INT32 = 2**31 - 1
_NOISE_MEMBERS = [name for name in vars(Noise) if not name.startswith("_")]


def is_traced(value: Any) -> bool:
    """Tell whether a value is known only while tracing, so that it cannot be read."""
    return isinstance(value, jax.core.Tracer)


def as_array(name: str, value: Any, expected: str) -> Any:
    """Return a value as an array: one that JAX knows as it is, any other by NumPy, in native byte order."""
    if is_traced(value):
        return value
    try:
        if isinstance(value, jax.Array):
            if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
                raise TypeError("an array of keys")
            return value
        if isinstance(value, np.ma.MaskedArray):
            raise TypeError("a masked array")
        array = np.asarray(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise TypeError(f"{name} must be {expected}, got {type(value).__name__}: {error}") from None
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def as_host_array(name: str, value: Any, expected: str) -> Any:
    """Return a value as an array of NumPy, for under jit JAX traces what is done to its own; a traced one as it is."""
    array = as_array(name, value, expected)
    return array if is_traced(array) else np.asarray(array)


def as_numbers(name: str, value: Any, expected: str) -> np.ndarray:
    """Return real numbers as a float64 array on the host."""
    array = as_host_array(name, value, expected)
    if is_traced(array):
        raise TypeError(f"{name} must be {expected} that are known before anything is compiled, got {array}")
    if array.dtype == object and all(isinstance(number, int) for number in array.flat):
        array = np.array([_as_float(number) for number in array.flat]).reshape(array.shape)
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise TypeError(f"{name} must be {expected}, got dtype {array.dtype}")
    return array.astype(np.float64)


def _as_float(number: int) -> float:
    """Return an integer of any size, infinite where float64 cannot hold it."""
    try:
        return float(number)
    except OverflowError:
        return math.copysign(math.inf, number > 0 or -1)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Refuse what is none of some words."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_untraced(name: str, values: Any) -> None:
    """Refuse traced values in a function that runs on the host."""
    if any(map(is_traced, jax.tree.leaves(values))):
        raise TypeError(f"{name} runs on the host and takes no traced values: use count_votes under jax.jit")


def check_integer(name: str, value: Any, least: int, most: int = _INT32) -> int:
    """Return `value` as an int in [least, most]."""
    if is_traced(value):
        raise TypeError(f"{name} must be a static Python integer, got {value}: list it in static_argnames")
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        integer = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer in [{least}, {most}], got {value!r}") from None
    if not least <= integer <= most:
        raise ValueError(f"{name} must be an integer in [{least}, {most}], got {integer}")
    return integer


def check_callable(f: Any) -> None:
    """Refuse what cannot be called."""
    if not callable(f):
        raise TypeError(f"f must be a callable from inputs [B, *event] to scores [B, K], got {f!r}")


def check_alpha(alpha: Any, name: str = "alpha") -> float:
    """Return `alpha` as a float in (0, 1)."""
    if is_traced(alpha):
        raise TypeError(f"{name} must be a static Python float, got {alpha}: list it in static_argnames")
    number = as_numbers(name, alpha, "a number in (0, 1)")
    if number.ndim != 0:
        raise TypeError(f"{name} must be a number in (0, 1), got {alpha!r}")
    number = float(number)
    if not 0.0 < number < 1.0:
        raise ValueError(f"{name} must be a number in (0, 1), got {number}")
    return number


def check_scale(name: str, scale: Any) -> ArrayLike:
    """Return the scale of a noise as an f32 scalar, positive and finite where it is concrete."""
    array = as_host_array(name, scale, "a positive number")
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise TypeError(f"{name} must be a positive number, got {scale!r}")
    if array.shape != ():
        raise ValueError(f"{name} must be a scalar, got shape {array.shape}: use jax.vmap for several scales")
    if isinstance(array, np.ndarray):
        with np.errstate(over="ignore"):
            value = array.astype(np.float32)
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite in float32, got {scale}")
        return np.float32(value)
    return array.astype(jnp.float32)


def check_float_dtype(dtype: Any) -> np.dtype[Any]:
    """Return a floating dtype as JAX has it: float64 is float32 unless `jax_enable_x64` is set."""
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype must be a floating dtype, got {np.dtype(dtype)}")
    return jax.dtypes.canonicalize_dtype(dtype)


def check_noise(noise: Any) -> Noise:
    """Return a noise of strongly typed arrays, whose scale is positive and finite where it is concrete."""
    # What isinstance does with a protocol, which takes it 20 times as long on Python 3.11.
    if isinstance(noise, type) or not all(hasattr(noise, name) for name in _NOISE_MEMBERS):
        raise TypeError(f"noise must be an instance of Gaussian, Laplace, Uniform or the like, got {noise!r}")
    check_scale(f"the scale of {type(noise).__name__}", noise.scale)
    try:
        return jax.tree.map(_without_weak_type, noise)
    except TypeError:
        raise TypeError(f"noise must be a pytree of numbers and arrays, got {noise!r}") from None


def _without_weak_type(leaf: Any) -> ArrayLike:
    """Return a leaf as a strongly typed array: a weak type would be another program."""
    if is_traced(leaf):
        return lax.convert_element_type(leaf, leaf.dtype)
    array = as_array("noise", leaf, "a pytree of numbers")
    if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == np.bool_):
        raise TypeError
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype))


def check_key(key: Any) -> jax.Array:
    """Return one typed Threefry key, made from a typed or a raw one."""
    expected = "one Threefry key, as made by jax.random.key(seed)"
    if not isinstance(key, (jax.Array, np.ndarray)):
        raise TypeError(f"key must be {expected}, got {key!r}")
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if str(jax.random.key_impl(key)) != "threefry2x32":
            raise ValueError(f"key must be {expected}, got a key of {jax.random.key_impl(key)}")
        if key.shape != ():
            raise ValueError(f"key must be {expected}, got an array of keys of shape {key.shape}")
        return key  # pyright: ignore[reportReturnType]: NumPy has no such dtype
    if key.dtype != np.uint32:
        raise TypeError(f"key must be {expected}, got an array of dtype {key.dtype}")
    if key.shape != (2,):
        raise ValueError(f"key must be {expected}, got raw key data of shape {key.shape}")
    return jax.random.wrap_key_data(jnp.asarray(key), impl="threefry2x32")


def check_inputs(x: Any) -> jax.Array:
    """Return inputs `[N, *event]` of a floating dtype, finite where they are concrete."""
    return to_jax(check_host_inputs(x))


def to_jax(array: jax.Array | np.ndarray) -> jax.Array:
    """Return an array of NumPy as JAX's. Under jit even that would be traced: this evaluates it now."""
    if isinstance(array, jax.Array):
        return array
    with jax.ensure_compile_time_eval():
        return jnp.asarray(array)


def check_host_inputs(x: Any) -> jax.Array | np.ndarray:
    """Return inputs as `check_inputs` does, but those that are not JAX's as NumPy's, in a dtype that JAX has."""
    expected = "a batch [N, *event] of real floating-point inputs"
    array = as_array("x", x, expected)
    dtype, shape = array.dtype, array.shape
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"x must be {expected}, got dtype {dtype}: convert it, since the noise is in its units")
    if len(shape) < 2:
        raise ValueError(f"x must be {expected}, got shape {shape}: one input is x[None]")
    if 0 in shape[1:]:
        raise ValueError(f"x must be {expected} with at least one feature, got shape {shape}")
    if is_traced(x):
        return x
    if isinstance(array, np.ndarray) and dtype != (canonical := jax.dtypes.canonicalize_dtype(dtype)):
        with np.errstate(over="ignore"):
            array = array.astype(canonical)
    finite = _finite_rows(array)
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise ValueError(f"x must be finite, got NaN or infinity in {bad.size} inputs, the first at index {bad[0]}")
    return array


def _finite_rows(array: jax.Array | np.ndarray) -> np.ndarray:
    """Return which inputs are finite, `bool[N]`, computed where they are; NumPy has nothing to compile first."""
    axes = tuple(range(1, array.ndim))
    if isinstance(array, np.ndarray) or all(device.platform == "cpu" for device in array.devices()):
        return np.asarray(np.isfinite(np.asarray(array)).all(axis=axes))
    with jax.ensure_compile_time_eval():
        return np.asarray(jnp.isfinite(array).all(axis=axes))


def check_ids(ids: Any, number: int) -> ArrayLike:
    """Return the ids of the inputs as `u32[N]`; `None` stands for 0, 1, 2, ..."""
    if ids is None:
        return np.arange(number, dtype=np.uint32)
    ids = as_host_array("ids", ids, f"{number} integers")
    if not jnp.issubdtype(ids.dtype, jnp.integer) and ids.size:
        raise TypeError(f"ids must be integers, got dtype {ids.dtype}")
    if ids.shape != (number,):
        raise ValueError(f"ids must have one entry for each of the {number} inputs, got shape {ids.shape}")
    is_wider = isinstance(ids, np.ndarray) and ids.dtype != np.uint32 and ids.size > 0
    if is_wider and not (ids.min() >= 0 and ids.max() < 2**32):
        raise ValueError(f"ids must lie in [0, 2**32), got values from {ids.min()} to {ids.max()}")
    return ids.astype(np.uint32)


def check_first(first: Any, n: int) -> ArrayLike:
    """Return the index of the first sample as a u32 scalar such that n samples fit into 32 bits."""
    if not is_traced(first) and not isinstance(first, jax.Array):
        return np.uint32(check_integer("first", first, 0, 2**32 - n))
    if first.shape != () or not jnp.issubdtype(first.dtype, jnp.integer):
        raise TypeError(f"first must be an integer scalar, got shape {first.shape} and dtype {first.dtype}")
    if not is_traced(first):
        check_integer("first", int(first), 0, 2**32 - n)
    return first.astype(jnp.uint32)


def check_scores(scores: Any, batch_size: int) -> int:
    """Return the number of classes K of scores (or of their abstract shape), which are real `[B, K]`, K >= 2."""
    expected = f"real scores of shape [{batch_size}, K] with K >= 2 classes"
    shape, dtype = getattr(scores, "shape", None), getattr(scores, "dtype", None)
    if shape is None or dtype is None:
        raise TypeError(f"f must return {expected}, got {type(scores).__name__}")
    if len(shape) != 2 or shape[0] != batch_size or shape[1] < 2:
        raise ValueError(f"f must return {expected}, got shape {tuple(shape)}")
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer) or dtype == np.bool_):
        raise TypeError(f"f must return {expected}, got dtype {dtype}")
    return shape[1]


def check_counts(name: str, counts: Any, n: int | None = None) -> jax.Array | np.ndarray:
    """Return vote counts as `i32[N, K]`; where concrete, non-negative and of at most `n` votes a row."""
    expected = "integer vote counts of shape [N, K] with K >= 2 classes"
    counts = as_host_array(name, counts, expected)
    if not jnp.issubdtype(counts.dtype, jnp.integer):
        raise TypeError(f"{name} must be {expected}, got dtype {counts.dtype}")
    if counts.ndim != 2 or counts.shape[1] < 2:
        raise ValueError(f"{name} must be {expected}, got shape {counts.shape}")
    if isinstance(counts, np.ndarray) and counts.size:
        if counts.min() < 0:
            raise ValueError(f"{name} must not be negative, got {counts.min()}")
        most = int(counts.sum(axis=1, dtype=np.float64).max())
        if most > (_INT32 if n is None else n):
            raise ValueError(f"{name} must add up to at most n = {n} votes for each input, got {most}")
    return counts.astype(np.int32)


def safe_scale(noise: Noise) -> float:
    """Return the scale, one float32 step down: below what was given, and below what noise is drawn with."""
    return float(np.nextafter(np.asarray(noise.scale, np.float32), np.float32(0)))
