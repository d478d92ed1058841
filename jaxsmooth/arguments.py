"""Checks of arguments at the public edge: bad input is refused by name, with what came and what was expected.

`as_x` converts a value or raises; `refuse_x` raises or returns nothing. The bridges use these checks too. A value that
JAX traces cannot be read, so only its shape and dtype are checked.
"""

import inspect
import math
import operator
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxsmooth._foreign import advice, kind_of

__all__ = [
    "as_alpha",
    "as_array",
    "as_flag",
    "as_float_dtype",
    "as_integer",
    "as_key",
    "as_numbers",
    "as_scale",
    "evaluating",
    "in_brief",
    "is_traced",
    "refuse_rounded",
    "refuse_traced",
    "refuse_uncallable",
    "refuse_unknown",
    "refuse_unpaired",
]

LEAST_ALPHA = 1e-12
LEAST_SCALE = np.float32(1e-30)  # below it, products of a scale and a radius would be rounded as subnormal numbers
_INT32 = 2**31 - 1
_COUNTING = "use count_votes, or certify or predict with compiled=True"


def in_brief(value: Any) -> str:
    """Return a value as an error shows it: an array by its type, shape and dtype, anything long by its beginning.

    Example:
        >>> in_brief(np.zeros((2, 3))), in_brief("no")
        ('an ndarray of shape (2, 3) and dtype float64', "'no'")
    """
    if getattr(value, "shape", ()) != () and hasattr(value, "dtype"):
        return f"an {type(value).__name__} of shape {tuple(value.shape)} and dtype {value.dtype}"
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def is_traced(value: Any) -> bool:
    """Tell whether a value is known only while JAX traces, so that it cannot be read."""
    return isinstance(value, jax.core.Tracer)


def evaluating() -> AbstractContextManager[Any]:
    """Let JAX evaluate in the body what it would trace if the caller is traced, though no argument is."""
    # Only where it is needed: inside this context JAX takes longer to trace a program.
    return jax.ensure_compile_time_eval() if is_traced(_zero()) else _NOTHING


_zero = jax.jit(lambda: np.int32(0))
_NOTHING = nullcontext()


def as_integer(name: str, value: Any, least: int, most: int = _INT32) -> int:
    """Return `value` as an int in [least, most]. A bool is not an integer.

    Example:
        >>> as_integer("n", np.int64(5), 1)
        5
    """
    if is_traced(value):
        raise TypeError(f"{name} must be a static Python integer, got {value}: list it in static_argnames")
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        integer = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer in [{least}, {most}], got {in_brief(value)}") from None
    if not least <= integer <= most:
        raise ValueError(f"{name} must be an integer in [{least}, {most}], got {integer}")
    return integer


def as_alpha(value: Any, name: str = "alpha") -> float:
    """Return a probability as a float in (0, 1). One that is called alpha must lie in [1e-12, 0.5).

    Example:
        >>> as_alpha(0.001)
        0.001
    """
    if is_traced(value):
        raise TypeError(f"{name} must be a static Python float, got {value}: list it in static_argnames")
    expected = f"a number in (0, {0.5 if name == 'alpha' else 1})"
    number = as_array(name, value, expected, host=True)
    if number.ndim != 0 or not jnp.issubdtype(number.dtype, jnp.number) or jnp.issubdtype(number.dtype, complex):
        raise TypeError(f"{name} must be {expected}, got {in_brief(value)}")
    number = float(number)
    if not 0.0 < number < 1.0:
        raise ValueError(f"{name} must be {expected}, got {number}")
    if name == "alpha" and number >= 0.5:
        meant = f": did you mean {1 - number:.6g}?" if number >= 0.75 else ""
        raise ValueError(f"alpha is a failure probability, below 0.5, got {number}{meant}")
    if name == "alpha" and number < LEAST_ALPHA:
        raise ValueError(f"alpha must be at least {LEAST_ALPHA}, below which bounds in float64 err, got {number}")
    return number


def as_scale(name: str, value: Any) -> ArrayLike:
    """Return the scale of a noise as an f32 scalar: at least 1e-30 and finite, unless it is traced.

    Example:
        >>> as_scale("sigma", 0.5)
        np.float32(0.5)
    """
    array = as_array(name, value, "a positive number", host=True)
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise TypeError(f"{name} must be a positive number, got {in_brief(value)}")
    if array.shape != ():
        raise ValueError(f"{name} must be a scalar, got shape {array.shape}: use jax.vmap for several scales")
    if isinstance(array, np.ndarray):
        with np.errstate(over="ignore"):
            number = array.astype(np.float32)
        if not (np.isfinite(number) and number > 0):
            raise ValueError(f"{name} must be positive and finite in float32, got {value}")
        if number < LEAST_SCALE:
            raise ValueError(f"{name} must be at least 1e-30, got {value}")
        return np.float32(number)
    return array.astype(jnp.float32)


def as_key(value: Any, *, any_generator: bool = False) -> jax.Array:
    """Return one typed Threefry key, from a typed key or from raw key data.

    With `any_generator`, a typed key of any of JAX's generators is taken, and a Threefry key is drawn from it. That is
    enough for training, and not for votes.

    Example:
        >>> as_key(np.array([0, 7], np.uint32)) == jax.random.key(7)
        Array(True, dtype=bool)
    """
    expected = "one Threefry key, as made by jaxsmooth.key_of_seed(seed) or jax.random.key(seed, impl='threefry2x32')"
    if not isinstance(value, (jax.Array, np.ndarray)):
        raise TypeError(f"key must be {expected}, got {in_brief(value)}")
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        is_threefry = str(jax.random.key_impl(value)) == "threefry2x32"
        if not any_generator and not is_threefry:
            raise ValueError(f"key must be {expected}, got a key of {jax.random.key_impl(value)}")
        if value.shape != ():
            raise ValueError(f"key must be {expected}, got an array of keys of shape {value.shape}")
        if not is_threefry:
            value = jax.random.wrap_key_data(jax.random.bits(value, (2,), np.uint32), impl="threefry2x32")  # pyright: ignore
        return value  # pyright: ignore[reportReturnType]: NumPy has no such dtype
    if value.dtype != np.uint32:
        raise TypeError(f"key must be {expected}, got an array of dtype {value.dtype}")
    if value.shape != (2,):
        raise ValueError(f"key must be {expected}, got raw key data of shape {value.shape}")
    return jax.random.wrap_key_data(jnp.asarray(value), impl="threefry2x32")


def as_nonnegative(name: str, value: Any) -> float:
    """Return a finite number that is at least 0.

    Example:
        >>> as_nonnegative("epsilon", 0.5)
        0.5
    """
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    # An integer may be finite and larger than every float.
    if not is_number or not 0 <= value <= sys.float_info.max:
        error = ValueError if is_number else TypeError
        raise error(f"{name} must be a finite number >= 0, got {in_brief(value)}")
    return float(value)


def as_flag(name: str, value: Any) -> bool:
    """Return a truth value. A word such as "no", which Python takes for true, is refused.

    Example:
        >>> as_flag("progress", np.True_), as_flag("progress", 0)
        (True, False)
    """
    if not isinstance(value, (bool, int, np.bool_, np.integer)) or value not in (0, 1):
        raise TypeError(f"{name} must be True or False, got {in_brief(value)}")
    return bool(value)


def as_float_dtype(dtype: Any) -> np.dtype[Any]:
    """Return a floating dtype as JAX has it: float64 is float32 unless `jax_enable_x64` is set."""
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype must be a floating dtype, got {np.dtype(dtype)}")
    return jax.dtypes.canonicalize_dtype(dtype)


def as_array(name: str, value: Any, expected: str, *, host: bool = False) -> Any:
    """Return a value as an array: a JAX array as it is, anything else as a NumPy array in native byte order.

    With `host`, a JAX array becomes a NumPy array, too, because under jit JAX would trace what is done to it. A traced
    value stays as it is.
    """
    if is_traced(value):
        return value
    try:
        if isinstance(value, jax.Array):
            if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
                raise TypeError("an array of keys")
            return np.asarray(value) if host else value
        if isinstance(value, np.ma.MaskedArray):
            raise TypeError("a masked array")
        array = np.asarray(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise TypeError(f"{name} must be {expected}, got {type(value).__name__}: {error}") from None
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def as_numbers(name: str, value: Any, expected: str) -> np.ndarray:
    """Return real numbers as a float64 NumPy array.

    Example:
        >>> as_numbers("radii", [1, 2], "numbers")
        array([1., 2.])
    """
    array = as_array(name, value, expected, host=True)
    if is_traced(array):
        raise TypeError(f"{name} must be {expected} that are known before anything is compiled, got {array}")
    if array.dtype == object and all(isinstance(number, int) for number in array.flat):
        array = np.array([_as_float(number) for number in array.flat]).reshape(array.shape)
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise TypeError(f"{name} must be {expected}, got dtype {array.dtype}")
    return array.astype(np.float64)


def refuse_rounded(x: np.ndarray, narrow: np.ndarray, scale: Any, norm: int = 2) -> None:
    """Refuse inputs that rounding to float32 moves far, in the units of the noise: certificates are of rounded inputs.

    Args:
        x, narrow: inputs `[N, *event]`, and what they are in float32.
        scale, norm: of the noise.

    Example:
        >>> x = np.array([[1.7e9 + 60]])  # seconds since 1970, which float32 knows to 128
        >>> refuse_rounded(x, x.astype(np.float32), 30.0)
        Traceback (most recent call last):
        ...
        ValueError: x must be close to what float32 can hold, but rounding moves input 0 by 60, over 1/10 of the \
scale 30 of the noise: subtract a constant from x, and add it within f
    """
    with np.errstate(over="ignore", invalid="ignore"):
        moved = np.linalg.norm((x - narrow).reshape(len(x), math.prod(x.shape[1:])), norm, axis=1)
    far = np.flatnonzero((moved > float(np.asarray(scale)) / 10) & np.isfinite(moved))
    if len(far):
        raise ValueError(
            f"x must be close to what float32 can hold, but rounding moves input {far[0]} by {moved[far[0]]:.3g}, over "
            f"1/10 of the scale {np.asarray(scale):.3g} of the noise: subtract a constant from x, and add it within f"
        )


def refuse_unknown(name: str, value: Any, choices: Sequence[str]) -> None:
    """Refuse a value that is not one of the given words."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {in_brief(value)}")


def refuse_unpaired(name: str, pair: Any, place: str) -> None:
    """Refuse an item of data that is no pair (x, label), and say what it is.

    Example:
        >>> refuse_unpaired("data", {"image": 1, "label": 2}, "at index 0")
        Traceback (most recent call last):
        ...
        ValueError: data must hold pairs (x, label), got a dict with the keys image, label at index 0
    """
    if getattr(pair, "shape", ()) != ():
        came = f"an array of shape {tuple(pair.shape)}"
    elif isinstance(pair, Mapping):
        came = f"a {type(pair).__name__} with the keys {', '.join(map(str, pair))}"
    elif isinstance(pair, (str, bytes)) or not hasattr(pair, "__len__"):
        came = f"a {type(pair).__name__}"
    elif len(pair) != 2:
        came = f"a {type(pair).__name__} of {len(pair)}"
    else:
        return
    raise ValueError(f"{name} must hold pairs (x, label), got {came} {place}")


def refuse_traced(name: str, values: Any, instead: str = _COUNTING) -> None:
    """Refuse traced values in the function `name`, which runs on the host, and say what to do under jit instead."""
    if any(map(is_traced, jax.tree.leaves(values))):
        raise TypeError(f"{name} runs on the host and takes no traced values: under jax.jit {instead}")


def refuse_uncallable(f: Any) -> None:
    """Refuse a classifier that cannot be called, or that is an object of another framework."""
    if inspect.isfunction(f):
        return
    known = advice(f)
    if isinstance(f, type):
        known = f"got the class {f.__name__}: make an instance of it"
    if known is not None or not callable(f):
        expected = "f must be a callable from inputs [B, *event] to scores [B, *components, K]"
        raise TypeError(f"{expected}, {known or f'got {in_brief(f)}'}")


def refuse_other_framework(name: str, model: Any, own: str) -> None:
    """Refuse a model of another framework than `own`, and name the call that takes it.

    Args:
        name: of the argument.
        model: any value.
        own: the bridge that asks, such as "pytorch".
    """
    found = kind_of(model)
    if found is not None and f"bridges.{own}." not in found[1]:
        raise TypeError(f"{name} must be a model of this bridge's framework, got {found[0]}: {found[1]} takes it")


def _as_float(number: int) -> float:
    """Return an integer of any size as a float, infinite where float64 cannot hold it."""
    try:
        return float(number)
    except OverflowError:
        return math.copysign(math.inf, number > 0 or -1)
