"""Votes for inputs that need different numbers of them: batches of one size, filled from whichever inputs are open."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsmooth.callables import StaticCallable, merge_callable, split_callable
from jaxsmooth.checks import check_classifier, check_scores, check_untraced
from jaxsmooth.samples import Task, add_noise, check_task, noise_of
from jaxsmooth.types import Classifier
from jaxsmooth.votes import add_votes, add_votes_jit, count_votes, stream_votes

_BATCHES = 64  # in one round at most: the rows of a round are listed on the host


def check_host_task(
    name: str, f: Any, noise: Any, key: Any, x: Any, n: int, batch_size: Any, ids: Any
) -> tuple[Task, int]:
    """Return what samples are drawn from and the rows of a batch, for a function that runs on the host."""
    check_classifier(f)
    task, _, batch_size = check_task(noise, key, x, n, batch_size, ids, 0)
    check_untraced(name, (f, task))
    return task, batch_size


def choose(
    f: Classifier, task: Task, key: jax.Array, n0: int, batch_size: int, compiled: bool
) -> tuple[np.ndarray, jax.Array]:
    """Return the class with most of n0 votes of each input, the lowest index in a tie, and the votes."""
    count = count_votes if compiled else stream_votes
    selection = count(f, task.noise, key, task.x, n=n0, batch_size=batch_size, ids=task.ids)
    return np.asarray(selection).argmax(axis=1).astype(np.int32), selection


Step = Callable[[Task, jax.Array, np.ndarray, np.ndarray], jax.Array]
"""Adds the votes of one batch of pairs (row, sample) to the counts."""


def make_step(f: Classifier, compiled: bool) -> Step:
    """Return the step of a classifier, which runs within a compiled program, or is called."""
    if not compiled:

        def call(task: Task, counts: jax.Array, rows: np.ndarray, samples: np.ndarray) -> jax.Array:
            scores = jnp.asarray(f(_draw_jit(task, rows, samples)))
            check_scores(scores, len(rows))
            return add_votes_jit(counts, scores, rows, len(counts))

        return call
    arrays, static = split_callable(f)
    return lambda task, counts, rows, samples: _vote(arrays, task, counts, rows, samples, static=static)


def vote_round(
    step: Step, task: Task, counts: jax.Array, drawn: np.ndarray, needed: np.ndarray, batch_size: int
) -> tuple[jax.Array, np.ndarray]:
    """Vote for every input that needs more samples, and return the counts and samples so far.

    A round takes the inputs in order and gives each what it needs. Only one for which all inputs together need less
    than a batch leaves rows of a batch unused; another one leaves the last of them with less than they need.

    Args:
        step: of the classifier.
        task: what samples are drawn from.
        counts: votes so far, `i32[N, K]`; a vote for a class beyond K is not counted.
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
        batch = slice(start, start + batch_size)
        counts = step(task, counts, rows[batch], samples[batch])
    return jax.block_until_ready(counts), drawn + served


def _share(needed: np.ndarray, batch_size: int) -> np.ndarray:
    """Return how many samples each input gets in a round: whole batches, unless all need less than one.

    Example:
        >>> _share(np.array([5, 0, 5, 5]), 4)
        array([5, 0, 5, 2])
    """
    total = min(int(needed.sum()), _BATCHES * batch_size)
    whole = total - total % batch_size if total >= batch_size else total
    return np.clip(whole - (np.cumsum(needed) - needed), 0, needed)


@partial(jax.jit, static_argnames="static")
def _vote(
    arrays: list[Any], task: Task, counts: jax.Array, rows: jax.Array, samples: jax.Array, *, static: StaticCallable
) -> jax.Array:
    scores = merge_callable(arrays, static)(_draw(task, rows, samples))
    check_scores(scores, len(rows))
    return add_votes(counts, scores, rows, len(counts))


def _draw(task: Task, rows: jax.Array, samples: jax.Array) -> jax.Array:
    return add_noise(task, noise_of(task, rows, samples), rows)


_draw_jit = jax.jit(_draw)
