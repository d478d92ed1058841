"""Memory of this process, in MB, as Linux keeps it: the peak can be forgotten, and is not that of a parent."""

import ctypes
import gc
import platform
from collections.abc import Callable
from pathlib import Path

import pytest

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")

needs_proc = pytest.mark.skipif(not _CLEAR.exists(), reason="memory is read from /proc")


def resident() -> float:
    """Return what is in use."""
    return _status("VmRSS")


def peak() -> float:
    """Return the largest memory since the start, or since `reset_peak`."""
    return _status("VmHWM")


def reset_peak() -> float:
    """Forget the largest memory so far and return what is in use."""
    _CLEAR.write_text("5")
    return resident()


def growth(run: Callable[[int], object], fewer: int, more: int) -> float:
    """Return how much more memory `run(more)` takes at its peak than `run(fewer)`."""
    peaks = []
    for n in (fewer, fewer, more):  # a first call compiles
        # What earlier tests freed, and the C library kept, could be taken without a trace.
        gc.collect()
        if platform.libc_ver()[0] == "glibc":
            ctypes.CDLL(None).malloc_trim(0)
        before = reset_peak()
        run(n)
        peaks.append(peak() - before)
    return peaks[2] - peaks[1]


def _status(name: str) -> float:
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))
