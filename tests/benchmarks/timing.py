"""Time contenders against each other: in turn in one process, medians over rounds, the best choice of each."""

import contextlib
import io
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Runs = dict[str, list[Callable[[], Any]]]
"""Name of a contender -> its runs, of which the fastest counts."""


_TRIALS = 3  # rounds of all choices, the first one for compilers and caches alone


def medians(runs: Runs, rounds: int) -> dict[str, float]:
    """Return the median seconds of each contender's fastest run."""
    return {name: seconds for name, (seconds, _) in spreads(runs, rounds).items()}


def spreads(runs: Runs, rounds: int) -> dict[str, tuple[float, float]]:
    """Return the same, each with the distance between its quartiles.

    The fastest of several choices is found in rounds of its own, since the least of several medians is too low. Then
    the contenders take turns, in another order in each round: what ran before leaves its caches, memory and threads.
    """
    trials = [{name: [_seconds(run) for run in choices] for name, choices in runs.items()} for _ in range(_TRIALS)]
    chosen = {name: runs[name][np.min([t[name] for t in trials[1:]], axis=0).argmin()] for name in runs}
    order, times = np.random.default_rng(0), {name: list[float]() for name in runs}
    for _ in range(rounds):
        for name in order.permutation(list(runs)):
            times[name].append(_seconds(chosen[name]))
    best: dict[str, tuple[float, float]] = {}
    for name, values in times.items():
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
        best[name] = float(middle), float(high - low)
    return best


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run()
    return time.perf_counter() - start


def milliseconds(best: dict[str, float]) -> str:
    """Return the medians as one line."""
    return "  ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in best.items())
