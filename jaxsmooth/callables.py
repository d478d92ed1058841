"""Part a callable into the arrays in it, which jit traces, and the rest, which identifies the program."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

_ARRAY = object()


class StaticCallable(NamedTuple):
    """A callable without the arrays in it. A plain function has none and is all here."""

    treedef: Any
    leaves: tuple[Any, ...]


def split_callable(f: Callable[..., Any]) -> tuple[list[Any], StaticCallable]:
    """Return the arrays in a callable pytree and, hashable, what is left.

    Raises:
        TypeError: what is left cannot be hashed.
    """
    leaves, treedef = jax.tree.flatten(f)
    is_array = [isinstance(leaf, (jax.Array, np.ndarray, np.generic)) for leaf in leaves]
    arrays = [leaf for leaf, array in zip(leaves, is_array, strict=True) if array]
    rest = tuple(_ARRAY if array else leaf for leaf, array in zip(leaves, is_array, strict=True))
    static = StaticCallable(treedef, rest)
    try:
        hash(static)
    except TypeError as error:
        raise TypeError(f"f must be hashable apart from the arrays in it, which {f!r} is not: {error}") from None
    return arrays, static


def merge_callable(arrays: list[Any], static: StaticCallable) -> Callable[..., Any]:
    """Put a callable together again."""
    remaining = iter(arrays)
    leaves = [next(remaining) if leaf is _ARRAY else leaf for leaf in static.leaves]
    return jax.tree.unflatten(static.treedef, leaves)
