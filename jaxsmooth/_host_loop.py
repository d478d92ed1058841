"""The one loop on the host: votes for any inputs, streams and numbers of samples, in batches of one size.

It serves `stream_votes`, the modes that stop early, runs over data sets and the ART-compatible classes. It draws the
next batch while the classifier works on this one. Its programs depend on the batch size only: a batch carries its own
few inputs, so that no number of inputs compiles anything again.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsmooth._checks import (
    StaticCallable,
    as_host_inputs,
    as_ids,
    as_noise,
    merge_callable,
    shape_of_scores,
    split_callable,
)
from jaxsmooth._draws import SAMPLE_TAG, STREAM_TAG, fold_host, fold_words
from jaxsmooth._programs import WideJit
from jaxsmooth._sampling import (
    add_flat_noise,
    add_votes,
    classifier_keys,
    keys_like,
    sample_noise,
    shaped_scores,
    traced_scores,
)
from jaxsmooth.arguments import as_flag, as_key, evaluating, refuse_traced, refuse_uncallable
from jaxsmooth.types import Noise, RandomClassifier

DECISION = (0, 1)
"""The streams of selection and estimation votes, by their numbers in `jaxsmooth.Stream`."""

_HOST = "a loop that calls f, or that stops early,"
_MOST_IN_A_CALL = 16  # batches that one call of a compiled program runs
_SECONDS_OF_A_CALL = 0.1  # Ctrl-C is seen between calls only


class HostTask(NamedTuple):
    """What samples are drawn from, on the host.

    Attributes:
        noise: the noise.
        keys: `u32[streams, 2]`, the key data of each stream.
        x: `[N, *event]`.
        ids: `u32[N]`.
    """

    noise: Noise
    keys: np.ndarray
    x: np.ndarray
    ids: np.ndarray


class Requests(NamedTuple):
    """Samples that are wanted: consecutive ones of an input, in a stream. Each is `i64[R]`; `samples` are positive."""

    row: np.ndarray
    stream: np.ndarray
    first: np.ndarray
    samples: np.ndarray


class Batch(NamedTuple):
    """Some batches of samples, with the few inputs that they are made from.

    A slot is one of the requests that the batches serve. The number of slots is that of the rows in a batch, or a
    smaller one that usually suffices, so that few programs are compiled.

    Attributes:
        x: `[slots, *event]`.
        keys: `u32[slots, 2]`, the key of each slot's stream.
        ids: `u32[slots]`.
        slot: `i32[batches, B]`, the slot of each row; `slots` for padding.
        sample: `u32[batches, B]`.
    """

    x: np.ndarray
    keys: np.ndarray
    ids: np.ndarray
    slot: np.ndarray
    sample: np.ndarray


class Step(NamedTuple):
    """How batches are voted on.

    Attributes:
        f: base classifier.
        compiled: whether f runs inside a compiled program, or is called.
        start: begins to work on the first batches of an array, and returns what `finish` takes.
        finish: waits for it, and returns the votes of each slot `i32[slots, *components, K]` and the last scores.
        most: how many batches `start` takes at most.
    """

    f: Any
    compiled: bool
    start: Callable[[Noise, Batch, int], Any]
    finish: Callable[[Any, Batch], tuple[np.ndarray, Any]]
    most: int


def as_host_task(noise: Any, keys: np.ndarray, x: Any, ids: Any) -> HostTask:
    """Check what samples are drawn from; the keys are checked by `key_data`."""
    noise = as_noise(noise)
    x = as_host_inputs(x, noise)
    ids = np.arange(x.shape[0], dtype=np.uint32) if ids is None else as_ids(ids, x.shape[0])
    # The loop reads its inputs, so it cannot run under jit.
    refuse_traced(_HOST, (noise, x, ids))
    return HostTask(noise, keys, np.asarray(x), np.asarray(ids))


def key_data(key: Any, streams: tuple[int, ...] | None = None) -> np.ndarray:
    """Return the data of a key, or of its streams of these numbers, `u32[streams, 2]`."""
    if isinstance(key, np.ndarray) and key.dtype == np.uint32 and key.shape == (2,):
        data = key.copy()  # as the classes keep it: a typed key takes 0.05 ms to read
    else:
        key = as_key(key)
        refuse_traced(_HOST, key)
        with jax.ensure_compile_time_eval():
            data = np.asarray(jax.random.key_data(key))
    return data[None] if streams is None else _streams(data.tobytes(), streams)


@functools.lru_cache(maxsize=64)
def _streams(data: bytes, streams: tuple[int, ...]) -> np.ndarray:
    return fold_host(np.frombuffer(data, np.uint32)[None], np.array(streams, np.uint32), STREAM_TAG)


def samples_of_each(inputs: int, n: int, first: int = 0) -> Requests:
    """Return the requests for n samples of each input, in the only stream."""
    none = np.zeros(inputs, np.int64)
    return Requests(np.arange(inputs), none, none + first, none + n)


def make_step(f: Any, compiled: bool) -> Step:
    """Return the step of a classifier that runs inside a compiled program, or that is called."""
    refuse_traced(_HOST, f)
    if as_flag("compiled", compiled):
        arrays, static = split_callable(f)
        return Step(f, True, partial(_vote, arrays, static), _finish_compiled, _MOST_IN_A_CALL)
    refuse_uncallable(f)
    start = _start_with_keys if isinstance(f, RandomClassifier) else _start_called
    return Step(f, False, start, partial(_finish_called, f), 1)


def own_inputs(task: HostTask) -> HostTask:
    """Return a task with a copy of the inputs, for iterators: the caller may change an array between two steps."""
    return task._replace(x=task.x.copy())


def count_requests(
    step: Step,
    task: HostTask,
    requests: Requests,
    batch_size: int,
    advance: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Return the votes of each request, `i32[R, *components, K]`.

    Args:
        step: of the classifier.
        task: what samples are drawn from.
        requests: which samples.
        batch_size: rows of a batch.
        advance: is told how many samples are done.
    """
    if len(requests.row) == 0:
        return _no_votes(step, task, batch_size)
    # All requests form one sequence of samples. Request r has the samples from ends[r - 1] to ends[r] of it.
    ends = np.cumsum(requests.samples)
    total = int(ends[-1])
    counts: np.ndarray | None = None
    running: tuple[slice, Batch, int, int, Any] | None = None
    taken = finished = 0
    size = 1
    began = time.perf_counter()
    with evaluating():
        while taken < total or running is not None:
            upcoming = None
            if taken < total:
                # The next batches are begun before the loop waits for the ones that run.
                window, batch, batches = _cut(task, requests, ends, taken, batch_size, size, step.most)
                taken = min(taken + batches * batch_size, total)
                upcoming = window, batch, batches, taken, step.start(task.noise, batch, batches)
            if running is not None:
                window, batch, batches, end, started = running
                votes, _ = step.finish(started, batch)
                if counts is None:  # the first votes say how many components and classes there are
                    counts = np.zeros((len(ends), *votes.shape[1:]), np.int32)
                if votes.shape[1:] != counts.shape[1:]:
                    raise ValueError(
                        "f must always return scores of one shape, got rows of shape "
                        f"{counts.shape[1:]} and then {votes.shape[1:]}"
                    )
                # Slots beyond the requests of this window are padding.
                counts[window] += votes[: window.stop - window.start]
                if advance is not None:
                    advance(end)
                finished += batches
                # Fast batches share one call of the program; slow ones get a call each, so that Ctrl-C is seen soon.
                seconds = (time.perf_counter() - began) / finished
                size = int(np.clip(_SECONDS_OF_A_CALL / seconds, 1, step.most))
            running = upcoming
    assert counts is not None
    return counts


def count_streams(
    step: Step,
    task: HostTask,
    n0: int,
    n: int,
    batch_size: int,
    advance: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Return n0 selection and n estimation votes of each input, in one pass, `i32[N, 2, *components, K]`."""
    inputs = len(task.x)
    stream = np.tile([0, 1], inputs)
    requests = Requests(np.repeat(np.arange(inputs), 2), stream, np.zeros_like(stream), np.where(stream, n, n0))
    counts = count_requests(step, task, requests, batch_size, advance)
    return counts.reshape(inputs, 2, *counts.shape[1:])


def draw_requests(task: HostTask, requests: Requests, batch_size: int) -> Iterator[tuple[jax.Array, np.ndarray]]:
    """Yield noisy batches `[B, *event]` in turn, with the request that each row serves, R for padding.

    The next batch is drawn while the caller works on this one.
    """
    ends = np.cumsum(requests.samples)
    running = None
    for taken in range(0, int(ends[-1]) if len(ends) else 0, batch_size):
        window, batch, _ = _cut(task, requests, ends, taken, batch_size, 1, 1)
        served = np.where(batch.slot[0] < len(batch.ids), batch.slot[0] + window.start, len(ends))
        with evaluating():
            upcoming = _start_called(task.noise, batch, 1), served
        if running is not None:
            yield running
        running = upcoming
    if running is not None:
        yield running


def _no_votes(step: Step, task: HostTask, batch_size: int) -> np.ndarray:
    """Return no votes, `i32[0, *components, K]`. A classifier that is called sees a batch of zeros."""
    shape = (batch_size, *task.x.shape[1:])
    if step.compiled:
        scores = shaped_scores(step.f, jax.ShapeDtypeStruct(shape, task.x.dtype))
    else:
        batch = jnp.zeros(shape, task.x.dtype)
        scores = step.f(batch, keys_like(batch)) if isinstance(step.f, RandomClassifier) else step.f(batch)
    return np.zeros((0, *shape_of_scores(scores, batch_size)), np.int32)


def scores_of_first(step: Step, task: HostTask, samples: np.ndarray) -> np.ndarray:
    """Return the scores of one batch of samples of the first input, in the last stream."""
    last = len(task.keys) - 1
    rows = len(samples)
    served = np.zeros(1, int), np.full(1, last)
    batch = _make_batch(task, served, rows, np.zeros(rows, np.int32), samples, (step.most, rows))
    _, scores = step.finish(step.start(task.noise, batch, 1), batch)
    return np.asarray(called_scores(scores))


def _cut(
    task: HostTask, requests: Requests, ends: np.ndarray, taken: int, batch_size: int, size: int, most: int
) -> tuple[slice, Batch, int]:
    """Return the next batches, the requests that they serve, and how many batches are real.

    Args:
        task, requests: as for `count_requests`.
        ends: where the samples of each request end in the sequence of all.
        taken: how many samples were taken before.
        batch_size: rows of a batch.
        size: how many batches to cut; fewer where they would serve more requests than a batch has rows.
        most: batches in the arrays, the others being padding.
    """
    total = int(ends[-1])
    # The window is the range of requests that these batches serve, the first and the last perhaps in part.
    first = int(np.searchsorted(ends, taken, "right"))
    size = min(size, -(-(total - taken) // batch_size))
    while True:
        stop = min(taken + size * batch_size, total)
        window = slice(first, int(np.searchsorted(ends, stop, "left")) + 1)
        served = window.stop - window.start
        if served <= batch_size or size == 1:
            break
        size -= 1
    # How many of these samples belong to each request of the window, and which ones they are.
    starts = ends[window] - requests.samples[window]
    shares = np.minimum(ends[window], stop) - np.maximum(starts, taken)
    slot = np.repeat(np.arange(served, dtype=np.int32), shares)
    sample = np.arange(taken, stop) + (requests.first[window] - starts)[slot]
    # Most batches serve few requests. Those few inputs are then all that moves to the device.
    usual = min(batch_size, batch_size // 32 + 2)
    slots = usual if served <= usual else batch_size
    of_window = requests.row[window], requests.stream[window]
    return window, _make_batch(task, of_window, slots, slot, sample, (most, batch_size)), size


def _make_batch(
    task: HostTask,
    served: tuple[np.ndarray, np.ndarray],
    slots: int,
    slot: np.ndarray,
    sample: np.ndarray,
    shape: tuple[int, int],
) -> Batch:
    """Return batches with padding: slots of zeros that no row uses, and rows that use no slot.

    Args:
        task: what samples are drawn from.
        served: row and stream of each request that is served.
        slots: how many there are, at least as many as requests.
        slot, sample: of each row.
        shape: batches, and rows of each.
    """
    row, stream = served
    x = np.zeros((slots, *task.x.shape[1:]), task.x.dtype)
    keys = np.zeros((slots, 2), np.uint32)
    ids = np.zeros(slots, np.uint32)
    x[: len(row)] = task.x[row]
    keys[: len(row)] = task.keys[stream]
    ids[: len(row)] = task.ids[row]
    all_slots = np.full(math.prod(shape), slots, np.int32)
    all_samples = np.zeros(math.prod(shape), np.uint32)
    all_slots[: len(slot)] = slot
    all_samples[: len(sample)] = sample
    return Batch(x, keys, ids, all_slots.reshape(shape), all_samples.reshape(shape))


def _start_called(noise: Noise, batch: Batch, _: int) -> jax.Array:
    """Begin to draw a batch for a classifier that is called."""
    flat = _draw.wide(noise, batch.x, batch.keys, batch.ids, batch.slot[0], batch.sample[0])
    return flat if batch.x.ndim == 2 else _shaped(flat, batch.x.shape[1:])


def _start_with_keys(noise: Noise, batch: Batch, batches: int) -> tuple[jax.Array, jax.Array]:
    """Begin to draw a batch, and the keys of its rows, for a random classifier that is called."""
    keys = _keys_of_classifier(batch.keys, batch.ids, batch.slot[0], batch.sample[0])
    return _start_called(noise, batch, batches), keys


def _finish_called(f: Callable[..., Any], started: Any, batch: Batch) -> tuple[np.ndarray, Any]:
    """Call a classifier and count its votes, with NumPy: nothing needs to be compiled for them."""
    arguments = started if isinstance(started, tuple) else (started,)
    scores = f(*arguments)
    slot = batch.slot[0].astype(np.int64)
    used = slot[slot < len(batch.ids)]
    return row_votes(scores, slot, int(used.max()) + 1), scores


def row_votes(scores: Any, slot: np.ndarray, slots: int) -> np.ndarray:
    """Return the votes of each slot, `i32[slots, *components, K]`.

    Args:
        scores: of a batch, `[B, *components, K]`.
        slot: `i[B]`, of each row; at least `slots` for padding.
        slots: how many there are.
    """
    scores = scores_on_host(scores)
    row = shape_of_scores(scores, len(slot))
    flat = scores.reshape(len(scores), -1, row[-1])
    # Padding and rows with a score that is not finite vote for no class.
    real = slot < slots
    valid = np.broadcast_to(real[:, None], flat.shape[:2])
    if not np.isfinite(flat).all():  # the test of all at once is fast, and usually enough
        valid = valid & np.isfinite(flat).all(axis=-1)
    # One number for each (slot, component, class), and a histogram of these numbers.
    cells = slot[:, None] * flat.shape[1] + np.arange(flat.shape[1])
    votes = np.bincount((cells * row[-1] + flat.argmax(axis=-1))[valid], minlength=slots * flat[0].size)
    return votes.reshape(slots, *row).astype(np.int32)


def called_scores(scores: Any) -> Any:
    """Return the scores of a classifier that was called as an array: those of other frameworks are tensors."""
    if isinstance(scores, (jax.Array, np.ndarray)) or not hasattr(scores, "shape"):
        return scores  # what has no shape is refused where votes are counted
    if "64" in str(getattr(scores, "dtype", "")):  # JAX's 32 bits may not order them
        return np.asarray(scores.detach().cpu() if hasattr(scores, "detach") else scores)
    return jnp.asarray(scores)


def scores_on_host(scores: Any) -> Any:
    """Return scores of any framework as a NumPy array, in float32 where they are narrower.

    NumPy is slow with small floats, and does not know all of them. What has no shape stays as it is, to be refused.
    """
    if not hasattr(scores, "shape"):
        return scores
    if not isinstance(scores, (jax.Array, np.ndarray)):
        scores = called_scores(scores)
    scores = np.asarray(scores)
    is_narrow = scores.dtype.kind == "V" or scores.dtype.itemsize < 4
    return scores.astype(np.float32) if is_narrow and jnp.issubdtype(scores.dtype, jnp.number) else scores


def _finish_compiled(found: tuple[jax.Array, jax.Array], _: Batch) -> tuple[np.ndarray, Any]:
    """Wait for a compiled program."""
    votes, scores = found
    return np.asarray(votes), scores


def _keys_of_samples(keys: Any, ids: Any, slot: Any, sample: Any) -> jax.Array:
    """Return the keys of the samples of one batch, made from id and sample as in `_sampling.draw_noise`."""
    own = jax.random.wrap_key_data(jnp.asarray(keys), impl="threefry2x32").at[slot].get(mode="clip")
    words = jnp.stack([jnp.asarray(ids).at[slot].get(mode="clip"), sample])
    return fold_words(own, words, SAMPLE_TAG)


@jax.jit
def _keys_of_classifier(keys: Any, ids: Any, slot: Any, sample: Any) -> jax.Array:
    """Return the keys of a random classifier for the samples of one batch."""
    return classifier_keys(_keys_of_samples(keys, ids, slot, sample))


def _noisy(noise: Noise, x: Any, keys: Any, ids: Any, slot: Any, sample: Any) -> jax.Array:
    """Return the noisy inputs of one batch as flat rows: the program that draws."""
    sampled = sample_noise(noise, _keys_of_samples(keys, ids, slot, sample), x.shape[1:], x.dtype)
    return add_flat_noise(noise, jnp.asarray(x), slot, sampled)


@partial(jax.jit, static_argnums=1, donate_argnums=0)
def _shaped(flat: jax.Array, event: tuple[int, ...]) -> jax.Array:
    """Give rows the shape of inputs. They stay where they are in memory, since the flat ones are given away."""
    return flat.reshape(-1, *event)


_draw = WideJit(_noisy)


@partial(jax.jit, static_argnums=1)
def _vote(
    arrays: list[Any], static: StaticCallable, noise: Noise, batch: Batch, batches: int
) -> tuple[jax.Array, jax.Array]:
    """Draw some batches, run the classifier on each, and count: the program of a compiled classifier."""
    f = merge_callable(arrays, static)
    slots = batch.ids.shape[0]
    (_, rows) = batch.slot.shape

    def vote(at: Any, votes: Any) -> tuple[jax.Array, jax.Array]:
        slot = jnp.asarray(batch.slot)[at]
        origin = batch.keys, batch.ids, slot, jnp.asarray(batch.sample)[at]
        flat = _noisy(noise, batch.x, *origin)
        scores = traced_scores(f, flat.reshape(rows, *batch.x.shape[1:]), _keys_of_samples(*origin))
        row = shape_of_scores(scores, rows)
        votes = jnp.zeros((slots, 1, *row), jnp.int32) if votes is None else votes
        return add_votes(votes, scores, slot, jnp.zeros_like(slot)), scores

    # The number of real batches is traced: one program serves all of them.
    empty = jax.tree.map(jnp.zeros_like, jax.eval_shape(vote, 0, None))
    votes, scores = lax.fori_loop(0, batches, lambda at, found: vote(at, found[0]), empty)
    return votes[:, 0], scores
