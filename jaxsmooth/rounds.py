"""Votes for inputs that need different numbers of them: batches of one size, filled from whichever inputs are open."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsmooth.callables import StaticCallable, merge_callable, split_callable
from jaxsmooth.checks import check_callable, check_scores, check_untraced
from jaxsmooth.samples import Task, add_noise, check_task, noise_of
from jaxsmooth.types import Classifier
from jaxsmooth.vectors import WideJit
from jaxsmooth.votes import add_votes, add_votes_jit, count_votes, stream_votes

_BATCHES = 64  # in one round at most: the rows of a round are listed on the host
_IN_ONE_CALL, _SECONDS = 16, 0.1  # batches in one call of a program at most, and for how long: an interrupt waits


def check_host_task(
    name: str, f: Any, noise: Any, key: Any, x: Any, n: int, batch_size: Any, ids: Any
) -> tuple[Task, int]:
    """Return what samples are drawn from and the rows of a batch, for a function that runs on the host."""
    check_callable(f)
    task, _, batch_size = check_task(noise, key, x, n, batch_size, ids, 0)
    check_untraced(name, (f, task))
    return task, batch_size


class Step(NamedTuple):
    """How batches of pairs (slot, sample) are voted on, the slots being rows of a task of as many inputs as a batch.

    Attributes:
        run: from that task, slots and samples `[batches, B]`, and how many of these batches to run, to the votes of
            each slot `i32[B, K]` and the scores of the last batch. The slot B is padding.
        batches: in one call at most.
    """

    run: Callable[[Task, np.ndarray, np.ndarray, int], tuple[jax.Array, jax.Array]]
    batches: int


def make_step(f: Classifier, compiled: bool) -> Step:
    """Return the step of a classifier, which runs within a compiled program, or is called.

    The program depends on the size of a batch alone, so that it is compiled once for any number of inputs.
    """
    if not compiled:

        def call(task: Task, slots: np.ndarray, samples: np.ndarray, _: int) -> tuple[jax.Array, jax.Array]:
            scores = jnp.asarray(f(_draw_jit(task, slots[0], samples[0])))
            check_scores(scores, len(slots[0]))
            return add_votes_jit(None, scores, slots[0], len(slots[0])), scores

        return Step(call, 1)
    arrays, static = split_callable(f)
    return Step(partial(_vote, arrays, static), _IN_ONE_CALL)


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
    than a batch leaves rows of a batch unused; another one leaves the last of them with less than they need. A program
    runs one batch, and then as many in a call as the batches that have ended say it can in a tenth of a second.

    Args:
        step: of the classifier.
        task: what samples are drawn from.
        counts: votes so far, `i32[N, K]`, None before the first.
        drawn: samples so far, `i64[N]`.
        needed: how many more, `i64[N]`.
        batch_size: rows in one call of the classifier.
    """
    served = _share(needed, batch_size)
    chosen = np.flatnonzero(served)
    slots = np.repeat(np.arange(len(chosen), dtype=np.int32), served[chosen])
    first = drawn[chosen] - (np.cumsum(served[chosen]) - served[chosen])
    samples = (np.arange(len(slots)) + first[slots]).astype(np.uint32)
    batches = -(-len(slots) // batch_size)
    slots, samples = (_in_batches(array, batch_size, batches + step.batches) for array in (slots, samples))
    rows = np.pad(chosen.astype(np.int32), (0, batch_size - len(chosen)), constant_values=len(served))
    start, taken, done, size = time.perf_counter(), _take(task, rows), 0, 1
    while done < batches:
        before, part, number = counts, slice(done, done + step.batches), min(size, batches - done)
        votes, _ = step.run(taken, slots[part], samples[part], number)
        counts = _add(counts, votes, rows, len(served))
        # One call ahead and no more: memory stays constant and an interrupt takes effect.
        jax.block_until_ready(before)
        size = int(np.clip(done * _SECONDS / (time.perf_counter() - start), 1, step.batches))
        done += number
    return cast(jax.Array, counts), drawn + served


def _share(needed: np.ndarray, batch_size: int) -> np.ndarray:
    """Return how many samples each input gets in a round: whole batches, unless all need less than one.

    No more inputs get any than a batch has rows.

    Example:
        >>> _share(np.array([5, 0, 5, 5]), 4)
        array([5, 0, 5, 2])
    """
    needed = np.where(np.cumsum(needed > 0) <= batch_size, needed, 0)
    total = min(int(needed.sum()), _BATCHES * batch_size)
    whole = total - total % batch_size if total >= batch_size else total
    return np.clip(whole - (np.cumsum(needed) - needed), 0, needed)


def scores_of_first(step: Step, task: Task, samples: np.ndarray) -> np.ndarray:
    """Return the scores of one batch of samples of the first input."""
    rows = np.zeros(len(samples), np.int32)
    slots, samples = (_in_batches(array, len(samples), step.batches) for array in (rows, samples))
    return np.asarray(step.run(_take(task, rows), slots, samples, 1)[1])


def _in_batches(array: np.ndarray, batch_size: int, batches: int) -> np.ndarray:
    """Return slots or samples in so many batches, filled up with the slot that is padding."""
    padding = batches * batch_size - len(array)
    return np.pad(array, (0, padding), constant_values=batch_size).reshape(batches, batch_size)


@jax.jit
def _take(task: Task, rows: jax.Array) -> Task:
    """Return the task of some inputs, the last one standing for those that are not there."""
    return task._replace(x=task.x.at[rows].get(mode="clip"), ids=jnp.asarray(task.ids).at[rows].get(mode="clip"))


def _draw(task: Task, slots: jax.Array, samples: jax.Array) -> jax.Array:
    return add_noise(task, noise_of(task, slots, samples), slots)


_draw_jit = WideJit(_draw)


@partial(jax.jit, static_argnums=1)
def _vote(
    arrays: list[Any], static: StaticCallable, task: Task, slots: jax.Array, samples: jax.Array, number: int
) -> tuple[jax.Array, jax.Array]:
    f = merge_callable(arrays, static)

    def vote(batch: Any, votes: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        scores = f(_draw(task, slots[batch], samples[batch]))
        check_scores(scores, slots.shape[1])
        return add_votes(votes, scores, slots[batch], slots.shape[1]), scores

    empty = jax.tree.map(jnp.zeros_like, jax.eval_shape(vote, 0, None))
    return lax.fori_loop(0, number, lambda batch, found: vote(batch, found[0]), empty)


@partial(jax.jit, static_argnums=3)
def _add(counts: jax.Array | None, votes: jax.Array, rows: jax.Array, number: int) -> jax.Array:
    """Add the votes of some inputs to the counts of all, those out of range being dropped."""
    if counts is None:
        counts = jnp.zeros((number, votes.shape[1]), jnp.int32)
    return counts.at[rows].add(votes, mode="drop")
