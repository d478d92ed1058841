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
    return {name: seconds for name, (seconds, _) in spreads(runs, rounds).items()}


def spreads(runs: Runs, rounds: int) -> dict[str, tuple[float, float]]:
    """Return the same, each with the distance between its quartiles."""
    timed = [(name, run, []) for name, choices in runs.items() for run in choices]
    for _ in range(rounds + 1):
        for _, run, times in timed:
            start = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                run()
            times.append(time.perf_counter() - start)
    best: dict[str, tuple[float, float]] = {}
    for name, _, times in timed:
        low, middle, high = np.quantile(times[1:], (0.25, 0.5, 0.75))
        best[name] = min(best.get(name, (np.inf, np.inf)), (float(middle), float(high - low)))
    return best


def milliseconds(best: dict[str, float]) -> str:
    """Return the medians as one line."""
    return "  ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in best.items())
