"""Votes for inputs that need different numbers of them: batches of one size, filled from whichever inputs are open."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxsmooth.callables import StaticCallable, merge_callable, split_callable
from jaxsmooth.checks import check_callable, check_scores, check_untraced
from jaxsmooth.samples import Task, add_noise, check_task, noise_of
from jaxsmooth.types import Classifier
from jaxsmooth.vectors import WideJit
from jaxsmooth.votes import add_votes_jit, count_votes, stream_votes

_BATCHES = 64  # in one round at most: the rows of a round are listed on the host


def check_host_task(
    name: str, f: Any, noise: Any, key: Any, x: Any, n: int, batch_size: Any, ids: Any
) -> tuple[Task, int]:
    """Return what samples are drawn from and the rows of a batch, for a function that runs on the host."""
    check_callable(f)
    task, _, batch_size = check_task(noise, key, x, n, batch_size, ids, 0)
    check_untraced(name, (f, task))
    return task, batch_size


Step = Callable[[Task, np.ndarray, np.ndarray], Any]
"""Returns the scores of one batch of pairs (row, sample)."""


def make_step(f: Classifier, compiled: bool) -> Step:
    """Return the step of a classifier, which runs within a compiled program, or is called.

    The program depends on the size of a batch alone, so that it is compiled once for any number of inputs.
    """
    if not compiled:

        def call(task: Task, rows: np.ndarray, samples: np.ndarray) -> jax.Array:
            scores = jnp.asarray(f(_draw_jit(_take(task, rows), samples)))
            check_scores(scores, len(rows))
            return scores

        return call
    arrays, static = split_callable(f)
    return lambda task, rows, samples: _scores(arrays, _take(task, rows), samples, static=static)


def choose(
    f: Classifier, task: Task, key: jax.Array, n0: int, batch_size: int, compiled: bool
) -> tuple[np.ndarray, jax.Array]:
    """Return the class with most of n0 votes of each input, the lowest index in a tie, and the votes."""
    number = len(task.x)
    if number == 0:
        count = count_votes if compiled else stream_votes
        selection = count(f, task.noise, key, task.x, n=n0, batch_size=batch_size)
    else:
        selection = vote_until(make_step(f, compiled), task._replace(key=key), np.full(number, n0), batch_size)
    return np.asarray(selection).argmax(axis=1).astype(np.int32), selection


def vote_until(
    step: Step, task: Task, wanted: np.ndarray, batch_size: int, counts: jax.Array | None = None, first: int = 0
) -> jax.Array:
    """Return the votes of at least one input, as many as are wanted of each, the first of which are counted already."""
    drawn = np.full(len(wanted), first, np.int64)
    while counts is None or (drawn < wanted).any():
        counts, drawn = vote_round(step, task, counts, drawn, wanted - drawn, batch_size)
    return counts


def vote_round(
    step: Step, task: Task, counts: jax.Array | None, drawn: np.ndarray, needed: np.ndarray, batch_size: int
) -> tuple[jax.Array, np.ndarray]:
    """Vote for every input that needs more samples, and return the counts and samples so far.

    A round takes the inputs in order and gives each what it needs. Only one for which all inputs together need less
    than a batch leaves rows of a batch unused; another one leaves the last of them with less than they need.

    Args:
        step: of the classifier.
        task: what samples are drawn from.
        counts: votes so far, `i32[N, K]`, None before the first.
        drawn: samples so far, `i64[N]`.
        needed: how many more, `i64[N]`.
        batch_size: rows in one call of the classifier.
    """
    served = _share(needed, batch_size)
    rows = np.repeat(np.arange(len(served), dtype=np.int32), served)
    samples = np.arange(len(rows)) + np.repeat(drawn - (np.cumsum(served) - served), served)
    padding = -len(rows) % batch_size
    rows = np.concatenate([rows, np.full(padding, len(served), np.int32)])
    samples = np.concatenate([samples, np.zeros(padding, samples.dtype)]).astype(np.uint32)
    for start in range(0, len(rows), batch_size):
        batch, before = slice(start, start + batch_size), counts
        counts = add_votes_jit(counts, step(task, rows[batch], samples[batch]), rows[batch], len(served))
        # One batch ahead and no more: memory stays constant and an interrupt takes effect.
        jax.block_until_ready(before)
    return cast(jax.Array, counts), drawn + served


def _share(needed: np.ndarray, batch_size: int) -> np.ndarray:
    """Return how many samples each input gets in a round: whole batches, unless all need less than one.

    Example:
        >>> _share(np.array([5, 0, 5, 5]), 4)
        array([5, 0, 5, 2])
    """
    total = min(int(needed.sum()), _BATCHES * batch_size)
    whole = total - total % batch_size if total >= batch_size else total
    return np.clip(whole - (np.cumsum(needed) - needed), 0, needed)


@jax.jit
def _take(task: Task, rows: jax.Array) -> Task:
    """Return the task of the inputs of one batch, the last one standing for padding."""
    return task._replace(x=task.x.at[rows].get(mode="clip"), ids=jnp.asarray(task.ids).at[rows].get(mode="clip"))


def _draw(batch: Task, samples: jax.Array) -> jax.Array:
    rows = jnp.arange(len(samples))
    return add_noise(batch, noise_of(batch, rows, samples), rows)


_draw_jit = WideJit(_draw)


@partial(jax.jit, static_argnames="static")
def _scores(arrays: list[Any], batch: Task, samples: jax.Array, *, static: StaticCallable) -> jax.Array:
    scores = merge_callable(arrays, static)(_draw(batch, samples))
    check_scores(scores, len(samples))
    return scores
