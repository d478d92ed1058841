"""Pairs of input and label, from any container, each under the index that names it to the noise."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from jaxsmooth.arguments import as_array, as_integer, in_brief, refuse_unpaired


class Item(NamedTuple):
    """One input of a data set, loaded when it is needed.

    Attributes:
        idx: its index.
        get: returns the pair (x, label).
    """

    idx: int
    get: Callable[[], Any]

    def load(self, like: dict[str, Any] | None = None) -> tuple[np.ndarray, int]:
        """Return the input and its label.

        Args:
            like: what `describe` says of another input; this one must have the same shape and dtype.

        Raises:
            ValueError, TypeError: it is not a pair of an array and a class, or it differs from the other input.
        """
        pair = self.get()
        refuse_unpaired("data", pair, f"at index {self.idx}")
        place = f"of input {self.idx} of data"
        x = as_array(f"x {place}", pair[0], "an array", host=True)
        label = as_array(f"the label {place}", pair[1], "a class", host=True)
        if like is not None and describe(x) != like:
            raise ValueError(f"all inputs of data must be like the first, {like}, got {describe(x)} at {self.idx}")
        if label.size != 1:
            raise ValueError(f"the label of input {self.idx} must be one class, got shape {label.shape}")
        return x, as_integer(f"the label of input {self.idx}", label.reshape(())[()], 0)


def describe(x: np.ndarray) -> dict[str, Any]:
    """Return what must be the same for all inputs of a run.

    Example:
        >>> describe(np.zeros((2, 3), np.float32))
        {'dtype': 'float32', 'shape': [2, 3]}
    """
    return {"dtype": x.dtype.name, "shape": list(x.shape)}


def list_items(data: Any, skip: int, most: int | None, share: tuple[int, int]) -> Iterator[Item]:
    """Return one share of the inputs of index 0, skip, 2 skip, ... below `most`.

    Example:
        >>> [item.idx for item in list_items([("x", 0)] * 10, 2, 9, (1, 2))]
        [2, 6]
    """
    index, count = share
    data = _paired(data)
    if is_indexed(data):
        for idx in range(0, len(data) if most is None else min(most, len(data)), skip)[index::count]:
            yield Item(idx, partial(data.__getitem__, idx))
        return
    for idx, pair in enumerate(data):
        if most is not None and idx >= most:
            return
        if idx % skip == 0 and idx // skip % count == index:
            yield Item(idx, partial(_same, pair))


def item_at(data: Any) -> Callable[[int], Item] | None:
    """Return a function that gives the input of an index, where data can be asked for any at any time.

    Example:
        >>> item_at([("x", 0), ("y", 1)])(1).get(), item_at(iter([]))
        (('y', 1), None)
    """
    data = _paired(data)
    return (lambda idx: Item(idx, partial(data.__getitem__, idx))) if is_indexed(data) else None


def labels_of(data: Any, skip: int, most: int | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Return indices and labels of the inputs of a run, where the labels are an array of numbers; else None.

    Example:
        >>> labels_of((np.zeros((4, 2)), np.array([0, 1, 2, 3])), 2, None)
        (array([0, 2]), array([0, 2]))
    """
    if not (is_two_arrays(data) and hasattr(data[1], "shape")):
        return None
    y = np.asarray(data[1])
    if y.ndim != 1 or y.dtype.kind not in "iuf":
        return None
    at = np.arange(0, len(y) if most is None else min(most, len(y)), skip)
    return at, y[at]


def count_items(data: Any, skip: int, most: int | None, share: tuple[int, int]) -> int | None:
    """Return how many inputs `list_items` gives, or None where the data have no length.

    Example:
        >>> count_items([("x", 0)] * 10, 2, 9, (1, 2))
        2
    """
    index, count = share
    try:
        number = len(_paired(data))
    except TypeError:
        number = math.inf
    number = min(number, math.inf if most is None else most)
    return None if number == math.inf else len(range(0, int(number), skip)[index::count])


def _paired(data: Any) -> Any:
    """Return the data as pairs, from pairs or from two arrays."""
    if hasattr(data, "iloc"):
        raise TypeError(f"data must be pairs (x, label) or two arrays, got a {type(data).__name__}: give (x, labels)")
    unusable = isinstance(data, (str, bytes, Mapping)) or not (is_indexed(data) or hasattr(data, "__iter__"))
    if unusable or len(getattr(data, "shape", (2, 2))) < 2:
        raise TypeError(f"data must be pairs (x, label), indexed or in order, or two arrays, got {in_brief(data)}")
    if is_two_arrays(data):
        x, y = cast(Any, data)
        if len(x) != len(y):
            raise ValueError(f"data must have one label for each input, got {len(x)} and {len(y)}")
        return _Pairs(x, y)
    return data


class _Pairs:
    """Inputs and labels side by side."""

    def __init__(self, x: Any, y: Any) -> None:
        # A DataFrame is indexed by columns, and a Series by names.
        self._x, self._y = (np.asarray(part) if hasattr(part, "iloc") or _is_split(part) else part for part in (x, y))

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self._x[index], self._y[index]


def is_two_arrays(data: Any) -> bool:
    """Return whether data are inputs and labels side by side, and not pairs.

    Example:
        >>> is_two_arrays((np.zeros((4, 2)), [0, 1, 2, 3])), is_two_arrays((("x", 0), ("y", 1)))
        (True, False)
    """
    return isinstance(data, tuple) and len(data) == 2 and hasattr(data[0], "shape")


def is_indexed(data: Any) -> bool:
    """Return whether data can be asked for any of their pairs at any time.

    Example:
        >>> is_indexed([("x", 0)]), is_indexed(iter([("x", 0)]))
        (True, False)
    """
    # A torch IterableDataset inherits `__getitem__`, which raises.
    is_iterable = any(base.__name__ == "IterableDataset" for base in type(data).__mro__)
    return hasattr(data, "__len__") and hasattr(data, "__getitem__") and not is_iterable


def _same(pair: Any) -> Any:
    return pair


def _is_split(part: Any) -> bool:
    """Return whether a JAX array is split over devices: one of its inputs cannot be taken out without saying how."""
    return isinstance(part, jax.Array) and part.is_fully_addressable and len(part.devices()) > 1
