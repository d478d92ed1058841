"""Files of arrays that a user may have from somebody else."""

import math
import tokenize
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_WIDEST = 16  # bytes of an element


def read_arrays(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of an .npz file, which must have these names and shapes.

    Names and shapes are read and compared before any array is unpacked: no file takes more memory than arrays of these
    shapes do. Nothing in the file is executed.

    Args:
        path: of the file.
        shapes: of the arrays, by name.

    Raises:
        ValueError: the file holds other arrays, or is no such file.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "arrays.npz"
        >>> np.savez(path, bias=np.zeros(3))
        >>> read_arrays(path, {"bias": (3,)})
        {'bias': array([0., 0., 0.])}
        >>> read_arrays(path, {"bias": (4,)})
        Traceback (most recent call last):
        ...
        ValueError: ...arrays.npz must hold arrays of shapes {'bias': (4,)}, got {'bias': (3,)}
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = {name.removesuffix(".npy"): _shape(archive, name) for name in archive.namelist()}
        if found != dict(shapes):
            raise ValueError(f"must hold arrays of shapes {dict(shapes)}, got {found}")
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in shapes}
    except (zipfile.BadZipFile, ValueError, EOFError, SyntaxError, tokenize.TokenError, NotImplementedError) as error:
        reason = str(error) if str(error).startswith("must") else f"must be an .npz file of arrays: {error}"
        raise ValueError(f"{path} {reason}") from None


def refuse_packed(path: Path, size: int) -> None:
    """Refuse a file that would take more memory than it has bytes.

    Args:
        path: of the file.
        size: what it holds, in bytes.
    """
    if size > path.stat().st_size:
        raise ValueError(f"{path} must hold its arrays without compression, got {size:,} bytes packed into fewer")


def _shape(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    """Return the shape of an array, which is as long as the file says it is."""
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(member)
    size = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or dtype.itemsize > _WIDEST or size > archive.getinfo(name).file_size:
        raise ValueError(f"must hold arrays of numbers, got {name} of the dtype {dtype}")
    return shape
