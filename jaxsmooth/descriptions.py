"""What tells one static part of a classifier from another one: the same words in every process."""

import dataclasses
import enum
import functools
import hashlib
import inspect
import re
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_DEEPEST = 12  # containers within each other; what is deeper is told by its type
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), np.dtype, slice, range)
_NOT_SETTINGS = ("parent", "name")  # of a flax.linen module


def digest(arrays: Iterable[Any]) -> str:
    """Return a digest of arrays: of their dtypes, shapes and content."""
    found = hashlib.sha256()
    for array in map(_readable, arrays):
        found.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def described(value: Any) -> str:
    """Return the settings, functions and arrays in a value as words.

    A number, a string and the like is told by its value, an array by its content, a function by its code, its defaults
    and what it closes over, a container and a dataclass by their entries. Of any other object only the type is told.

    Example:
        >>> words = [described(lambda result, i=i: result[i]) for i in (0, 1, 0)]
        >>> words[0] == words[1], words[0] == words[2]
        (False, True)
        >>> described({"size": (8, 8), "way": "bilinear"})
        "dict('size': tuple(8, 8), 'way': 'bilinear')"
    """
    return _Describer().words(value)


def is_told(value: Any) -> bool:
    """Tell whether `described`, or a digest of its arrays, tells a value from another one of its type.

    Example:
        >>> is_told((1, "a", np.ones(2), len)), is_told(object())
        (True, False)
    """
    if dataclasses.is_dataclass(value):
        return all(is_told(getattr(value, field.name)) for field in dataclasses.fields(value))
    if isinstance(value, (*_PLAIN, enum.Enum, jax.Array, np.ndarray, np.generic)) or callable(value):
        return True
    if isinstance(value, (Mapping, list, tuple, set, frozenset)):
        return all(map(is_told, value.values() if isinstance(value, Mapping) else value))
    leaves = jax.tree.leaves(value)
    return len(leaves) != 1 or leaves[0] is not value  # a pytree, which is told by its leaves


def without_addresses(text: str) -> str:
    """Return a `repr` without places in memory, which differ from process to process.

    Example:
        >>> without_addresses("<function relu at 0x7f04be5cc900>")
        '<function relu>'
    """
    return re.sub(r" at 0x[0-9a-f]+", "", text)


class _Describer:
    """The words of one value. A function within itself, or met again, is told by its name."""

    def __init__(self) -> None:
        self._functions: set[int] = set()

    def words(self, value: Any, depth: int = 0) -> str:  # noqa: C901
        """Return the words of a value that is within `depth` containers."""
        if depth > _DEEPEST:
            return _type_name(value)
        if isinstance(value, (jax.Array, np.ndarray, np.generic)):
            return f"array({digest([value])})"
        if isinstance(value, (*_PLAIN, enum.Enum)):
            return repr(value)
        inner = functools.partial(self.words, depth=depth + 1)
        if isinstance(value, type):
            return f"{value.__module__}.{value.__qualname__}"
        if isinstance(value, functools.partial):
            return f"partial({inner(value.func)}, {inner(value.args)}, {inner(value.keywords)})"
        if inspect.ismethod(value):
            return f"method({inner(value.__func__)}, {inner(value.__self__)})"
        if inspect.isfunction(value):
            return self._of_function(value, inner)
        if isinstance(value, types.CodeType):
            # Constants may hold code of their own, whose `repr` is a place in memory.
            return f"code({value.co_code.hex()}, {inner(value.co_consts)}, {inner(value.co_names)})"
        if isinstance(value, Mapping):
            entries = ", ".join(f"{inner(key)}: {inner(entry)}" for key, entry in value.items())
            return f"{type(value).__name__}({entries})"
        if isinstance(value, (set, frozenset)):
            return f"{type(value).__name__}({', '.join(sorted(map(inner, value)))})"
        if isinstance(value, (list, tuple)):
            return f"{type(value).__name__}({', '.join(map(inner, value))})"
        if isinstance(value, jax.tree_util.PyTreeDef):
            node = value.node_data()
            own = "leaf" if node is None else f"{node[0].__qualname__} {inner(node[1])}"
            return f"{own}({', '.join(map(inner, value.children()))})"
        if dataclasses.is_dataclass(value):
            names = [field.name for field in dataclasses.fields(value) if field.name not in _NOT_SETTINGS]
            return f"{_type_name(value)}{inner({name: getattr(value, name, None) for name in names})}"
        # What jax.jit returns has the function as `__wrapped__`, and Partial's copy of a functools.partial as `fun`.
        for name in ("__wrapped__", "fun"):
            if callable(getattr(value, name, None)):
                return inner(getattr(value, name))
        if type(value).__module__ in ("operator", "_operator"):
            return f"{_type_name(value)}{inner(value.__reduce__()[1])}"
        return _type_name(value)

    def _of_function(self, function: Any, inner: Callable[[Any], str]) -> str:
        if id(function) in self._functions:
            return function.__qualname__
        self._functions.add(id(function))
        cells = [_content(cell) for cell in function.__closure__ or ()]
        parts = (function.__code__, function.__defaults__, function.__kwdefaults__, cells)
        return f"{function.__qualname__}({', '.join(map(inner, parts))})"


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is not filled yet
        return None


def _type_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _readable(array: Any) -> np.ndarray:
    """Return an array, or the data of JAX keys, as NumPy's."""
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return np.asarray(jax.random.key_data(array))
    return np.asarray(array)
