"""The batches of a training run, from arrays or from whatever a generator may be."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from jaxsmooth.arguments import as_flag, as_integer
from jaxsmooth.progress import progress_bar

Batches = Iterable[tuple[Any, Any]]


def minibatches(
    x: np.ndarray, y: np.ndarray, batch_size: int, drop_last: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Return the rows in batches.

    Example:
        >>> x = np.arange(5)
        >>> [len(rows) for rows, _ in minibatches(x, x, 2)]
        [2, 2, 1]
    """
    for start in range(0, len(x), batch_size):
        if not (drop_last and len(x) - start < batch_size):
            yield x[start : start + batch_size], y[start : start + batch_size]


def generated_batches(generator: Any) -> Callable[[], Batches]:
    """Return a function that gives the batches of one epoch of a generator.

    Args:
        generator: an object with `size`, `batch_size` and `get_batch()`, as ART's generators are, or an iterable of
            (inputs, labels) that can be gone through again, as a torch `DataLoader` or a `tf.data.Dataset` is.

    Raises:
        TypeError: it is neither. ValueError, in the epoch: it gives no batch, for example because a plain generator is
            used up.
    """
    if hasattr(generator, "get_batch"):
        steps = max(1, -(-int(generator.size) // int(generator.batch_size)))
        return lambda: _batches_of_art(generator, steps)
    if not isinstance(generator, Iterable):
        raise TypeError(f"generator must be iterable or have get_batch, got {type(generator).__name__}")

    def epoch() -> Batches:
        empty = True
        for batch in generator:
            empty = False
            yield batch
        if empty:
            raise ValueError("generator gave no batch: an iterator that is used up serves one epoch only")

    return epoch


def _batches_of_art(generator: Any, steps: int) -> Batches:
    """Yield the batches of one epoch of a generator of ART's. Some of them do not begin again: their data set does."""
    again: Iterator[Any] | None = None
    for _ in range(steps):
        batch: Any = None
        if again is None:
            try:
                batch = generator.get_batch()
            except StopIteration:
                source = getattr(generator, "iterator", None)
                if not isinstance(source, Iterable) or isinstance(source, Iterator):
                    raise ValueError(
                        "generator gave no batch: an iterator that is used up serves one epoch only"
                    ) from None
                again = iter(source)
        if again is not None:
            batch = next(again, None)
            if batch is None:
                return
        yield batch


def epochs(number: int, verbose: bool) -> Iterator[int]:
    """Give the indices of the epochs, with their progress if asked for."""
    total = as_integer("nb_epochs", number, 0)
    with progress_bar("epochs", total, as_flag("verbose", verbose)) as advance:
        for index in range(total):
            yield index
            advance(index + 1)
