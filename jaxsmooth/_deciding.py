"""What every decision does with counts and radii, for arrays of NumPy or of JAX (`xp` is the one or the other)."""

from typing import Any

import numpy as np

from jaxsmooth.types import ABSTAIN


def at_label(xp: Any, counts: Any, label: Any) -> Any:
    """Return the count of each label, `[N, *components]`."""
    return xp.take_along_axis(counts, label[..., None], axis=-1)[..., 0]


def largest_rival(xp: Any, counts: Any, label: Any, n: Any) -> Any:
    """Return the largest count of a class that is not the label, in [0, n]. The invalid votes count as a class."""
    classes = xp.arange(counts.shape[-1]).reshape((1,) * label.ndim + (-1,))
    others = xp.where(classes == label[..., None], 0, counts).max(axis=-1)
    return xp.clip(xp.maximum(others, n - counts.sum(axis=-1, dtype=np.int32)), 0, n)


def reduced(xp: Any, label: Any, radius: Any, lost: Any) -> tuple[Any, Any]:
    """Return label and radius once what rounding the inputs lost is taken off. A radius that is used up abstains."""
    if lost is None:
        return label, radius
    lost = per_input(lost, label.ndim)
    left = xp.where(lost > 0, xp.nextafter(radius - lost, xp.full_like(radius, -np.inf)), radius)
    kept = (label != ABSTAIN) & ((lost == 0) | (left > 0))
    return xp.where(kept, label, ABSTAIN), xp.where(kept, left, np.float32(0))


def per_input(values: Any, ndim: int) -> Any:
    """Return `[N]` values, or one for all, in a shape that broadcasts against `[N, *components]` of so many axes."""
    return values if np.ndim(values) == 0 else values.reshape(-1, *(1,) * (ndim - 1))
