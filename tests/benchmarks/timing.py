"""Time contenders against each other: in turn in one process, medians over rounds, the best choice of each."""

import contextlib
import io
import math
import multiprocessing
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

Runs = dict[str, list[Callable[[], Any]]]
"""Name of a contender -> its runs, of which the fastest counts."""


_TRIALS = 3  # rounds of all choices, the first one for compilers and caches only


def times(runs: Runs, rounds: int, least: float = 0.0) -> dict[str, np.ndarray]:
    """Return the seconds of each contender's fastest run, round by round: as many rounds as take `least` seconds.

    The fastest of several choices is found in rounds of its own, since the least of several medians is too low. Then
    the contenders take turns, in another order in each round: what ran before leaves its caches, memory and threads.
    """
    trials = [{name: [_seconds(run) for run in choices] for name, choices in runs.items()} for _ in range(_TRIALS)]
    best = {name: np.min([t[name] for t in trials[1:]], axis=0) for name in runs}
    chosen = {name: runs[name][best[name].argmin()] for name in runs}
    rounds = max(rounds, math.ceil(least / sum(map(np.min, best.values()))))
    order, taken = np.random.default_rng(0), {name: list[float]() for name in runs}
    for _ in range(rounds):
        for name in order.permutation(list(runs)):
            taken[name].append(_seconds(chosen[name]))
    return {name: np.array(seconds) for name, seconds in taken.items()}


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run()
    return time.perf_counter() - start


def ratio(over: np.ndarray, under: np.ndarray) -> float:
    """Return the median of ratios within a round: the machine may be faster in one round than in the next."""
    return float(np.median(over / under))


def milliseconds(taken: dict[str, np.ndarray]) -> str:
    """Return the medians as one line."""
    return "  ".join(f"{name} {1000 * np.median(seconds):.0f} ms" for name, seconds in taken.items())


def in_processes(number: int, measure: Callable[..., Any], *args: Any) -> list[Any]:
    """Return what a function returns in each of `number` new processes, one after the other.

    A ratio near 1 stays some hundredths higher or lower for as long as a process lives.
    """
    context = multiprocessing.get_context("spawn")
    quiet: Any = {"initializer": warnings.simplefilter, "initargs": ("ignore",)}
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1, **quiet) as pool:
        return [pool.submit(measure, *args).result() for _ in range(number)]
