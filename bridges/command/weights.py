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
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def trained_model(output: Path) -> str | None:
    """Return the MODEL that weights were trained as, if that is known."""
    state = read_state(output)
    return None if state is None else state.get("model")
