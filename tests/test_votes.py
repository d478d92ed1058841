"""Votes: one stream of samples, whatever the driver, the chunks, the grouping, the transformation and the devices."""

import math
import subprocess
import sys
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend import core
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import Partial

from jaxsmooth import Gaussian, Laplace, Uniform, add_noise, count_votes, decision_keys, smooth, stream_votes
from tests.classifiers import assert_same, first_features, grid_of_features, inputs, one_of_the_grid, scaled_features
from tests.memory import needs_proc
from tests.programs import compiled_programs
from tests.streams import STREAM_TAG, sample_key, tagged_key

NOISES = [Gaussian(1.0), Laplace(0.7), Uniform(1.5)]
DRIVERS = [count_votes, stream_votes]
N = 97


def reference(f, noise, key, x, n, ids=None, first=0):
    """Count by the definition of the stream: one sample at a time, one key each."""
    counts = np.zeros((len(x), 3), np.int32)
    for i, row in enumerate(x):
        for s in range(first, first + n):
            e = noise.sample(sample_key(key, i if ids is None else ids[i], s), row.shape)
            counts[i, int(jnp.argmax(f((row + e)[None])[0]))] += 1
    return counts


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("driver", DRIVERS)
def test_counts_are_those_of_the_defined_stream(key, driver, noise):
    x = inputs(3)
    expected = reference(first_features, noise, key, x, 40, ids=[7, 2**32 - 1, 0], first=5)
    ids = np.array([7, 2**32 - 1, 0], np.uint32)
    assert_same(driver(first_features, noise, key, x, n=40, ids=ids, first=5), expected)
    assert_same(expected.sum(axis=1), [40] * 3)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_batch_size_changes_nothing(key, driver, noise, batch_size):
    x = inputs(6)
    expected = count_votes(first_features, noise, key, x, n=N)
    assert_same(driver(first_features, noise, key, x, n=N, batch_size=batch_size), expected)


@pytest.mark.parametrize("driver", DRIVERS)
def test_order_and_grouping_change_nothing_with_ids(key, driver):
    x, ids = inputs(6), np.array([10, 3, 5, 99, 0, 4])
    whole = driver(first_features, NOISES[0], key, x, n=N, ids=ids)
    order = np.array([4, 0, 5, 1, 3, 2])
    assert_same(driver(first_features, NOISES[0], key, x[order], n=N, ids=ids[order]), whole[order])
    for part in (slice(0, 1), slice(1, 6)):
        assert_same(driver(first_features, NOISES[0], key, x[part], n=N, ids=ids[part]), whole[part])


@pytest.mark.parametrize("driver", DRIVERS)
def test_ranges_of_samples_add_up(key, driver):
    x = inputs(4)
    whole = driver(first_features, NOISES[0], key, x, n=N)
    parts = [driver(first_features, NOISES[0], key, x, n=b - a, first=a) for a, b in [(0, 10), (10, 11), (11, N)]]
    assert_same(sum(parts), whole)


def test_the_last_samples_before_2_to_the_32_are_reached(key):
    last = count_votes(first_features, NOISES[0], key, inputs(2), n=3, first=2**32 - 3)
    assert_same(last, reference(first_features, NOISES[0], key, inputs(2), 3, first=2**32 - 3))


def run_scan_at(jaxpr, arguments, row, sample):
    """Run the one step of the scan in a program that begins at this position, and return what it carries on."""
    values = dict(zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True))
    values |= zip(jaxpr.jaxpr.invars, arguments, strict=True)
    for equation in jaxpr.jaxpr.eqns:
        taken = [atom.val if isinstance(atom, core.Literal) else values[atom] for atom in equation.invars]
        if equation.primitive.name == "scan":
            constants = equation.params["num_consts"]
            counts, *_ = taken[constants:]
            step = core.jaxpr_as_fun(equation.params["jaxpr"])
            return step(*taken[:constants], counts, np.int32(row), np.int32(sample))
        if equation.primitive.name == "jit":
            found = run_scan_at(equation.params["jaxpr"], taken, row, sample)
            if found is not None:
                return found
        given = equation.primitive.bind(*taken, **equation.params)
        values |= zip(equation.outvars, given if equation.primitive.multiple_results else [given], strict=True)
    return None


def test_positions_beyond_2_to_the_32_pairs_do_not_overflow(key):
    """3,000 inputs of 2^21 samples: the program's step at the last sample of one input gives the votes of both."""
    x, n = inputs(3000, (3,)), 2**21
    program = jax.make_jaxpr(lambda x: count_votes(first_features, NOISES[0], key, x, n=n, batch_size=8))(x)
    counts, row, sample = run_scan_at(program, [x], 2998, n - 4)
    assert (int(row), int(sample)) == (2999, 4)
    count = partial(count_votes, first_features, NOISES[0], key, n=4)
    expected = [count(x[2998:2999], ids=[2998], first=n - 4), count(x[2999:], ids=[2999])]
    assert_same(counts[2998:, 0], np.concatenate(expected))
    assert int(counts.sum()) == 8


def test_selection_and_estimation_draw_disjoint_streams(key):
    selection, estimation = decision_keys(key)
    a, b = (Gaussian(1.0).sample(sample_key(k, 0, 0), (100,)) for k in (selection, estimation))
    assert not np.isin(a, b).any()
    assert_same(jax.random.key_data(selection), jax.random.key_data(tagged_key(key, STREAM_TAG, 0)))


@pytest.mark.parametrize("noise", NOISES)
def test_every_transformation_gives_the_same_counts(key, mesh, noise):
    x = inputs(8, (4, 3))
    count = partial(count_votes, first_features, n=N, batch_size=64)
    expected = count(noise, key, x)
    assert_same(jax.jit(count)(noise, key, x), expected)
    assert_same(
        jax.lax.map(lambda row: count(noise, key, row[0][None], ids=row[1][None])[0], (x, jnp.arange(8))), expected
    )
    assert_same(jax.vmap(lambda row, i: count(noise, key, row[None], ids=i[None])[0])(x, jnp.arange(8)), expected)
    keys = jax.random.split(key, 3)
    assert_same(jax.vmap(lambda k: count(noise, k, x))(keys), jnp.stack([count(noise, k, x) for k in keys]))
    over_inputs = jax.shard_map(
        lambda x, ids: count(noise, key, x, ids=ids), mesh=mesh, in_specs=P("device"), out_specs=P("device")
    )
    assert_same(jax.jit(over_inputs)(x, jnp.arange(8)), expected)
    placed = jax.device_put(x, NamedSharding(mesh, P("device")))
    assert_same(jax.jit(count)(noise, key, placed), expected)


@pytest.mark.parametrize("noise", NOISES)
def test_vmap_over_the_scale(key, noise):
    x, scales = inputs(4), jnp.array([0.1, 0.25, 1.0, 3.0])
    count = partial(count_votes, first_features, n=N)
    expected = jnp.stack([count(type(noise)(s), key, x) for s in scales])
    assert_same(jax.vmap(lambda s: count(type(noise)(s), key, x))(scales), expected)


def test_samples_split_over_devices_add_up(key, mesh):
    """Under shard_map over samples, also with parameters that f closes over and that vary over the mesh."""
    x, weights = inputs(3), jnp.ones((4, 3))

    def local(weights):
        def f(x):
            return scaled_features(weights[0], x)

        first = 25 * jax.lax.axis_index("device")
        return jax.lax.psum(count_votes(f, NOISES[0], key, x, n=25, first=first), "device")

    counts = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=P("device"), out_specs=P()))(weights)
    assert_same(counts, count_votes(first_features, NOISES[0], key, x, n=100))


def test_inputs_share_batches(key):
    calls = []

    def f(x):
        jax.debug.callback(lambda: calls.append(len(x)))
        return first_features(x)

    count_votes(f, NOISES[0], key, inputs(64), n=100, batch_size=256)
    jax.effects_barrier()
    assert calls == [256] * math.ceil(64 * 100 / 256)


def test_stream_votes_calls_with_one_shape_and_any_callable(key):
    calls = []

    def f(x):
        calls.append(x.shape)
        return np.asarray(first_features(x), np.float64)

    assert_same(
        stream_votes(f, NOISES[0], key, inputs(3), n=100, batch_size=64),
        count_votes(first_features, NOISES[0], key, inputs(3), n=100),
    )
    assert calls == [(64, 5)] * math.ceil(300 / 64)


def test_one_compilation_serves_scales_keys_parameters_and_inputs(key):
    # One trace is for the shape of the scores, one for the program.
    counted = chex.assert_max_traces(scaled_features, 2)
    count = partial(count_votes, n=50, batch_size=32)
    for seed, scale in enumerate([0.5, 1.0, 2.0]):
        f = Partial(counted, jnp.full(3, 1.0 + seed))
        count(f, Gaussian(scale), jax.random.key(seed), inputs(3, seed=seed), first=seed)
        count(f, Gaussian(np.float64(scale)), jax.random.key_data(jax.random.key(seed)), inputs(3, seed=seed))
    with pytest.raises(AssertionError, match="traced"):
        count(Partial(counted, jnp.ones(3)), Gaussian(1.0), key, inputs(4))


def test_stream_votes_compiles_for_the_batch_size_only(key):
    """Another scale, key, range, number of inputs or number of samples compiles nothing."""
    x = np.asarray(inputs(40))
    expected = stream_votes(first_features, NOISES[0], key, x, n=20, batch_size=64)
    assert type(expected) is np.ndarray
    stream_votes(jax.jit(first_features), NOISES[0], key, x, n=1, batch_size=64)  # batches of many inputs
    f = jax.jit(first_features)
    f(jnp.zeros((64, 5)))
    with compiled_programs() as programs:
        for number in range(1, 41):
            ids = np.arange(number) if number % 2 else None
            counts = stream_votes(f, NOISES[0], key, x[:number], n=20, batch_size=64, ids=ids)
            np.testing.assert_array_equal(counts, expected[:number])
            stream_votes(f, Gaussian(float(number)), jax.random.key(number), x[:number] + 1, n=number, batch_size=64)
            stream_votes(f, NOISES[0], key, x[:number], n=7, batch_size=64, first=number)
    assert programs == []
    with compiled_programs() as programs:  # the count sees what is compiled
        stream_votes(first_features, NOISES[0], key, x, n=20, batch_size=63)
    assert len(programs) > 0


@pytest.mark.parametrize("driver", DRIVERS)
def test_components_keep_their_axes_and_are_counted_by_themselves(key, driver):
    x = inputs(4, (6,))
    counts = driver(grid_of_features, NOISES[0], key, x, n=N, batch_size=64)
    assert counts.shape == (4, 2, 3, 2)
    assert counts.dtype == jnp.int32
    for i in range(2):
        for j in range(3):
            assert_same(counts[:, i, j], driver(one_of_the_grid(i, j), NOISES[0], key, x, n=N))


@pytest.mark.parametrize("driver", DRIVERS)
def test_an_invalid_score_takes_the_vote_of_its_own_component_only(key, driver):
    def f(x):
        scores = grid_of_features(x)
        return scores.at[:, 1, 2, 0].set(jnp.where(x[:, 0] > 0, jnp.nan, scores[:, 1, 2, 0]))

    x = inputs(3, (6,))
    whole, counts = (driver(g, NOISES[0], key, x, n=N) for g in (grid_of_features, f))
    others = np.ones((2, 3), bool)
    others[1, 2] = False
    assert_same(counts[:, others], whole[:, others])
    assert_same(counts[:, 1, 2].sum(axis=1), N - np.asarray(whole[:, 0, 0, 0]))


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_with_a_non_finite_score_votes_for_no_class(key, driver, bad):
    def f(x):
        return jnp.where((x[:, :1] > 0) & (jnp.arange(3)[None] == 2), bad, first_features(x))

    clean = np.zeros((2, 3), np.int32)
    for i in range(2):
        for s in range(50):
            e = NOISES[0].sample(sample_key(key, i, s), (5,))
            row = inputs(2)[i] + e
            clean[i, int(jnp.argmax(row[:3]))] += int(row[0] <= 0)
    assert 0 < clean.sum() < 100
    assert_same(driver(f, NOISES[0], key, inputs(2), n=50), clean)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, bool])
def test_ties_go_to_the_lowest_index(key, driver, dtype):
    counts = driver(lambda x: jnp.zeros((len(x), 4), dtype), NOISES[0], key, inputs(2), n=10)
    assert_same(counts, [[10, 0, 0, 0]] * 2)


def test_a_traced_non_finite_input_gets_no_votes(key):
    x = inputs(3).at[1, 4].set(jnp.nan)
    counts = jax.jit(lambda x: count_votes(first_features, NOISES[0], key, x, n=10))(x)
    assert_same(counts.sum(axis=1), [10, 0, 10])


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_noise_is_float32_whatever_the_dtype_of_the_inputs(key, driver, dtype):
    x = inputs(2).astype(dtype)

    def f(noisy):
        assert noisy.dtype == dtype
        return first_features(noisy)

    rounded = reference(lambda row: first_features(row.astype(dtype)), NOISES[0], key, x.astype(jnp.float32), 30)
    assert_same(driver(f, NOISES[0], key, x, n=30), rounded)


@pytest.mark.parametrize("driver", DRIVERS)
def test_no_inputs_give_no_counts_of_the_right_shape(key, driver):
    counts = driver(first_features, NOISES[0], key, jnp.zeros((0, 5)), n=10)
    assert (counts.shape, counts.dtype) == ((0, 3), jnp.int32)


def test_stream_votes_shows_progress_when_asked(key, capsys):
    stream_votes(first_features, NOISES[0], key, inputs(2), n=100, batch_size=50, progress=True)
    assert "votes" in capsys.readouterr().err
    stream_votes(first_features, NOISES[0], key, inputs(2), n=100, batch_size=50)
    assert capsys.readouterr() == ("", "")


def test_stream_votes_refuses_traced_values(key):
    with pytest.raises(TypeError, match="runs on the host and takes no traced values: under jax"):
        jax.jit(lambda x: stream_votes(first_features, NOISES[0], key, x, n=10))(inputs(2))


@pytest.mark.parametrize("driver", DRIVERS)
def test_an_error_in_f_arrives_as_it_is(key, driver):
    def f(_):
        raise RuntimeError("no such layer")

    with pytest.raises(RuntimeError, match="no such layer"):
        driver(f, NOISES[0], key, inputs(2), n=10)


GROWTH = """
import sys, jax, jax.numpy as jnp, jaxsmooth
from tests.memory import peak, reset_peak
f = lambda x: x.reshape(len(x), -1)[:, :10]
driver, x = getattr(jaxsmooth, sys.argv[1]), jnp.zeros((1, 3, 32, 32))
vote = lambda n: jax.block_until_ready(driver(f, jaxsmooth.Gaussian(0.5), jax.random.key(0), x, n=n, batch_size=256))
vote(10_000)
before = reset_peak()
vote(100_000)
print(peak() - before)
"""


@needs_proc
@pytest.mark.parametrize("driver", ["count_votes", "stream_votes"])
def test_memory_does_not_grow_with_n(driver):
    """All noisy copies at once would take 1,200 MB, and 90 % of them come after the memory is first read."""
    run = subprocess.run([sys.executable, "-c", GROWTH, driver], capture_output=True, check=True)
    assert float(run.stdout) < 50


@pytest.mark.parametrize("how", ["count_votes", "add_noise", "smooth"])
def test_an_array_that_is_written_to_after_the_call_changes_nothing(how, key):
    """JAX returns before it has read all of a large array, or before a program that reads it in place has run."""

    class Late(NamedTuple):
        scale: float = 1.0

        norm = 2
        unit_radius = Gaussian.unit_radius

        def sample(self, key, shape, dtype=jnp.float32):
            slow = lax.fori_loop(0, 400, lambda _, a: jnp.tanh(a @ a), jnp.full((200, 200), 1e-3))
            return Gaussian(self.scale).sample(key, shape, dtype) + slow[0, 0] * 0

    def last_features(x):
        return x[:, -3:]

    def run(x):
        if how == "add_noise":
            return add_noise(Late(), key, x)
        if how == "smooth":
            return smooth(last_features, Gaussian(1.0), n=2)(key, x)
        return count_votes(last_features, Gaussian(1.0), key, x, n=2)

    features = 64 if how == "add_noise" else 2**21
    kept = np.random.default_rng(0).normal(size=(4, features)).astype(np.float32)
    expected = np.asarray(run(kept))
    # JAX reads NumPy's memory in place where it is aligned, and else copies it while the caller goes on.
    memory = np.zeros(kept.size + 16, np.float32)
    start = -memory.ctypes.data % 64 // 4 + (how != "add_noise")
    x = memory[start : start + kept.size].reshape(kept.shape)
    x[:] = kept
    result = run(x)
    x[:, -3:] = -5 - x[:, -3:]
    assert_same(result, expected)
    assert (np.asarray(run(x)) != expected).any()


def test_a_classifier_whose_number_of_classes_changes_is_refused(key):
    calls = []

    def f(x):
        calls.append(len(x))
        return np.zeros((len(x), 2 + len(calls)), np.float32)

    with pytest.raises(
        ValueError, match=r"f must always return scores of one shape, got rows of shape \(3,\) and then"
    ):
        stream_votes(f, NOISES[0], key, inputs(2), n=100, batch_size=50)
