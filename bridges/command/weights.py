"""Weights on disk, and what `jaxsmooth train` keeps beside them: how far they are, of what settings, and a digest."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from jaxsmooth.whole_files import write_whole

# Of the files that each framework's class writes.
ENDINGS = (".model", ".optimizer", ".weights.h5", ".weights.npz", ".variables.npz", ".optimizer.npz")


def state_path(output: Path) -> Path:
    """Return the file that says how many epochs are done."""
    return output.with_name(f"{output.name}.epochs.json")


def weight_files(output: Path) -> dict[str, Path]:
    """Return the files of weights of this name, by their endings."""
    paths = {ending: output.with_name(output.name + ending) for ending in ENDINGS}
    return {ending: path for ending, path in paths.items() if path.exists()}


def save_epoch(classifier: Any, output: Path, state: dict[str, Any]) -> None:
    """Replace the weights and what is kept beside them. After a crash at any place, `are_those_of` mends the files."""
    draft = _draft_of(output)
    for path in weight_files(draft).values():
        path.unlink()
    classifier.save(draft.name, draft.parent)
    files = weight_files(draft)
    write_whole(state_path(output), json.dumps({**state, "files": list(files), "weights": _digest_of_files(files)}))
    _put_in_place(output)
    for ending, path in weight_files(output).items():
        if ending not in files:  # of other weights, which these replace
            path.unlink()


def are_those_of(output: Path, state: dict[str, Any]) -> bool:
    """Return whether the weights are those that the state tells of. What a crash left beside them is put in its place.

    A crash comes before the state is replaced, which then tells of the weights there, or after it: then some of the
    new files may still have the names of drafts.
    """
    kept = weight_files(output)
    endings: list[str] = state.get("files", [])
    if state.get("weights") == _digest_of_files({ending: kept[ending] for ending in endings if ending in kept}):
        return True
    files = {**kept, **weight_files(_draft_of(output))}
    if state.get("weights") != _digest_of_files({ending: files[ending] for ending in endings if ending in files}):
        return False
    _put_in_place(output)
    return True


def _draft_of(output: Path) -> Path:
    """Return under which name weights are written before they take the place of others."""
    return output.with_name(f"{output.name}.partial")


def _put_in_place(output: Path) -> None:
    for ending, path in weight_files(_draft_of(output)).items():
        path.replace(output.with_name(output.name + ending))


def _digest_of_files(files: dict[str, Path]) -> str:
    digest = hashlib.sha256()
    for ending, path in files.items():
        content = path.read_bytes()
        digest.update(f"{ending} {len(content)} ".encode())
        digest.update(content)
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
    if not (math.isfinite(low) and math.isfinite(high)):
        return found  # it is refused where it is met
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
