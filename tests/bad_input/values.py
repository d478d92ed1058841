"""Odd values, new ones each time: none of any use, and forms of good ones that mean the same."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsmooth import Ablation, Gaussian, Laplace, LatticeGaussian, Replacement, Uniform
from tests.bad_input.harness import Same


class Unusable:
    """An object of no use."""

    def __repr__(self) -> str:
        return "Unusable()"


class Raises:
    """An object that refuses to become an array."""

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise ValueError("no array")

    def __repr__(self) -> str:
        return "Raises()"


def constants(*values: Any) -> list[Any]:
    """Return functions that return these."""
    return [partial(_identity, value) for value in values]


def _identity(value: Any) -> Any:
    return value


ANYTHING = [
    *constants(None, "image", b"bytes", True, 1.5, float("nan"), float("inf"), -(10**400), 1 + 2j, ..., (), slice(2)),
    list,
    dict,
    lambda: {"a": 1},
    lambda: {1, 2},
    lambda: [[1.0, 2.0], [3.0]],
    lambda: [None, None, None],
    lambda: iter([1, 2]),
    Unusable,
    Raises,
    object,
    lambda: np.array("text"),
    lambda: np.array(["a", "b", "c"]),
    lambda: np.array([object(), None], object),
    lambda: np.array([Unusable()] * 15, object).reshape(3, 5),
    lambda: np.zeros((3, 5), complex),
    lambda: np.zeros((3, 5), "M8[s]"),
    lambda: np.zeros((3, 5), [("a", "f4")]),
    lambda: np.zeros(()),
    lambda: np.zeros(0),
    lambda: np.zeros((0, 0)),
    lambda: np.zeros((1,) * 12),
    lambda: jax.random.key(0),
    lambda: jax.random.split(jax.random.key(0), 3),
    lambda: jnp.zeros((3, 5), jnp.bfloat16) * jnp.nan,
]

INTEGERS = constants(
    *(0, -1, 2**31, 2**63, 2**64, -(2**63), 10**30, 10.0, 10.5, "10", [10], True, np.float32(10), np.bool_(True)),
    *(np.array([10]), np.array(10.0), None, float("nan"), float("inf"), 10 + 0j, b"1", range(3)),
)
NUMBERS = constants(
    *(0.0, -0.5, 1.0, 1.5, -0.0, float("nan"), float("inf"), -float("inf"), 1e-400, "0.1", b"0.1", None, True),
    *([0.1], (0.1, 0.2), np.array([0.1]), 0.1 + 0j, 10**400, {}, np.float32("nan")),
)


def forms_of_integer(value: int) -> list[Any]:
    """Return forms of an integer."""
    return constants(*(Same(kind(value)) for kind in (np.int16, np.uint64, np.int32, np.array)))


def forms_of_array(make: Any) -> list[Any]:
    """Return forms of an array `[N, ...]`: orders, strides, byte orders, containers."""

    def strided() -> Any:
        return Same(np.repeat(make(), 2, axis=-1)[..., ::2])

    def swapped() -> Any:
        return Same(make().astype(make().dtype.newbyteorder(">")))

    def unaligned() -> Any:
        array = make()
        memory = np.zeros(array.nbytes + 1, np.uint8)
        view = memory[1:].view(array.dtype).reshape(array.shape)
        view[...] = array
        return Same(view)

    def read_only() -> Any:
        array = make()
        array.flags.writeable = False
        return Same(array)

    return [
        lambda: Same(make()),
        lambda: Same(np.asfortranarray(make())),
        lambda: Same(make()[::-1].copy()[::-1]),
        lambda: Same(jnp.asarray(make())),
        lambda: Same(make().tolist()),
        lambda: Same(list(make())),
        strided,
        swapped,
        unaligned,
        read_only,
    ]


def changed_arrays(make: Any) -> list[Any]:
    """Return arrays like a good one `[N, F]` but for dtype, shape or values."""

    def with_value(value: float, place: int = 0) -> Any:
        array = make().astype(np.float64)
        array.reshape(-1)[place] = value
        return array

    return [
        *(partial(with_value, value) for value in (np.nan, np.inf, -np.inf, 1e300, -1e39, 3e38, 1e-45, -0.0)),
        partial(with_value, np.nan, -1),
        *(lambda kind=kind: make().astype(kind) for kind in ("?", "i1", "u8", "i4", "f2", "f8", "c8", "O", "U9", "S9")),
        lambda: make()[:0],
        lambda: make()[:, :0],
        lambda: make()[0],
        lambda: make()[:1],
        lambda: make()[None],
        lambda: make()[..., None],
        lambda: make().reshape(-1),
        lambda: make()[:, :-1],
        lambda: np.ma.masked_array(make(), make() > 0),
        lambda: jnp.asarray(make(), jnp.bfloat16),
    ]


KEYS = [
    *constants(0, None, "key", 1.5, (0, 1), [0, 1]),
    lambda: np.zeros(2, np.int32),
    lambda: np.zeros(2, np.float32),
    lambda: np.zeros((1, 2), np.uint32),
    lambda: np.zeros(3, np.uint32),
    lambda: jax.random.split(jax.random.key(0)),
    lambda: jax.random.key(0, impl="rbg"),
    lambda: Same(np.array([0, 7], np.uint32)),
    lambda: Same(jax.random.PRNGKey(7)),
    *ANYTHING,
]
NOISES = [
    *(lambda kind=kind, value=value: kind(value) for kind in (Gaussian, Laplace, Uniform) for value in
      (0.0, -1.0, float("nan"), float("inf"), 1e-50, 1e300, None, "1", True, np.ones(2), 1j, [0.5], object())),
    *constants(Gaussian, Laplace, 0.5, LatticeGaussian),
    *constants(Ablation((5,), 2, -1), Ablation((4,), 2, -1), Replacement(5, 0.5)),
    lambda: Same(Gaussian(np.float64(0.5))),
    lambda: Same(Gaussian(jnp.float32(0.5))),
    lambda: Same(Gaussian(np.array(0.5, ">f4"))),
    *ANYTHING,
]  # fmt: skip
CLASSIFIERS = [
    *constants(None, "model", 3, [lambda x: x]),
    lambda: lambda x: x[:, :1],
    lambda: lambda x: x[0],
    lambda: lambda x: x[:-1],
    lambda: lambda x: (x, x),
    lambda: lambda x: x.astype(complex),
    lambda: lambda _: None,
    lambda: lambda x: x.sum(),
    lambda: lambda x: x * jnp.nan,
    lambda: lambda x: x.astype(bool),
    lambda: lambda x: jnp.where(x > 0, jnp.inf, x),
]
