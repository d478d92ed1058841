"""Streams and samples: which key each use has, what is drawn for whom, in which batches, with which bits."""

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsmooth import (
    Gaussian,
    Laplace,
    LatticeGaussian,
    Stream,
    Uniform,
    add_noise,
    certify,
    count_votes,
    decision_keys,
    smooth,
    stream_key,
    stream_samples,
    stream_votes,
)
from tests.classifiers import assert_same, first_features, inputs
from tests.programs import compiled_programs
from tests.streams import STREAM_TAG, sample_key, tagged_key

NOISE = Gaussian(1.0)
NOISES = [Gaussian(0.37), Laplace(0.4), Uniform(0.7), LatticeGaussian(0.5, step=2.0**-10)]


def name_of(noise):
    return type(noise).__name__


def data_of(key):
    return np.asarray(jax.random.key_data(key))


def test_the_streams_have_the_numbers_that_stored_votes_were_drawn_with():
    names = ("SELECTION", "ESTIMATION", "PREDICTION", "TRAINING", "GRADIENTS", "ORDER", "MODULE", "LEVELS", "SPLITTING")
    assert {stream.name: stream.value for stream in Stream} == {name: number for number, name in enumerate(names)}


@pytest.mark.parametrize("stream", [*Stream, 9, 2**31 - 1])
@pytest.mark.parametrize("turn", [None, 0, 5, 2**32 - 1])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_the_key_of_a_stream_is_made_with_its_tag(key, stream, turn, wrap):
    words = [stream] if turn is None else [stream, turn]
    expected = tagged_key(key, STREAM_TAG, *map(np.uint32, words))
    found = wrap(lambda key: stream_key(key, stream, turn))(key)
    np.testing.assert_array_equal(data_of(found), data_of(expected))
    raw = stream_key(jax.random.key_data(key), stream, turn)
    np.testing.assert_array_equal(data_of(raw), data_of(expected))


def test_no_two_streams_and_turns_share_a_key(key):
    keys = [data_of(key)] + [data_of(stream_key(key, s, turn)) for s in Stream for turn in (None, 0, 1, 2)]
    assert len({tuple(data) for data in keys}) == 1 + 4 * len(Stream)


@pytest.mark.parametrize("partitionable", [True, False])
def test_no_stream_or_sample_has_a_key_that_jax_makes(key, partitionable):
    """The twin, streams by `fold_in`, is what `split` gives."""
    with jax.threefry_partitionable(partitionable):
        made = [jax.random.split(key, 64), jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(64))]
        bits = jax.random.bits(key, (64, 2), jnp.uint32)
    theirs = {tuple(row) for keys in made for row in data_of(keys)} | {tuple(row) for row in np.asarray(bits)}
    ours = [stream_key(key, s, turn) for s in range(20) for turn in (None, 0, 1)]
    ours += [sample_key(key, i, s) for i in range(10) for s in range(10)]
    assert not theirs & {tuple(data_of(one)) for one in ours}
    assert theirs & {tuple(data_of(jax.random.fold_in(key, s))) for s in Stream}


def test_decision_keys_are_those_of_the_two_streams_of_certify(key):
    streams = stream_key(key, Stream.SELECTION), stream_key(key, Stream.ESTIMATION)
    for found, expected in zip(decision_keys(key), streams, strict=True):
        np.testing.assert_array_equal(data_of(found), data_of(expected))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"key": 0}, TypeError, "key must be one Threefry key"),
        ({"key": jax.random.key(0, impl="rbg")}, ValueError, "key must be one Threefry key"),
        ({"stream": -1}, ValueError, "stream must be an integer"),
        ({"stream": 0.5}, TypeError, "stream must be an integer"),
        ({"turn": -1}, ValueError, "turn must be an integer"),
        ({"turn": 2**32}, ValueError, "turn must be an integer"),
        ({"turn": "1"}, TypeError, "turn must be an integer"),
    ],
)
def test_what_is_no_stream_is_refused_by_name(changes, error, message):
    with pytest.raises(error, match=message):
        stream_key(**{"key": jax.random.key(0), "stream": 1, **changes})


def test_added_noise_is_that_of_the_key_in_the_dtype_of_the_inputs(key):
    for dtype in (jnp.float32, jnp.float16, jnp.bfloat16):
        x = inputs(4, (3, 2)).astype(dtype)
        noisy = add_noise(NOISE, key, x)
        assert noisy.dtype == dtype
        assert_same(noisy, x + NOISE.sample(key, x.shape).astype(dtype))
        assert (np.asarray(noisy) != np.asarray(add_noise(NOISE, jax.random.key(1), x))).mean() > 0.9


def test_added_noise_is_independent_and_of_the_named_scale(key):
    """Mean and variance of 200,000 values; five standard errors are passed with probability below 6e-7 each."""
    e = np.asarray(add_noise(Gaussian(0.5), key, jnp.zeros((2000, 100))), np.float64)
    assert abs(e.mean()) < 5 * 0.5 / np.sqrt(e.size)
    assert abs(e.var() - 0.25) < 5 * 0.25 * np.sqrt(2 / e.size)
    assert abs((e[1:] * e[:-1]).mean()) < 5 * 0.25 / np.sqrt(e.size - 100)


def test_added_noise_compiles_once_for_a_shape(key):
    x = np.asarray(inputs(6))
    add_noise(NOISE, key, x)
    with compiled_programs() as programs:
        for seed in range(4):
            add_noise(Gaussian(0.1 + seed), jax.random.key(seed), x + 1)
    assert programs == []


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"noise": 0.5}, TypeError, "noise must be an instance"),
        ({"key": 0}, TypeError, "key must be one Threefry key"),
        ({"x": np.zeros((2, 3), int)}, TypeError, "x must be a batch"),
        ({"x": np.full((2, 3), np.nan)}, ValueError, "x must be finite"),
    ],
)
def test_added_noise_checks_its_arguments(changes, error, message):
    with pytest.raises(error, match=message):
        add_noise(**{"noise": NOISE, "key": jax.random.key(0), "x": np.zeros((2, 3)), **changes})


def test_stream_samples_are_what_is_voted_on(key):
    x, counts = inputs(3), np.zeros((3, 3), np.int32)
    for noisy, rows in stream_samples(NOISE, key, x, n=50, batch_size=64, first=5):
        assert noisy.shape == (64, 5)
        assert rows.dtype == np.int32
        real = rows < 3
        np.add.at(counts, (rows[real], np.asarray(jnp.argmax(first_features(noisy), 1))[real]), 1)
    assert_same(counts, count_votes(first_features, NOISE, key, x, n=50, first=5))
    assert list(stream_samples(NOISE, key, x[:0], n=50)) == []
    with pytest.raises(ValueError, match="n must be an integer"):
        stream_samples(NOISE, key, x, n=0)


@pytest.mark.parametrize("batch_size", [4, 256], ids=["several draws", "one draw"])
def test_stream_samples_are_of_the_inputs_as_they_were_checked(key, batch_size):
    x = np.asarray(inputs(4))
    expected = [noisy for noisy, _ in stream_samples(NOISE, key, x, n=8, batch_size=batch_size)]
    changed = np.array(x)
    samples = stream_samples(NOISE, key, changed, n=8, batch_size=batch_size)
    changed[:] = np.nan
    for ours, theirs in zip(samples, expected, strict=True):
        assert_same(ours[0], theirs)


@pytest.mark.parametrize("n", [1, 7, 50])
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_batches_have_one_size_and_every_sample_is_in_one_of_them(key, n, batch_size):
    x = inputs(3)
    batches = list(stream_samples(NOISE, key, x, n=n, batch_size=batch_size))
    assert {noisy.shape for noisy, _ in batches} == {(batch_size, 5)}
    assert len(batches) == -(-3 * n // batch_size)
    rows = np.concatenate([rows for _, rows in batches])
    assert_same(rows[: 3 * n], np.repeat(np.arange(3), n))
    assert (rows[3 * n :] == 3).all()


@pytest.mark.parametrize("event", [(5,), (784,), (1, 28, 28), (32, 32, 3)])
@pytest.mark.parametrize("noise", NOISES[:3], ids=name_of)
def test_a_sample_is_the_rounded_sum_of_an_input_and_its_rounded_noise(key, noise, event):
    """The noise by itself is the sample of an input of zeros."""
    x = np.random.default_rng(0).normal(size=(3, *event)).astype(np.float32)
    drawn = list(stream_samples(noise, key, x, n=40, batch_size=50, first=7))
    alone = list(stream_samples(noise, key, np.zeros_like(x), n=40, batch_size=50, first=7))
    for (noisy, rows), (e, _) in zip(drawn, alone, strict=True):
        real = rows < 3
        np.testing.assert_array_equal(np.asarray(noisy)[real], (x[np.minimum(rows, 2)] + np.asarray(e))[real])


@pytest.mark.parametrize("event", [(13,), (784,), (3, 32, 32)])
@pytest.mark.parametrize("noise", NOISES, ids=name_of)
def test_noise_has_the_same_bits_in_every_program(key, noise, event):
    """Programs of the host use the widest vectors; a program of the caller does not. Both draw the defined stream."""
    x, add = np.random.default_rng(0).normal(size=(3, *event)).astype(np.float32), getattr(noise, "add", jnp.add)

    @jax.jit
    def plain(x):
        def one(i, s):
            return add(x[i][None], noise.sample(sample_key(key, i, s), event)[None])[0]

        return jax.vmap(one)(np.repeat(np.arange(3), 40), np.tile(np.arange(7, 47), 3))

    batches = stream_samples(noise, key, x, n=40, batch_size=24, first=7)
    np.testing.assert_array_equal(np.concatenate([noisy for noisy, _ in batches]), plain(x))


OLDER = """
import jax, numpy as np, sys
original, seen = jax.jit, []

class Refused:
    def lower(self, *_, **__):
        return self
    def compile(self):
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: No such compile option")
    def __call__(self, *_, **__):
        self.compile()

def jit(run=None, **settings):
    if "compiler_options" in settings:
        seen.append(settings)
        return Refused()
    return original(run, **settings) if run is not None else lambda run: original(run, **settings)

if sys.argv[1] == "older":
    jax.jit = jit
import jaxsmooth
x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
f, noise, key = lambda x: np.asarray(x)[:, :3], jaxsmooth.Gaussian(1.0), jax.random.key(0)
print(jaxsmooth.stream_votes(f, noise, key, x, n=100).tolist(), jaxsmooth.add_noise(noise, key, x).tolist())
print(len(seen) > 0, file=sys.stderr)
"""


def test_an_xla_that_knows_no_wide_vectors_draws_the_same():
    """JAX refuses the option as XLA does where it does not know it."""
    run = [
        subprocess.run(
            [sys.executable, "-c", OLDER, name], capture_output=True, text=True, check=True, env={**os.environ}
        )
        for name in ("newer", "older")
    ]
    assert run[0].stdout == run[1].stdout
    assert [done.stderr.split()[-1] for done in run] == ["False", str(jax.default_backend() == "cpu")]


def test_a_stream_may_begin_and_run_within_other_programs(key):
    """Its inputs are concrete; what surrounds it is traced."""
    x = np.arange(6.0, dtype=np.float32).reshape(2, 3)

    def second_sample():
        return next(iter(stream_samples(Gaussian(0.5), key, x, n=2, batch_size=4)))[0][1::2]

    def votes():
        return stream_votes(lambda x: np.asarray(x)[:, :3], Gaussian(0.5), key, x, n=30)

    expected, counts = second_sample(), votes()
    assert_same(jax.jit(lambda scale: scale * second_sample())(1.0), expected)
    assert_same(jax.vmap(lambda scale: scale * second_sample())(jnp.ones(2))[1], expected)
    assert_same(jax.grad(lambda scale: (scale * second_sample()).sum())(1.0), expected.sum())
    assert_same(jax.jit(lambda one: one * votes())(1), counts)


FRESH = """
import jax, jax.numpy as jnp, numpy as np, jaxsmooth
x, key, noise = np.ones((2, 3), np.float32), jax.random.key(0), jaxsmooth.Gaussian(0.5)
draw = lambda scale: scale * next(iter(jaxsmooth.stream_samples(noise, key, x, n=2, batch_size=4)))[0]
add = lambda x: jaxsmooth.add_noise(noise, key, x)
inside = jax.jit(draw)(1.0), jax.jit(add)(x)
outside = draw(1.0), add(x)
assert all((a == b).all() for a, b in zip(inside, outside))
"""


def test_the_first_draw_of_a_process_may_be_within_another_program():
    subprocess.run([sys.executable, "-c", FRESH], check=True)


def test_traced_inputs_are_refused(key):
    x = inputs(2)
    for change in (
        lambda x: stream_samples(NOISE, key, x, n=2),
        lambda s: stream_samples(Gaussian(s[0, 0]), key, x, n=2),
        lambda s: stream_samples(NOISE, key, x, n=2, first=s[0, 0].astype(int)),
    ):
        with pytest.raises(TypeError, match="takes no traced values"):
            jax.jit(lambda x, change=change: next(iter(change(x)))[0])(x)


@pytest.mark.parametrize("batch_size", [1, 5, 8, 100, 128])
def test_scans_have_as_many_batches_as_of_full_ones_and_no_larger(key, batch_size):
    around = [k * b for k in range(1, 5) for b in (8, batch_size)]
    for n in sorted({k + offset for k in around for offset in (-1, 0, 1)} | {17, 93, 211, 333, 399}):
        if n < 1:
            continue
        sizes = set()

        def f(x, sizes=sizes):
            sizes.add(len(x))
            return first_features(x)

        jax.eval_shape(lambda x, f=f, n=n: count_votes(f, NOISE, key, x, n=n, batch_size=batch_size), inputs(1))
        (size,) = sizes
        batches = -(-n // size)
        assert size <= batch_size
        assert batches == -(-n // batch_size)
        assert size == batch_size or (size % 8 == 0 and batches * (size - 8) < n)


SCANS = {
    "count_votes": lambda f, key, x: count_votes(f, NOISE, key, x, n=100, batch_size=256),
    "certify": lambda f, key, x: certify(f, NOISE, key, x, n0=10, n=90, batch_size=256),
    "smooth": lambda f, key, x: smooth(f, NOISE, n=100, batch_size=256)(key, x),
}


@pytest.mark.parametrize("scan", SCANS)
def test_a_scan_calls_with_few_rows_beyond_the_samples(key, scan):
    calls = []

    def f(x):
        jax.debug.callback(lambda: calls.append(len(x)))
        return first_features(x)

    SCANS[scan](f, key, inputs(3))
    jax.effects_barrier()
    assert calls == [152, 152]
