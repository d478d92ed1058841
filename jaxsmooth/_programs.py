"""Compile programs: which parts of a classifier are traced, and with which options noise is compiled."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsmooth.arguments import is_traced

_ARRAY = object()
_WIDE = {"xla_cpu_prefer_vector_width": 512}


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


class WideJit:
    """`jax.jit(run, **settings)`, which on a CPU uses vectors of 512 bits where XLA by itself stops at 256.

    Normals then take 0.7 times as long to draw where the CPU has such vectors. The bits are the same. On traced values
    this is plain `jax.jit`, because they belong to a program with options of its own.

    Example:
        >>> WideJit(jax.numpy.square)(3.0)
        Array(9., dtype=float32, weak_type=True)
    """

    def __init__(self, run: Callable[..., Any], **settings: Any) -> None:
        self._run = run
        self._settings = settings
        self.plain = jax.jit(run, **settings)

    @functools.cached_property
    def wide(self) -> Any:
        """The program for calls by the host."""
        return jax.jit(self._run, compiler_options=_WIDE, **self._settings) if takes_wide_vectors() else self.plain

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program."""
        if self.wide is self.plain or any(map(is_traced, jax.tree.leaves((args, kwargs)))):
            return self.plain(*args, **kwargs)
        with jax.ensure_compile_time_eval():  # the caller may be traced though no argument is
            return self.wide(*args, **kwargs)


@functools.cache
def takes_wide_vectors() -> bool:
    """Tell whether XLA compiles for a CPU and knows the option, which it does not promise to keep."""
    if jax.default_backend() != "cpu":
        return False
    try:
        jax.jit(lambda: 0, compiler_options=_WIDE).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
