"""Certificates: the decision and radius of SciPy in float64, never above them, under every transformation."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from scipy import stats

from jaxsmooth import (
    ABSTAIN,
    Fixed,
    Gaussian,
    Laplace,
    LatticeGaussian,
    Uniform,
    Votes,
    certificate,
    certify,
    count_votes,
    decision_keys,
)
from tests.classifiers import assert_same, first_features, grid_of_features, inputs, one_of_the_grid

RADIUS = {
    Gaussian: lambda p: stats.norm.isf(1 - p),
    Laplace: lambda p: -np.log(2 * (1 - p)),
    Uniform: lambda p: 2 * (p - 0.5),
}


def both(counts, n, **more):
    """Return votes that choose the class, too, for the few tests in which that is of no matter."""
    return Votes(selection=counts, counts=counts, n=n, **more)


def decided(result):
    """Return what was decided, without the votes."""
    return result.label, result.radius, result.p_lower


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
    decide = partial(certificate, alpha=alpha)
    votes = Votes(selection=np.tile([0, 1], (n + 1, 1)), counts=counts, n=n)
    result = (jax.jit(decide) if jit else decide)(votes, noise)
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
        radius = certificate(both(row[None], int(row[0])), Gaussian(sigma)).radius[0]
        assert float(radius) <= sigma * stats.norm.ppf(0.001 ** (1 / row[0]))


def test_the_figure_of_cohen():
    counts = np.array([[100_000, 0]])
    result = certificate(both(counts, 100_000), Gaussian(1.0))
    assert 3.8114560 < float(result.radius[0]) < 3.8114566
    assert 0.99993086 < float(result.p_lower[0]) <= 0.999930924833


def test_selection_votes_alone_choose_the_class():
    selection = jnp.array([[0, 5, 5], [3, 4, 3], [10, 0, 0]])
    counts = jnp.array([[1000, 0, 0], [0, 1000, 0], [400, 600, 0]])
    votes = Votes(selection=selection, counts=counts, n=1000)
    assert_same(certificate(votes, Gaussian(1.0)).label, [ABSTAIN, 1, ABSTAIN])


def test_invalid_votes_only_lower_a_certificate():
    counts = jnp.array([[1000, 0], [900, 0], [400, 0]])
    result = certificate(both(counts, 1000), Gaussian(1.0))
    assert_same(result.label, [0, 0, ABSTAIN])
    assert result.radius[0] > result.radius[1] > result.radius[2] == 0


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_a_traced_scale_that_is_no_scale_abstains(scale):
    counts = jnp.array([[1000, 0]])
    result = jax.jit(lambda s: certificate(both(counts, 1000), Gaussian(s)))(scale)
    assert_same((result.label, result.radius), (np.array([ABSTAIN]), np.zeros(1)))


def test_a_traced_row_of_too_many_votes_abstains():
    counts = jnp.array([[60, 60]])
    assert_same(jax.jit(lambda c: certificate(both(c, 100), Gaussian(1.0)))(counts).label, [ABSTAIN])


@pytest.mark.parametrize("batch_size", [1, 7, 64, 10_000])
def test_certify_is_the_certificate_of_two_streams(key, batch_size):
    x, noise, ids = inputs(11), Gaussian(1.0), np.arange(11, 0, -1)
    selection_key, estimation_key = decision_keys(key)
    selection = np.asarray(count_votes(first_features, noise, selection_key, x, n=30, ids=ids))
    counts = np.asarray(count_votes(first_features, noise, estimation_key, x, n=400, ids=ids))
    expected = certificate(Votes(selection=selection, counts=counts, n=400), noise, alpha=0.01)
    settings = {"n0": 30, "n": 400, "alpha": 0.01, "batch_size": batch_size, "ids": ids}
    for given in (x, np.asarray(x)):
        chex.assert_trees_all_equal(certify(first_features, noise, key, given, **settings), expected)
        chex.assert_trees_all_equal(certify(np_features, noise, key, given, compiled=False, **settings), expected)
    assert {ABSTAIN} < set(np.asarray(expected.label).tolist())


def np_features(x):
    return np.asarray(first_features(x))


@pytest.mark.parametrize("noise", [Gaussian(0.5), Laplace(1.0), Uniform(2.0), LatticeGaussian(0.5, 1 / 64)])
@pytest.mark.parametrize("bound", ["cohen", "runner_up"])
def test_a_classifier_that_is_called_gets_the_certificates_of_a_compiled_one(key, noise, bound):
    if bound == "runner_up" and not isinstance(noise, Gaussian):
        pytest.skip("the bound is for Gaussian noise")
    run = partial(certify, noise=noise, key=key, x=inputs(7), n0=20, n=300, alpha=0.01, bound=bound)
    chex.assert_trees_all_equal(run(np_features, compiled=False, batch_size=64), run(first_features))


def test_a_bar_shows_the_votes_of_a_classifier_that_is_called(key, capsys):
    run = partial(certify, first_features, Gaussian(1.0), key, inputs(2), n0=20, n=30)
    expected = run(compiled=False)
    assert capsys.readouterr() == ("", "")
    chex.assert_trees_all_equal(run(compiled=False, progress=True), expected)
    assert "100/100" in capsys.readouterr().err
    with pytest.raises(ValueError, match="progress=True needs compiled=False"):
        run(progress=True)


@pytest.mark.parametrize("n", [1, 3, 100, 9_999])
@pytest.mark.parametrize("alpha", [0.05, 1e-6])
@pytest.mark.parametrize(
    ("noise", "bound"),
    [(Gaussian(0.3), "cohen"), (Gaussian(0.3), "runner_up"), (Laplace(1.7), "cohen"), (Uniform(0.1), "cohen")],
)
def test_tables_of_compiled_code_give_the_bits_of_the_host(n, alpha, noise, bound):
    """Label, radius and bound of every count, with invalid votes and a rival among the others."""
    k = np.arange(n + 1)
    rival = (n - k) * 2 // 3
    counts = np.stack([rival, k, (n - k - rival) // 2], axis=1).astype(np.int32)
    votes = Votes(selection=np.tile([0, 1, 0], (n + 1, 1)), counts=counts, n=n)
    decide = partial(certificate, alpha=alpha, bound=bound)
    host, compiled = decide(votes, noise), jax.jit(decide)(votes, noise)
    chex.assert_trees_all_equal(decided(compiled), decided(host))
    if n > 100:
        assert 0 < int((host.label == ABSTAIN).sum()) < n


def test_tables_give_the_bits_of_the_host_where_radii_are_reduced():
    n = 1000
    k = np.arange(n + 1)
    counts = np.stack([k, n - k], axis=1)
    lost = np.linspace(0, 1, n + 1, dtype=np.float32) * (k % 3 > 0)
    votes = Votes(selection=np.tile([1, 0], (n + 1, 1)), counts=counts, n=n, lost=lost)
    noise = LatticeGaussian(0.5, 0.1)
    host, compiled = certificate(votes, noise), jax.jit(certificate)(votes, noise)
    chex.assert_trees_all_equal(decided(compiled), decided(host))
    assert_same(host.rounded, lost > 0)


def test_a_number_of_samples_for_each_input_decides_as_that_number_for_all():
    """The radius is rounded once instead of twice: within two units in the last place."""
    n = np.array([10, 100, 1000, 5000])
    counts = np.stack([n * 9 // 10, n // 20], axis=1)
    several = certificate(both(counts, n), Gaussian(0.3), alpha=0.05)
    for i in range(4):
        one = certificate(both(counts[i : i + 1], int(n[i])), Gaussian(0.3), alpha=0.05)
        assert_same(several.label[i], one.label[0])
        assert_same(several.p_lower[i], one.p_lower[0])
        np.testing.assert_allclose(several.radius[i], one.radius[0], rtol=3e-7)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("bound", ["cohen", "runner_up"])
def test_components_are_decided_at_their_share_of_alpha(key, compiled, bound):
    x, noise = inputs(5, (6,)), Gaussian(0.5)
    run = partial(certify, noise=noise, key=key, x=x, n0=30, n=400, bound=bound, compiled=compiled)
    whole = run(grid_of_features, alpha=0.06)
    assert whole.label.shape == whole.radius.shape == whole.p_lower.shape == (5, 2, 3)
    assert whole.votes.components == 6
    for i in range(2):
        for j in range(3):
            alone = run(one_of_the_grid(i, j), alpha=0.06 / 6)
            chex.assert_trees_all_equal(tuple(a[:, i, j] for a in decided(whole)), decided(alone))
            assert_same(whole.votes.selection[:, i, j], alone.votes.selection)
            assert_same(whole.votes.counts[:, i, j], alone.votes.counts)
    # At alpha itself more would be certified: each component costs its share.
    careless = run(one_of_the_grid(0, 0), alpha=0.06)
    assert (careless.p_lower > whole.p_lower[:, 0, 0]).any()


def test_components_are_decided_alike_by_tables(key):
    x, noise = inputs(5, (6,)), Gaussian(0.5)
    run = partial(certify, grid_of_features, n0=30, n=400, alpha=0.06)
    chex.assert_trees_all_equal(decided(jax.jit(run)(noise, key, x)), decided(run(noise, key, x)))


def test_both_streams_run_in_one_program(key):
    """One trace is for the shape of the scores, one for the program, as for votes of one stream."""
    f = chex.assert_max_traces(lambda x: x[:, :3], 2)
    result = certify(f, Gaussian(1.0), key, inputs(2), n0=100, n=1000)
    assert_same(result.votes.selection.sum(axis=1), [100, 100])


@pytest.mark.parametrize("compiled", [True, False])
def test_no_inputs_have_no_votes(key, compiled):
    empty = certify(first_features, Gaussian(1.0), key, jnp.zeros((0, 5)), n=10, compiled=compiled)
    assert empty.votes.selection.shape == empty.votes.counts.shape == (0, 3)
    shapes = [(empty.label, "int32"), (empty.radius, "float32"), (empty.p_lower, "float32")]
    assert [(array.shape, str(array.dtype)) for array, _ in shapes] == [((0,), dtype) for _, dtype in shapes]
    assert empty.rounded.shape == (0,)


def test_traced_non_finite_inputs_have_no_votes(key):
    x = inputs(3).at[1, 4].set(jnp.nan)
    result = jax.jit(lambda x: certify(first_features, Gaussian(1.0), key, x, n0=5, n=10))(x)
    assert_same(result.votes.selection.sum(axis=1), [5, 0, 5])
    assert_same(result.votes.counts.sum(axis=1), [10, 0, 10])
    assert result.label[1] == ABSTAIN


@pytest.mark.parametrize("compiled", [True, False])
def test_samples_of_both_streams_are_counted_in_32_bits(key, compiled):
    with pytest.raises(ValueError, match=r"n0 must be an integer in \[1, 10\]"):
        certify(first_features, Gaussian(1.0), key, inputs(2), n0=11, n=2**30 - 10, compiled=compiled)


def test_a_classifier_that_is_called_takes_no_traced_values(key):
    with pytest.raises(TypeError, match="takes no traced values"):
        jax.jit(lambda x: certify(first_features, Gaussian(1.0), key, x, n0=5, n=10, compiled=False))(inputs(2))


@pytest.mark.parametrize("noise", [Gaussian(1.0), Laplace(1.0), Uniform(2.0)])
def test_every_transformation_gives_the_same_certificate(key, mesh, noise):
    x, ids = inputs(8), jnp.arange(8)
    run = partial(certify, first_features, n0=30, n=400, alpha=0.01)
    expected = run(noise, key, x)
    same = chex.assert_trees_all_equal
    same(jax.jit(run)(noise, key, x), expected)
    static = jax.jit(certify, static_argnames=("f", "n0", "n", "alpha"))
    same(static(first_features, noise, key, x, n0=30, n=400, alpha=0.01), expected)
    one = jax.lax.map(
        lambda row: jax.tree.map(lambda a: a[0], run(noise, key, row[0][None], ids=row[1][None])), (x, ids)
    )
    same(one, expected)
    same(run(noise, key, x[::-1], ids=ids[::-1]), jax.tree.map(lambda a: a[::-1], expected))
    sharded = jax.shard_map(
        lambda x, i: run(noise, key, x, ids=i), mesh=mesh, in_specs=P("device"), out_specs=P("device")
    )
    same(jax.jit(sharded)(x, ids), expected)
    scales = jnp.array([0.25, 1.0])
    swept = jax.vmap(lambda s: run(type(noise)(s), key, x))(scales)
    same(swept, jax.tree.map(lambda *a: np.stack(a), *(run(type(noise)(s), key, x) for s in scales)))


def test_a_model_of_nan_abstains_on_everything(key):
    result = certify(lambda x: jnp.full((len(x), 3), jnp.nan), Gaussian(1.0), key, inputs(3), n=1000)
    assert_same((result.label, result.radius, result.p_lower), ([ABSTAIN] * 3, [0.0] * 3, [0.0] * 3))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"n0": 0}, ValueError, "n0 must be an integer"),
        ({"n": 0}, ValueError, "n must be an integer"),
        ({"n": 1.5}, TypeError, "n must be an integer"),
        ({"bound": "other"}, ValueError, "bound must be one of"),
    ],
)
def test_a_bad_mode_is_refused_by_name(settings, error, message):
    with pytest.raises(error, match=message):
        Fixed(**settings)
