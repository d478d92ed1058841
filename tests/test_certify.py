"""Certificates: the decision and radius of SciPy in float64, never above them, under every transformation."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from scipy import stats

from jaxsmooth import ABSTAIN, Gaussian, Laplace, Uniform, certificate, certify, count_votes, decision_keys
from jaxsmooth.votes import stream_both
from tests.classifiers import assert_same, first_features, inputs

RADIUS = {
    Gaussian: lambda p: stats.norm.isf(1 - p),
    Laplace: lambda p: -np.log(2 * (1 - p)),
    Uniform: lambda p: 2 * (p - 0.5),
}


def ulps_below(value, exact):
    """Return how many float32 units in the last place `value` lies below `exact`."""
    return (exact - np.float64(value)) / np.spacing(np.asarray(exact, np.float32)).astype(np.float64)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("alpha", [0.05, 0.001, 1e-6])
@pytest.mark.parametrize("n", [1, 3, 100, 9_999, 100_000])
@pytest.mark.parametrize("noise", [Gaussian(0.25), Laplace(1.0), Uniform(3.0)])
def test_every_count_against_scipy(noise, n, alpha, jit):
    k = np.arange(n + 1)
    counts = np.stack([n - k, k], axis=1)
    decide = partial(certificate, n=n, alpha=alpha)
    result = (jax.jit(decide) if jit else decide)(np.tile([0, 1], (n + 1, 1)), counts, noise)
    p = np.where(k == 0, 0.0, stats.beta.ppf(alpha, np.maximum(k, 1), n - k + 1))
    certified = p > 0.5
    assert_same(result.label, np.where(certified, 1, ABSTAIN))
    below = ulps_below(result.p_lower, p)
    assert below.min() >= 0
    assert below.max() <= 2
    assert_same(result.radius[~certified], np.zeros((~certified).sum(), np.float32))
    if certified.any():
        below = ulps_below(result.radius[certified], noise.scale * RADIUS[type(noise)](p[certified]))
        assert below.min() >= 0
        assert below.max() <= 2


@pytest.mark.parametrize("sigma", [0.1, 0.12, 0.3, 1 / 3, 0.7])
def test_radius_is_not_above_that_of_a_scale_that_float32_rounds_up(sigma):
    counts = np.array([[n, 0] for n in (20, 100, 1000)])
    for row in counts:
        radius = certificate(row[None], row[None], Gaussian(sigma), n=int(row[0])).radius[0]
        assert float(radius) <= sigma * stats.norm.ppf(0.001 ** (1 / row[0]))


def test_the_figure_of_cohen():
    counts = np.array([[100_000, 0]])
    result = certificate(counts, counts, Gaussian(1.0), n=100_000)
    assert 3.8114560 < float(result.radius[0]) < 3.8114566
    assert 0.99993086 < float(result.p_lower[0]) <= 0.999930924833


def test_selection_votes_alone_choose_the_class():
    selection = jnp.array([[0, 5, 5], [3, 4, 3], [10, 0, 0]])
    counts = jnp.array([[1000, 0, 0], [0, 1000, 0], [400, 600, 0]])
    assert_same(certificate(selection, counts, Gaussian(1.0), n=1000).label, [ABSTAIN, 1, ABSTAIN])


def test_invalid_votes_only_lower_a_certificate():
    counts = jnp.array([[1000, 0], [900, 0], [400, 0]])
    result = certificate(counts, counts, Gaussian(1.0), n=1000)
    assert_same(result.label, [0, 0, ABSTAIN])
    assert result.radius[0] > result.radius[1] > result.radius[2] == 0


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_a_traced_scale_that_is_no_scale_abstains(scale):
    counts = jnp.array([[1000, 0]])
    result = jax.jit(lambda s: certificate(counts, counts, Gaussian(s), n=1000))(scale)
    assert_same((result.label, result.radius), (np.array([ABSTAIN]), np.zeros(1)))


def test_a_traced_row_of_too_many_votes_abstains():
    counts = jnp.array([[60, 60]])
    assert_same(jax.jit(lambda c: certificate(c, c, Gaussian(1.0), n=100))(counts).label, [ABSTAIN])


@pytest.mark.parametrize("batch_size", [1, 7, 64, 10_000])
def test_certify_is_the_certificate_of_two_streams(key, batch_size):
    x, noise, ids = inputs(11), Gaussian(1.0), np.arange(11, 0, -1)
    result = certify(first_features, noise, key, x, n0=30, n=400, alpha=0.01, batch_size=batch_size, ids=ids)
    selection_key, estimation_key = decision_keys(key)
    selection = count_votes(first_features, noise, selection_key, x, n=30, ids=ids)
    counts = count_votes(first_features, noise, estimation_key, x, n=400, ids=ids)
    assert_same(result, certificate(selection, counts, noise, n=400, alpha=0.01))
    for inputs_ in (x, np.asarray(x)):
        both = stream_both(first_features, noise, key, inputs_, n0=30, n=400, batch_size=batch_size, ids=ids)
        assert_same(both, (selection, counts))
    assert {ABSTAIN} < set(np.asarray(result.label).tolist())


def test_both_streams_run_in_one_program(key):
    """One trace is for the shape of the scores, one for the program, as for votes of one stream."""
    f = chex.assert_max_traces(lambda x: x[:, :3], 2)
    result = certify(f, Gaussian(1.0), key, inputs(2), n0=100, n=1000)
    assert_same(result.selection.sum(axis=1), [100, 100])


def test_no_inputs_and_traced_non_finite_ones_have_no_votes(key):
    empty = certify(first_features, Gaussian(1.0), key, jnp.zeros((0, 5)), n=10)
    assert empty.selection.shape == empty.counts.shape == (0, 3)
    x = inputs(3).at[1, 4].set(jnp.nan)
    result = jax.jit(lambda x: certify(first_features, Gaussian(1.0), key, x, n0=5, n=10))(x)
    assert_same(result.selection.sum(axis=1), [5, 0, 5])
    assert_same(result.counts.sum(axis=1), [10, 0, 10])
    assert result.label[1] == ABSTAIN
    selection, counts = stream_both(first_features, Gaussian(1.0), key, np.zeros((0, 5), np.float32), n0=5, n=10)
    assert selection.shape == counts.shape == (0, 3)


@pytest.mark.parametrize("count", [certify, stream_both])
def test_samples_of_both_streams_are_counted_in_32_bits(key, count):
    with pytest.raises(ValueError, match=r"n0 must be an integer in \[1, 24\], got 25"):
        count(first_features, Gaussian(1.0), key, inputs(1), n0=25, n=2**30 - 24)


def test_stream_both_refuses_traced_values(key):
    with pytest.raises(TypeError, match="use count_votes under"):
        jax.jit(lambda x: stream_both(first_features, Gaussian(1.0), key, x, n0=5, n=10))(inputs(2))


@pytest.mark.parametrize("noise", [Gaussian(1.0), Laplace(1.0), Uniform(2.0)])
def test_every_transformation_gives_the_same_certificate(key, mesh, noise):
    x, ids = inputs(8), jnp.arange(8)
    run = partial(certify, first_features, n0=30, n=400, alpha=0.01)
    expected = run(noise, key, x)
    assert_same(jax.jit(run)(noise, key, x), expected)
    static = jax.jit(certify, static_argnames=("f", "n0", "n", "alpha"))
    assert_same(static(first_features, noise, key, x, n0=30, n=400, alpha=0.01), expected)
    one = jax.lax.map(
        lambda row: jax.tree.map(lambda a: a[0], run(noise, key, row[0][None], ids=row[1][None])), (x, ids)
    )
    assert_same(one, expected)
    assert_same(run(noise, key, x[::-1], ids=ids[::-1]), jax.tree.map(lambda a: a[::-1], expected))
    sharded = jax.shard_map(
        lambda x, i: run(noise, key, x, ids=i), mesh=mesh, in_specs=P("device"), out_specs=P("device")
    )
    assert_same(jax.jit(sharded)(x, ids), expected)
    scales = jnp.array([0.25, 1.0])
    swept = jax.vmap(lambda s: run(type(noise)(s), key, x))(scales)
    assert_same(swept, jax.tree.map(lambda *a: jnp.stack(a), *(run(type(noise)(s), key, x) for s in scales)))


def test_a_model_of_nan_abstains_on_everything(key):
    result = certify(lambda x: jnp.full((len(x), 3), jnp.nan), Gaussian(1.0), key, inputs(3), n=1000)
    assert_same((result.label, result.radius, result.p_lower), ([ABSTAIN] * 3, [0.0] * 3, [0.0] * 3))


def test_no_inputs(key):
    result = certify(first_features, Gaussian(1.0), key, jnp.zeros((0, 5)), n=100)
    assert [leaf.shape for leaf in result] == [(0,), (0,), (0,), (0, 3), (0, 3), (0,)]
    assert [str(leaf.dtype) for leaf in result] == ["int32", "float32", "float32", "int32", "int32", "bool"]
