"""What `jaxsmooth train` keeps beside weights: how far they are, of what settings, and a digest of them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np


def state_path(output: Path) -> Path:
    """Return the file that says how many epochs are done."""
    return output.with_name(f"{output.name}.epochs.json")


def weight_files(output: Path) -> list[Path]:
    """Return the files of weights of this name."""
    endings = (".model", ".optimizer", ".weights.h5", ".weights.npz", ".optimizer.npz")  # those of every framework
    return [path for ending in endings if (path := output.with_name(output.name + ending)).exists()]


def digest_of_files(output: Path) -> str:
    """Return a digest of the weights on disk."""
    digest = hashlib.sha256()
    for path in weight_files(output):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def digest_of_arrays(*arrays: Any) -> str:
    """Return a digest of training data."""
    digest = hashlib.sha256()
    for array in map(np.asarray, arrays):
        digest.update(f"{array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def read_state(output: Path) -> dict[str, Any] | None:
    """Return what is kept beside weights; None if nothing is."""
    path = state_path(output)
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{path} is damaged: remove it to take the weights beside it as they are") from None


def range_of(x: Any) -> list[float]:
    """Return the least and the largest value of inputs."""
    return [float(np.min(x)), float(np.max(x))]


def doubts(x: np.ndarray, sigma: float, model: str, weights: Path | None) -> list[str]:
    """Return what looks like a mistake about the units of inputs, noise and weights: a certificate does not show it.

    Example:
        >>> doubts(np.array([[0.0, 255.0]]), 0.25, "net.py:make", None)
        ['--sigma 0.25 is 0.00098 of the range of DATA, 0 to 255: it must be in the units of the inputs']
    """
    found: list[str] = []
    low, high = range_of(x)
    state: dict[str, Any] = {} if weights is None else read_state(weights) or {}
    if state.get("model", model) != model:
        found.append(f"--weights {weights} were trained as {state['model']}")
    before = state.get("values", (low, high))
    # A few dark images have a smaller range than all of them.
    if not (before[1] - before[0]) / 10 <= high - low <= 2 * (before[1] - before[0]):
        found.append(
            f"--weights {weights} were trained on values from {before[0]:g} to {before[1]:g}, and those of DATA go "
            f"from {low:g} to {high:g}"
        )
    if high > low and not 0.01 <= sigma / (high - low) <= 4:
        found.append(
            f"--sigma {sigma:g} is {sigma / (high - low):.2g} of the range of DATA, {low:g} to {high:g}: it must be in "
            "the units of the inputs"
        )
    return found
