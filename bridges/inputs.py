"""Inputs and labels of the classes: converted from any common form, or refused with a message."""

import hashlib
import math
from typing import Any

import numpy as np

from jaxsmooth.arguments import as_array, as_integer, refuse_rounded


def as_inputs(x: Any, shape: tuple[int, ...] | None = None, scale: Any = None) -> np.ndarray:
    """Return inputs as finite `f32[N, *shape]`.

    Args:
        x: array, list, JAX array or tensor `[N, *shape]` of numbers.
        shape: of one input; any with at least one axis by default.
        scale: of the noise that they get, if any.

    Raises:
        TypeError: x holds no real numbers. ValueError: another shape, a value that is not finite, or one that float32
            cannot hold, in the units of the noise.

    Example:
        >>> as_inputs([[1, 2]]).dtype
        dtype('float32')
    """
    expected = "[N, ...]" if shape is None else "[N, " + ", ".join(map(str, shape)) + "]"
    given = to_numpy("x", x)
    array = as_real("x", given, expected)
    if array.ndim < 2 or (shape is not None and array.shape[1:] != tuple(shape)):
        raise ValueError(f"x must have shape {expected}, got {array.shape}: one input is x[None]")
    finite = np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    if not finite.all():
        raise ValueError(f"x must be finite in float32, got NaN or infinity at index {np.flatnonzero(~finite)[0]}")
    if scale is not None and given.dtype.itemsize > 4:
        refuse_rounded(given.astype(np.float64), array, scale)
    return array


def as_real(name: str, value: Any, expected: str) -> np.ndarray:
    """Return real numbers as a contiguous float32 array."""
    array = to_numpy(name, value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold real numbers of shape {expected}, got dtype {array.dtype}")
    with np.errstate(over="ignore"):
        return np.asarray(array, np.float32, order="C")


def as_labels(y: Any, number: int, classes: int, name: str = "y") -> np.ndarray:
    """Return class indices `i64[number]` from indices `(n,)` or `(n, 1)`, one-hot rows or probabilities `(n, classes)`.

    Raises:
        TypeError: y holds no numbers. ValueError: another shape or length, a fraction, or an index out of range.

    Example:
        >>> as_labels([[0, 0, 1], [1, 0, 0]], 2, 3), as_labels([[2], [0]], 2, 3)
        (array([2, 0]), array([2, 0]))
    """
    array = to_numpy(name, y)
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"{name} must hold class indices or one row of {classes} for each input, got dtype {array.dtype}"
        )
    if array.shape not in ((number,), (number, 1), (number, classes)):
        shapes = f"({number},), ({number}, 1) or ({number}, {classes})"
        raise ValueError(f"{name} must have shape {shapes}, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite")
    if array.shape == (number, classes) and classes > 1:
        return np.argmax(array, axis=1)
    indices = array.reshape(number).astype(np.int64)
    if (indices != array.reshape(number)).any() or (indices < 0).any() or (indices >= classes).any():
        raise ValueError(f"{name} must hold class indices from 0 to {classes - 1}, got {array.min()} to {array.max()}")
    return indices


def as_hard_labels(y: Any, number: int, classes: int) -> np.ndarray:
    """Return class indices `i64[number]` from indices or one-hot rows, and refuse any other row.

    Example:
        >>> as_hard_labels([[0, 0, 1], [1, 0, 0]], 2, 3)
        array([2, 0])
    """
    array = to_numpy("y", y)
    labels = as_labels(array, number, classes)
    if array.shape == (number, classes) and classes > 1 and (array != one_hot(labels, classes)).any():
        raise ValueError("y must hold class indices or one-hot rows for an objective, got rows of other numbers")
    return labels


def as_targets(y: Any, number: int, classes: int, width: int, *, indices: bool, rows: bool = True) -> np.ndarray:
    """Return labels as a loss of outputs `[number, width]` takes them: class indices, or else float32 rows.

    Rows are kept as they are, indices become one-hot rows, or one column of 0 and 1 for a binary model of one output.

    Args:
        y: labels.
        number: of inputs.
        classes: number of classes.
        width: number of outputs of the network.
        indices: whether the loss takes indices; they are preferred, where rows are one-hot.
        rows: whether it takes rows.

    Raises:
        TypeError, ValueError: y holds no labels, or it has soft labels and the loss takes indices only.

    Example:
        >>> as_targets([0, 1], 2, 3, 3, indices=False)
        array([[1., 0., 0.],
               [0., 1., 0.]], dtype=float32)
        >>> as_targets([[0.9, 0.1]], 1, 2, 2, indices=True)
        array([[0.9, 0.1]], dtype=float32)
    """
    array = to_numpy("y", y)
    labels = as_labels(array, number, classes)
    are_rows = array.shape == (number, classes) and classes > 1
    if indices:
        if not (are_rows and _are_soft(array, labels)):
            return labels
        if not rows:
            # A row of one number throughout is a soft label to a loss of rows. ART's attacks make such of a prediction
            # that abstains, too, and a loss of indices takes it for class 0.
            differs = array.max(axis=1) != array.min(axis=1)
            if not _are_soft(array[differs], labels[differs]):
                return labels
            raise ValueError(
                "y must hold class indices or one-hot rows, because the loss, or sampling=True, takes one class for "
                "each input, got rows of other numbers"
            )
    if are_rows and width == classes:
        return array.astype(np.float32)
    if are_rows and width == 1:
        return array[:, 1:].astype(np.float32)
    return labels[:, None].astype(np.float32) if width == 1 else one_hot(labels, classes)


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """Return one-hot rows, `f32[N, classes]`. A matrix of all classes, to choose rows from, would grow with its square.

    Example:
        >>> one_hot(np.array([1, 0]), 2)
        array([[0., 1.],
               [1., 0.]], dtype=float32)
    """
    rows = np.zeros((len(labels), classes), np.float32)
    rows[np.arange(len(labels)), labels] = 1
    return rows


def _are_soft(rows: np.ndarray, labels: np.ndarray) -> bool:
    """Return whether some rows are neither one-hot nor all zeros or all ones.

    ART's attacks make such of predictions that abstain, and scale one-hot rows by a number close to 1.
    """
    is_one_hot = np.abs(rows - one_hot(labels, rows.shape[1])).max(axis=1, initial=0) < 1e-4
    abstains = (rows == 0).all(axis=1) | (rows == 1).all(axis=1)
    return not bool((is_one_hot | abstains).all())


def as_shape(input_shape: Any) -> tuple[int, ...]:
    """Return the shape of one input: at least one axis, each of at least one entry."""
    if isinstance(input_shape, str) or not hasattr(input_shape, "__iter__"):
        raise TypeError(f"input_shape must be a sequence of integers, got {input_shape!r}")
    shape = tuple(as_integer("input_shape", size, 1) for size in input_shape)
    if not shape:
        raise ValueError("input_shape must have at least one axis, got ()")
    return shape


def as_clip_values(clip_values: Any) -> np.ndarray | None:
    """Return `(min, max)` as an array."""
    if clip_values is None:
        return None
    values = as_real("clip_values", clip_values, "[2, ...]")
    if values.ndim == 0 or len(values) != 2 or not (values[0] < values[1]).all():
        raise ValueError(f"clip_values must be (min, max) with min < max, got {clip_values}")
    return values


def to_numpy(name: str, value: Any) -> np.ndarray:
    """Return an array, list, JAX array or tensor as a NumPy array."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if str(value.dtype).endswith("bfloat16") else value
    array = np.asarray(as_array(name, value, "an array of numbers"))
    # `name` is slow to read, and NumPy's own dtypes are of another kind.
    return array.astype(np.float32) if array.dtype.kind == "V" and array.dtype.name == "bfloat16" else array


def input_ids(x: np.ndarray) -> np.ndarray:
    """Return a 32-bit id for each input, made from its content.

    Noise that is drawn under this id does not depend on the position of an input or on the others in the batch. An
    input that was chosen after looking at the votes of another input meets fresh noise.

    Example:
        >>> x = np.zeros((2, 3), np.float32)
        >>> bool(input_ids(x)[0] == input_ids(x[1:])[0])
        True
    """
    rows = np.ascontiguousarray(x).reshape(len(x), math.prod(x.shape[1:])).view(np.uint8)
    ids = bytearray()
    for row in rows:
        ids += hashlib.sha256(row.data).digest()[:4]  # processors have instructions for this hash
    return np.frombuffer(ids, np.uint32)


def refuse_keywords(kwargs: dict[str, Any], known: tuple[str, ...]) -> None:
    """Refuse keyword arguments that nothing takes, such as misspelt ones, and name the ones that there are."""
    if kwargs:
        raise TypeError(f"unexpected keyword arguments: {', '.join(kwargs)}; there are {', '.join(known)}")


def refuse_prediction_keywords(kwargs: dict[str, Any]) -> None:
    """Refuse keyword arguments of a prediction but those that ART's tools give and no prediction depends on."""
    unknown = {name: value for name, value in kwargs.items() if name not in ("logits", "y")}
    refuse_keywords(unknown, ("is_abstain", "training_mode"))
