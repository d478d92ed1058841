"""The noisy samples inside a compiled program: which noise belongs to which row, and sums over all chunks.

All pairs (input, sample) form one flat sequence that is cut into chunks of `batch_size` rows. So many inputs with few
samples share a batch, and one input with many samples needs no more memory. Sample `s` of the input with id `i` depends
on `(key, i, s)` only, whatever the chunks.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxsmooth._checks import (
    StaticCallable,
    as_ids,
    as_inputs,
    as_noise,
    merge_callable,
    shape_of_scores,
    split_callable,
)
from jaxsmooth._draws import CLASSIFIER_TAG, SAMPLE_TAG, STREAM_TAG, fold_words
from jaxsmooth.arguments import as_key
from jaxsmooth.types import Classifier, Noise, RandomClassifier

Lengths = tuple[int, ...]
"""How many samples each input has in each of its streams: `(n,)` under the key itself, or `(n0, n)` under the keys of
selection and estimation."""


_NONE = np.uint32(0)


class Task(NamedTuple):
    """What the samples are drawn from: the arguments of `count_votes`, checked."""

    noise: Noise
    key: jax.Array
    x: jax.Array
    ids: ArrayLike
    first: ArrayLike


class Position(NamedTuple):
    """Where a chunk starts. Two 32-bit numbers, so that the number of pairs may exceed 32 bits."""

    row: Any
    sample: Any


class Pairs(NamedTuple):
    """The pairs (input, sample) of one chunk, each in a stream. Rows from N on are padding."""

    row: jax.Array
    stream: jax.Array
    sample: jax.Array


def as_task(noise: Any, key: Any, x: Any, ids: Any, first: ArrayLike = _NONE) -> Task:
    """Check what samples are drawn from; `first` is checked."""
    noise = as_noise(noise)
    x = as_inputs(x, noise)
    ids = np.arange(x.shape[0], dtype=np.uint32) if ids is None else as_ids(ids, x.shape[0])
    return Task(noise, as_key(key), x, ids, first)


def rows_of_chunks(samples: int, batch_size: int) -> int:
    """Return the rows of a chunk: at most `batch_size`, and few rows beyond the samples, in steps of 8.

    Chunks of `batch_size` rows would have up to twice as many rows as there are samples. A scan is compiled for its
    number of samples in any case, so another size of chunk costs nothing.
    """
    # As many chunks as full ones would be, of equal size.
    chunks = max(1, -(-samples // batch_size))
    equal = max(1, -(-samples // chunks))
    return min(batch_size, -(-equal // 8) * 8)


def scan_votes(f: Classifier, task: Task, lengths: Lengths, batch_size: int) -> jax.Array:
    """Count the votes of all samples in one compiled scan, `i32[N, streams, *components, K]`.

    Args:
        f: base classifier, traceable by JAX.
        task: what the samples are drawn from.
        lengths: numbers of samples in each stream.
        batch_size: most rows in one call of f.
    """
    arrays, static = split_callable(f)
    inputs = task.x.shape[0]
    rows = rows_of_chunks(inputs * sum(lengths), batch_size)
    if inputs == 0:
        return jnp.zeros((0, len(lengths), *row_of_scores(f, task, rows)), jnp.int32)
    return _scan(arrays, task, static=static, lengths=lengths, rows=rows)


@partial(jax.jit, static_argnames=("static", "lengths", "rows"))
def _scan(arrays: list[Any], task: Task, *, static: StaticCallable, lengths: Lengths, rows: int) -> jax.Array:
    f = merge_callable(arrays, static)
    inputs = task.x.shape[0]

    def add_chunk(counts: jax.Array | None, position: Position) -> jax.Array:
        noisy, keys, pairs = draw(task, position, lengths, rows)
        chex.assert_shape(noisy, (rows, *task.x.shape[1:]))
        scores = traced_scores(f, noisy, keys)
        row = shape_of_scores(scores, rows)
        if counts is None:
            counts = jnp.zeros((inputs, len(lengths), *row), jnp.int32)
        return add_votes(counts, scores, pairs.row, pairs.stream)

    # Each chunk adds its votes, so that memory does not grow with the number of samples.
    counts = scan_chunks(add_chunk, inputs, sum(lengths), rows)
    # A traced input that is not finite could not be refused. It gets no votes.
    finite = jnp.isfinite(task.x).all(axis=tuple(range(1, task.x.ndim)))
    return jnp.where(finite.reshape(-1, *(1,) * (counts.ndim - 1)), counts, 0)


def add_votes(counts: jax.Array, scores: jax.Array, row: jax.Array, stream: jax.Array) -> jax.Array:
    """Add the class of each row of scores to `counts[row, stream]`.

    Padding has a row beyond the counts, and invalid scores are given one: both are dropped.
    """
    chex.assert_shape([row, stream], (len(scores),))
    chex.assert_shape(scores, (None, *counts.shape[2:]))
    inputs, streams, *_, classes = counts.shape
    flat = scores.reshape(len(scores), -1, classes)
    valid = jnp.isfinite(flat).all(axis=-1)
    # A scatter-add over (input, stream, component, class). Indices out of range are dropped.
    place = (
        jnp.where(valid, row[:, None], inputs),
        jnp.broadcast_to(stream[:, None], valid.shape),
        jnp.broadcast_to(jnp.arange(flat.shape[1])[None], valid.shape),
        jnp.argmax(flat, axis=-1),
    )
    return counts.reshape(inputs, streams, -1, classes).at[place].add(1, mode="drop").reshape(counts.shape)


def row_of_scores(f: Classifier, task: Task, rows: int) -> tuple[int, ...]:
    """Return the shape `(*components, K)` of one row of a classifier's scores, without running it."""
    batch = jax.ShapeDtypeStruct((rows, *task.x.shape[1:]), task.x.dtype)
    return shape_of_scores(shaped_scores(f, batch), rows)


def shaped_scores(f: Any, batch: Any) -> Any:
    """Return shape and dtype of the scores of a batch, without running the classifier."""
    return jax.eval_shape(lambda x: traced_scores(f, x, keys_like(x)), batch)


def keys_like(x: Any) -> jax.Array:
    """Return one key for each row, any."""
    return jax.random.wrap_key_data(jnp.zeros((x.shape[0], 2), jnp.uint32), impl="threefry2x32")


def classifier_keys(keys: jax.Array) -> jax.Array:
    """Return the keys of the classifier's own randomness, from those of the samples, which the noise is drawn with."""
    return fold_words(keys, jnp.zeros((1, len(keys)), jnp.uint32), CLASSIFIER_TAG)


def traced_scores(f: Any, noisy: jax.Array, keys: jax.Array) -> Any:
    """Return the scores of a traced batch, whose samples have these keys.

    Raises:
        TypeError: JAX cannot trace f.
    """
    try:
        return f(noisy, classifier_keys(keys)) if isinstance(f, RandomClassifier) else f(noisy)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise TypeError(
            "f must be a function that JAX can trace, and this one asks for the values of its input. certify, predict, "
            f"the modes that stop early and runs call it on arrays with compiled=False. {str(error).splitlines()[0]}"
        ) from error
    except Exception as error:
        if any(base.__module__.startswith("equinox.") for base in type(f).__mro__):
            raise TypeError(
                f"f, the Equinox module {type(f).__name__}, cannot take a batch: one that is written for one example "
                f"goes through bridges.equinox.as_jax(model), or (model, state). {type(error).__name__}: {error}"
            ) from error
        if "Tracer" in str(error) or "must be Tensor" in str(error):
            raise TypeError(
                "f must be a function that JAX can trace: a model of PyTorch, TensorFlow or Keras within it goes "
                f"through bridges.<framework>.as_jax(model). {type(error).__name__}: {error}"
            ) from error
        raise


def scan_chunks(add: Callable[[Any, Position], Any], inputs: int, n: int, rows: int) -> Any:
    """Return the sum over all chunks: `add(total, position)` adds one chunk, the first to None."""

    def step(state: tuple[Any, Position], _: None) -> tuple[tuple[Any, Position], None]:
        total, position = state
        sample = position.sample + rows
        return (add(total, position), Position(position.row + sample // n, sample % n)), None

    start = Position(jnp.int32(0), jnp.int32(0))
    chunks = -(-inputs * n // rows)
    if chunks == 1:  # lax.scan would make a loop even of one step
        return add(None, start)
    # Zeros made from the result of one chunk, not plain ones: under shard_map they vary over the mesh as it does.
    total = jax.tree.map(jnp.zeros_like, jax.eval_shape(partial(add, None), start))
    (total, _), _ = lax.scan(step, (total, start), length=chunks)
    return total


def draw(task: Task, position: Position, lengths: Lengths, rows: int) -> tuple[jax.Array, jax.Array, Pairs]:
    """Return the noisy inputs of one chunk, the keys of these samples, and which pairs they are."""
    noise, keys, pairs = draw_noise(task, position, lengths, rows)
    return add_noise(task.noise, task.x, pairs.row, noise), keys, pairs


def draw_noise(task: Task, position: Position, lengths: Lengths, rows: int) -> tuple[jax.Array, jax.Array, Pairs]:
    """Return the noise of one chunk, float32 or wider, the keys it is drawn with, and which pairs it is for."""
    pairs = _pairs(position, lengths, rows)
    ids = jnp.asarray(task.ids).at[pairs.row].get(mode="clip")
    # The noise of a sample depends on (key, id, sample) only: fold in the one after the other.
    key = task.key if len(lengths) == 1 else decision_keys(task.key)[pairs.stream]
    keys = fold_words(key, jnp.stack([ids, jnp.asarray(task.first) + pairs.sample]), SAMPLE_TAG)
    return sample_noise(task.noise, keys, task.x.shape[1:], task.x.dtype), keys, pairs


def _pairs(position: Position, lengths: Lengths, rows: int) -> Pairs:
    n = sum(lengths)
    offset = position.sample + jnp.arange(rows, dtype=jnp.int32)
    passed = lax.div(offset, jnp.int32(n))  # nothing is negative: `//` and `%` would compute more
    row = position.row + passed
    sample = offset - passed * n
    if len(lengths) == 1:
        return Pairs(row, jnp.zeros_like(row), sample.astype(jnp.uint32))
    # Of the samples of an input, the first n0 are selection samples and the others estimation samples.
    second = (sample >= lengths[0]).astype(jnp.int32)
    return Pairs(row, second, (sample - second * lengths[0]).astype(jnp.uint32))


def sample_noise(noise: Noise, keys: jax.Array, event: tuple[int, ...], dtype: Any) -> jax.Array:
    """Return the noise of each key, `[B, *event]`, in the dtype that it is drawn in for these inputs."""
    wide = noise_dtype(dtype)
    sampled = jax.vmap(lambda key: noise.sample(key, event, wide))(keys)
    if sampled.shape != (len(keys), *event):  # it would be broadcast, one number for many features
        raise ValueError(f"noise.sample must return the shape {event} that it is asked for, got {sampled.shape[1:]}")
    # Floating-point inputs take the dtype of the noise, and would be cut to whole numbers.
    return sampled if jnp.issubdtype(sampled.dtype, jnp.floating) else sampled.astype(wide)


def noise_dtype(dtype: Any) -> np.dtype[Any]:
    """Return in which dtype noise is drawn: float32 or a wider dtype of the inputs, int32 for integers."""
    if jnp.issubdtype(dtype, jnp.integer):
        return np.dtype(np.int32)
    return np.dtype(dtype) if np.dtype(dtype).itemsize > 4 else np.dtype(np.float32)


def add_noise(noise: Noise, x: jax.Array, row: jax.Array, sampled: jax.Array) -> jax.Array:
    """Return noisy inputs, in the dtype of x: one for each row of noise, made from that row of x."""
    return add_flat_noise(noise, x, row, sampled).reshape(sampled.shape)


def with_noise(noise: Noise, x: jax.Array, sampled: jax.Array) -> jax.Array:
    """Return inputs with what was drawn for them, in the dtype of x, for training."""
    return _own_sum(noise, x, sampled) if hasattr(noise, "add") else x + sampled.astype(x.dtype)


def _own_sum(noise: Any, x: jax.Array, sampled: jax.Array) -> jax.Array:
    """Return what a noise with a method `add` makes of inputs, in the dtype of x. Integers stay exact."""
    is_integer = jnp.issubdtype(x.dtype, jnp.integer)
    return noise.add(x if is_integer else x.astype(sampled.dtype), sampled).astype(x.dtype)


def add_flat_noise(noise: Noise, x: jax.Array, row: jax.Array, sampled: jax.Array) -> jax.Array:
    """Return noisy inputs as flat rows. A program that ends with them is fast: see below."""
    features = math.prod(x.shape[1:])
    x = jnp.asarray(x)  # without jit, JAX hands NumPy's array on to a gradient
    if not hasattr(noise, "add"):
        # XLA loops faster over flat rows than over the last axis of an image: in half the time for 28 x 28 features.
        rows = x.reshape(len(x), features).at[row].get(mode="clip")
        noisy = rows.astype(sampled.dtype) + sampled.reshape(len(sampled), features)
    else:
        noisy = _own_sum(noise, x.at[row].get(mode="clip"), sampled).reshape(len(sampled), features)
    # The barrier makes f see the same rounded sum in every program, however XLA would fuse it.
    return lax.optimization_barrier(noisy.astype(x.dtype))


def decision_keys(key: jax.Array) -> jax.Array:
    """Return, as an array of two, the keys of selection and of estimation votes."""
    return fold_words(key, jnp.arange(2, dtype=jnp.uint32)[None], STREAM_TAG)
