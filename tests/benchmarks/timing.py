"""Time contenders against each other: interleaved in one process, medians over rounds, the best choice of each."""

import contextlib
import io
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Runs = dict[str, list[Callable[[], Any]]]
"""Name of a contender -> its runs, of which the fastest counts."""


def medians(runs: Runs, rounds: int) -> dict[str, float]:
    """Return the median seconds of each contender's fastest run; a first round is not counted."""
    timed = [(name, run, []) for name, choices in runs.items() for run in choices]
    for _ in range(rounds + 1):
        for _, run, times in timed:
            start = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                run()
            times.append(time.perf_counter() - start)
    best: dict[str, float] = {}
    for name, _, times in timed:
        best[name] = min(best.get(name, np.inf), float(np.median(times[1:])))
    return best


def milliseconds(best: dict[str, float]) -> str:
    """Return the medians as one line."""
    return "  ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in best.items())
