"""Votes: what adds up, what is static, and decisions from votes of a number of samples that no table could hold."""

import time
import tracemalloc
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mpmath import mp
from scipy import stats

from jaxsmooth import (
    ABSTAIN,
    Certificate,
    Gaussian,
    Prediction,
    Votes,
    certificate,
    certify,
    count_votes,
    decision_keys,
    predict,
    prediction,
)
from tests.classifiers import first_features, grid_of_features, inputs

NOISE = Gaussian(1.0)
MANY = 4_000_000


def votes(n=100, **changes):
    counts = np.array([[n - n // 10, n // 10], [n // 2, n // 3]], np.int32)
    return Votes(**{"counts": counts, "n": n, "selection": counts // 2, **changes})


def test_votes_of_disjoint_ranges_are_those_of_one_longer_count(key):
    x, (selection_key, estimation_key) = inputs(5), decision_keys(key)

    def drawn(n0, n, first=0):
        selection = count_votes(first_features, NOISE, selection_key, x, n=n0, first=n0 * (first > 0))
        counts = count_votes(first_features, NOISE, estimation_key, x, n=n, first=first)
        return Votes(selection=selection, counts=counts, n=n)

    total, whole = drawn(25, 70) + drawn(25, 130, first=70), drawn(50, 200)
    chex.assert_trees_all_equal(total, whole)
    expected = certify(first_features, NOISE, key, x, n0=50, n=200, alpha=0.01)
    chex.assert_trees_all_equal(certificate(total, NOISE, alpha=0.01), expected)
    chex.assert_trees_all_equal(prediction(total).label, prediction(whole).label)
    # The sum of ranges that overlap is another one: this is what disjoint is for.
    overlapping = drawn(25, 70) + drawn(25, 130, first=69)
    assert (np.asarray(overlapping.counts) != np.asarray(whole.counts)).any()


def test_votes_add_up_under_jit_and_over_devices(key, mesh):
    x, spec = inputs(3), jax.sharding.PartitionSpec()

    def part(x):
        first = 25 * jax.lax.axis_index("device")
        own = Votes(counts=count_votes(first_features, NOISE, key, x, n=25, first=first), n=25)
        return replace(own, counts=jax.lax.psum(own.counts, "device"), n=4 * own.n)  # psum leaves n, which is static

    spread = jax.jit(jax.shard_map(part, mesh=mesh, in_specs=spec, out_specs=spec))(x)
    np.testing.assert_array_equal(spread.counts, count_votes(first_features, NOISE, key, x, n=100))
    assert spread.n == 100
    added = jax.jit(lambda a, b: a + b)(votes(), votes(50))
    chex.assert_trees_all_equal(added, votes() + votes(50))
    assert added.n == 150


@pytest.mark.parametrize("rule", ["grid", "anytime", "other"])
def test_votes_that_were_looked_at_do_not_add_up(rule):
    for one, other in ((votes(rule=rule), votes()), (votes(), votes(rule=rule)), (votes(rule=rule), votes(rule=rule))):
        with pytest.raises(ValueError, match=f"only votes of the rule 'fixed' add up, got .*'{rule}'"):
            one + other


def test_votes_with_and_without_selection_do_not_add_up():
    with pytest.raises(ValueError, match="with selection votes and votes without them do not add up"):
        votes() + votes(selection=None)
    assert (votes(selection=None) + votes(selection=None)).selection is None


def test_votes_of_other_inputs_do_not_add_up():
    for other in (votes().counts[:1], votes().counts[:, None], votes().counts[:, :1]):
        with pytest.raises(ValueError, match=r"votes must be of the same inputs, got selection of shape \(2, 2\) and"):
            votes() + votes(counts=other, selection=other)
        with pytest.raises(ValueError, match=r"of the same inputs, got counts of shape \(2, 2\) and"):
            votes(selection=None) + votes(counts=other, selection=None)
    # What NumPy would make of them: the votes of one input for the class of every input.
    assert (votes().counts + votes().counts[:1]).shape == (2, 2)


def test_votes_add_up_whatever_holds_them():
    once = Votes(counts=[[200, 10]], selection=[[20, 1]], n=250)
    narrow = Votes(counts=np.array([[200, 10]], np.uint8), selection=np.array([[20, 1]], np.uint8), n=250)
    for one in (once, narrow):
        twice = one + one
        np.testing.assert_array_equal(twice.counts, [[400, 20]])
        np.testing.assert_array_equal(twice.selection, [[40, 2]])
        assert (twice.n, one.components) == (500, 1)
        assert certificate(twice, NOISE).label == [0]


def test_more_votes_than_32_bits_hold_do_not_add_up():
    most = Votes(counts=np.array([[2**30, 0]], np.int32), n=2**30)
    several = replace(most, n=np.array([2**30], np.int32))
    for one, other in ((most, most), (several, several), (most, several)):
        with pytest.raises(ValueError, match="votes must add up to at most 1073741824 for each input, got 2147483648"):
            one + other
    with pytest.raises(TypeError, match="unsupported operand"):
        votes() + 3


IMPOSSIBLE = {
    "a sum that wraps around": np.array([[2**31 - 1, 1]], np.int32),
    "a negative count": np.array([[150, -60]], np.int32),
    "a count beyond 32 bits": np.array([[100, 2**32 - 96]], np.uint32),
    "a sum of many that wraps around": np.full((1, 4), 2**30, np.int32),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
@pytest.mark.parametrize("bound", ["cohen", "runner_up"])
def test_traced_counts_that_no_samples_cast_abstain(name, bound):
    counts = jnp.asarray(IMPOSSIBLE[name])
    selection = jnp.zeros_like(counts).at[0, 0].set(9)

    @jax.jit
    def decided(counts, selection):
        found = certificate(Votes(counts=counts, selection=selection, n=100), NOISE, bound=bound)
        return found.label, found.radius, prediction(Votes(counts=counts, n=100)).label

    assert [float(value[0]) for value in decided(counts, selection)] == [ABSTAIN, 0, ABSTAIN]
    possible = jnp.zeros_like(counts).at[0, 0].set(100)
    assert [float(value[0]) > 0 for value in decided(possible, selection)] == [False, True, False]
    assert float(decided(possible, selection)[0][0]) == 0


def test_a_traced_n_is_refused_where_the_counts_are_known():
    with pytest.raises(TypeError, match=r"votes\.n must be one static int under jax\.jit"):
        jax.jit(lambda n: certificate(replace(votes(), n=n), NOISE).radius)(np.array([100, 100], np.int32))


def test_decisions_are_arrays_of_what_the_counts_are():
    for kind, counts in ((np.ndarray, votes().counts), (jax.Array, jnp.asarray(votes().counts))):
        found = certificate(votes(counts=counts, selection=counts), NOISE)
        again = certificate(found.votes, NOISE)
        for values in (found.label, found.radius, found.p_lower, again.radius, prediction(found.votes).label):
            assert isinstance(values, kind)


def test_a_number_of_samples_for_each_input_adds_up():
    assert (votes(100) + votes(50)).n == 150
    several = replace(votes(), n=np.array([100, 90], np.int32)) + votes(50)
    np.testing.assert_array_equal(several.n, [150, 140])


def test_votes_are_a_pytree_whose_number_of_samples_is_static_where_it_is_an_int():
    one, several = votes(), votes(n=np.int64(100))
    assert jax.tree.structure(one) == jax.tree.structure(several)
    assert len(jax.tree.leaves(one)) == 2
    assert len(jax.tree.leaves(replace(one, n=np.array([100, 90]), lost=np.zeros(2)))) == 4
    assert jax.jit(lambda v: v)(one).n == 100
    assert jax.tree.structure(one) != jax.tree.structure(replace(one, rule="grid"))
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(one)]
    assert names == [".counts", ".selection"]


def test_votes_take_their_fields_by_name_only():
    """Two arrays of counts side by side would be easy to swap."""
    with pytest.raises(TypeError, match="positional"):
        Votes(np.eye(2, dtype=int), 10)


def test_components_are_the_axes_between_inputs_and_classes(key):
    assert votes().components == 1
    counts = count_votes(grid_of_features, NOISE, key, inputs(2, (6,)), n=10)
    assert Votes(counts=counts, n=10).components == 6


def test_results_are_pytrees(key):
    x = inputs(3)
    certified, predicted = certify(first_features, NOISE, key, x, n=100), predict(first_features, NOISE, key, x, n=100)
    assert isinstance(jax.tree.map(np.asarray, certified), Certificate)
    assert isinstance(jax.tree.map(np.asarray, predicted), Prediction)
    twice = jax.tree.map(lambda a: np.stack([a, a]), certified)
    assert twice.radius.shape == (2, 3)
    assert certified.rounded.tolist() == [False] * 3
    lossy = replace(certified, votes=replace(certified.votes, lost=np.array([0.0, 0.1, np.inf])))
    assert lossy.rounded.tolist() == [False, True, True]


@pytest.fixture
def measured():
    """Return a function that gives the result of a call, its seconds and by how many MB memory grew at the peak."""

    def measure(run):
        run()  # the first call loads and compiles what any call needs
        tracemalloc.start()
        began = time.perf_counter()
        result = jax.block_until_ready(run())
        seconds = time.perf_counter() - began
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return result, seconds, peak / 2**20

    return measure


def exact_bound(count, n, alpha):
    """Return the Clopper-Pearson bound, where P(at least `count` of n) is alpha: by mpmath, or by SciPy."""
    by_scipy = float(stats.beta.ppf(alpha, count, n - count + 1))
    if count < 0.99 * n:
        return by_scipy  # good to 1e-12, and the tail has too many terms
    with mp.workdps(60):

        def log_of_tail(p):
            # The tail beyond a share far above p falls off geometrically: its terms from the first one on.
            term = mp.binomial(n, count) * p**count * (1 - p) ** (n - count)
            total, k = mp.mpf(0), count
            while term > total * mp.mpf(10) ** -30:
                total += term
                term *= mp.mpf(n - k) / (k + 1) * p / (1 - p)
                k += 1
            return mp.log(total)

        return mp.findroot(lambda p: log_of_tail(p) - mp.log(alpha), mp.mpf(by_scipy))


@pytest.mark.parametrize("hits", [MANY, MANY - 1000, 2_800_000])
@pytest.mark.parametrize("bound", ["cohen", "runner_up"])
def test_a_certificate_of_four_million_votes_takes_no_table(measured, hits, bound):
    counts = np.array([[hits, MANY - hits]])
    one = Votes(selection=counts, counts=counts, n=MANY)
    result, seconds, grown = measured(lambda: certificate(one, Gaussian(0.5), bound=bound))
    assert seconds < 1
    assert grown < 5
    exact = exact_bound(hits, MANY, 1e-3 if bound == "cohen" else 5e-4)
    lower = float(result.p_lower[0])
    assert lower <= exact < float(np.nextafter(np.nextafter(np.float32(lower), np.float32(1)), np.float32(1)))
    radius = 0.5 * stats.norm.isf(float(1 - exact))
    assert int(result.label[0]) == 0
    assert radius * (1 - 1e-6) < float(result.radius[0]) <= radius


@pytest.mark.parametrize(("top", "label"), [(2_000_000 + 3290, ABSTAIN), (2_000_000 + 3295, 0), (MANY, 0)])
def test_a_prediction_of_four_million_votes_takes_no_table(measured, top, label):
    """The two-sided test at 0.001 needs a lead of 3.2905 standard deviations of a thousand votes."""
    result, seconds, grown = measured(lambda: prediction(Votes(counts=np.array([[top, MANY - top]]), n=MANY)))
    assert seconds < 1
    assert grown < 5
    assert int(result.label[0]) == label
    exact = min(2 * stats.binom.sf(top - 1, MANY, 0.5), 1.0)
    np.testing.assert_allclose(result.p_value[0], max(exact, np.finfo(np.float32).tiny), rtol=1e-4)
    assert (exact <= 0.001) == (label == 0)


def test_a_table_takes_memory_for_a_tenth_of_that_already(measured):
    """What compiled code looks counts up in: the check above sees it."""
    counts = jnp.array([[280_000, 100_000]], jnp.int32)
    one = Votes(selection=counts, counts=counts, n=MANY // 10)
    traced = []

    def fresh():  # a level that no table was made for
        traced.append(1)
        return jax.jit(lambda v: certificate(v, Gaussian(0.5), alpha=1e-3 + 1e-6 * len(traced)).radius)(one)

    _, _, grown = measured(fresh)
    assert grown > 5
