"""Sequential certificates: what they claim is true, they depend on nothing they should not, they resume."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy import stats

import jaxsmooth
from jaxsmooth import ABSTAIN, Gaussian, Grid, GridState, Votes, certify_radii
from jaxsmooth.plans import plan_radii
from jaxsmooth.sequential import look_at_votes
from tests.benchmarks.sequential_votes import used_rows
from tests.classifiers import grid_of_features, inputs, one_of_the_grid
from tests.programs import compiled_programs

RADII = (0.0, 0.25, 0.5, 0.75)
SIGMA = 0.5


def sign(x):
    """Two classes; class 0 at distance x[0] of the boundary, which is its true radius."""
    return jnp.stack([x[:, 0], -x[:, 0]], axis=1)


def spread(number, features=4, reach=1.2):
    """Inputs at distances from -reach to reach."""
    x = np.zeros((number, features), np.float32)
    x[:, 0] = np.linspace(-reach, reach, number)
    return x


def decided(result):
    return result.label, result.radius, result.votes.n


def run(x, f=sign, key=0, radii=RADII, **changes):
    return certify_radii(f, Gaussian(SIGMA), jax.random.key(key), x, radii, **{"n": 10_000, **changes})


def test_radii_are_of_the_grid_true_and_what_many_votes_find():
    x = spread(200)
    result, fixed = run(x), jaxsmooth.certify(sign, Gaussian(SIGMA), jax.random.key(0), x, n=10_000)
    assert set(np.asarray(result.radius).tolist()) <= {0.0, 0.25, 0.5, 0.75}
    # 200 inputs at alpha 1e-3: more than 4 false certificates have probability below 1e-5.
    wrong = (result.label != ABSTAIN) & ((result.label != (x[:, 0] < 0)) | (result.radius > np.abs(x[:, 0])))
    assert int(wrong.sum()) <= 4
    for radius in RADII:
        by_votes = float(((fixed.radius >= radius) & (fixed.label >= 0)).mean())
        assert abs(float(((result.radius >= radius) & (result.label >= 0)).mean()) - by_votes) <= 0.03
    assert result.state.is_settled.all()
    assert result.votes.rule == "grid"
    assert float(result.votes.n.mean()) < 10_000 / 2


def test_false_certificates_on_the_edge_come_with_probability_alpha():
    """4,000 inputs whose true radius lies just below a radius of the grid, under a large alpha."""
    alpha, x = 0.05, np.zeros((4000, 1), np.float32)
    x[:, 0] = 0.5 - 1e-6
    result = run(x, radii=[0.5], alpha=alpha, n=2000, batch_size=1024)
    false = int((result.radius >= 0.5).sum())
    # Binomial of probability at most 0.05 and at least 0.045: both alarms are false with probability below 1e-6.
    assert stats.binom.ppf(1e-6, 4000, 0.9 * alpha) <= false <= stats.binom.isf(1e-6, 4000, alpha)


def test_results_depend_on_neither_batch_size_nor_order_nor_how_f_is_called():
    x = spread(23)
    expected = run(x)
    order = np.random.default_rng(0).permutation(23)
    for result, rows in [
        (run(x, batch_size=7), slice(None)),
        (run(x, batch_size=5000), slice(None)),
        (run(x[order], ids=order), order),
        (run(x, f=lambda x: np.asarray(sign(x)), compiled=False), slice(None)),
        (run(x, f=Partial(lambda w, x: sign(w * x), jnp.float32(1.0))), slice(None)),
    ]:
        for found, wanted in zip(decided(result), decided(expected), strict=True):
            np.testing.assert_array_equal(found, np.asarray(wanted)[rows])


def test_the_classifier_is_compiled_for_the_batch_size_and_not_for_the_number_of_inputs():
    """Two programs: for batches that serve few inputs, and for those that serve many."""

    def f(x):  # a function of its own, which no other test compiled
        return sign(x)

    with compiled_programs() as programs:
        for number in (1, 300):
            run(spread(number), f=f, n=1000)
    assert 1 <= len(programs) <= 2
    with compiled_programs() as programs:
        for number in (2, 5, 23, 64, 150, 299):
            run(spread(number), f=f, n=1000, key=number)
    assert programs == []


def test_the_classifier_is_traced_twice_for_each_program():
    counted = chex.assert_max_traces(sign, 4)
    for number in (1, 5, 23, 300):
        run(spread(number), f=counted, n=1000)


def test_votes_are_those_of_count_votes():
    x = spread(5)
    result = run(x)
    _, key = jaxsmooth.decision_keys(jax.random.key(0))
    for i, n in enumerate(result.votes.n.tolist()):
        counts = jaxsmooth.count_votes(sign, Gaussian(SIGMA), key, x[i : i + 1], n=n, ids=[i])
        np.testing.assert_array_equal(counts[0], result.votes.counts[i])


@pytest.mark.parametrize("most_votes", [1, 1000, 5000])
def test_a_run_that_was_cut_short_goes_on_to_the_same_certificate(most_votes):
    x, whole = spread(23), run(spread(23))
    state, rounds = None, 0
    while rounds < 500:
        part = run(x, state=state, most_votes=most_votes)
        rounds += 1
        if part.state.is_settled.all():
            break
        # What is certified on the way holds, and is never taken back.
        assert (part.radius <= whole.radius).all()
        leaves, treedef = jax.tree.flatten(part.state)
        state = jax.tree.unflatten(treedef, [np.asarray(leaf) for leaf in leaves])
    assert 1 < rounds < 500
    for found, expected in zip(decided(part), decided(whole), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "changes",
    [{"alpha": 0.01}, {"radii": [0.25]}, {"n": 9_999}, {"n0": 99}, {"key": 1}, {"beta": 0.01}, {"ids": [1, 0]}],
)
def test_a_state_of_other_settings_is_refused(changes):
    x = spread(2)
    state = run(x, most_votes=1).state
    with pytest.raises(ValueError, match="state must come from a call with the same"):
        run(x, state=state, **changes)
    with pytest.raises(ValueError, match="state must come from a call with the same"):
        run(x + 0.1, state=state)
    with pytest.raises(TypeError, match="state must be a GridState"):
        run(x, state=tuple(state))
    with pytest.raises(ValueError, match="state must come from a call with the same"):
        run(x, state=state._replace(settings=None))


def test_votes_that_were_looked_at_are_refused_by_the_rule_of_fixed_n():
    votes = run(spread(3)).votes
    for decide in (jaxsmooth.prediction, lambda votes: jaxsmooth.certificate(votes, Gaussian(SIGMA))):
        with pytest.raises(ValueError, match="votes must be of the rule 'fixed', got 'grid'"):
            decide(votes)
        decide(replace(votes, rule="fixed"))  # nothing but the rule speaks against it


def looked_at(plan, state, hits, n):
    counts = np.stack([hits, n - np.asarray(hits)], axis=1).astype(np.int32)
    votes = Votes(selection=np.array([[9, 1]] * len(hits)), counts=counts, n=np.full(len(hits), n), rule="grid")
    return look_at_votes(plan, state._replace(votes=votes))


def test_a_look_remembers_and_changes_nothing_between_looks():
    plan, none = plan_radii([0.25, 0.5], Gaussian(SIGMA), n=1000), np.zeros(3, np.int32)
    settled = looked_at(plan, GridState(None, none, none + 2), [64, 60, 0], 64)
    np.testing.assert_array_equal(settled.certified, [2, 1, 0])
    np.testing.assert_array_equal(settled.open_until, [2, 2, 0])
    np.testing.assert_array_equal(settled.is_settled, [True, False, True])
    np.testing.assert_array_equal(settled.label, [0, 0, 0])
    between = looked_at(plan, settled, [0, 0, 0], 79)
    np.testing.assert_array_equal(between.certified, [2, 1, 0])
    np.testing.assert_array_equal(between.open_until, [2, 2, 0])
    later = looked_at(plan, settled, [40, 40, 40], 80)
    np.testing.assert_array_equal(later.certified, [2, 1, 0])
    np.testing.assert_array_equal(later.open_until, [1, 1, 0])


@pytest.mark.parametrize("kind", [np.int64, np.uint64, np.int16, np.array])
def test_numpy_integers_are_integers(kind):
    """A run that was cut short with the one goes on with the other."""
    x, settings = spread(3), {"n": 1000, "n0": 20}
    state = run(x, most_votes=1, **settings).state
    found = run(x, state=state, **{name: kind(value) for name, value in settings.items()})
    for one, other in zip(decided(found), decided(run(x, **settings)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_all_radii_of_the_components_of_an_input_hold_together():
    """Each component is tested at its share of alpha; an input gets votes until the last of them is settled."""
    x, alpha = inputs(7, (6,)), 0.06
    whole = run(x, f=grid_of_features, alpha=alpha, n=2000)
    assert whole.label.shape == whole.radius.shape == (7, 2, 3)
    assert whole.votes.n.shape == (7,)
    longest = np.zeros(7, int)
    for i in range(2):
        for j in range(3):
            alone = run(x, f=one_of_the_grid(i, j), alpha=alpha / 6, n=2000)
            np.testing.assert_array_equal(whole.label[:, i, j], alone.label)
            np.testing.assert_array_equal(whole.radius[:, i, j], alone.radius)
            longest = np.maximum(longest, alone.votes.n)
    np.testing.assert_array_equal(whole.votes.n, longest)


def test_batches_are_full():
    assert used_rows() >= 0.95


def test_invalid_votes_only_lower_a_certificate():
    def half(x):
        return jnp.where(x[:, 1:2] > 0, jnp.nan, sign(x))

    x = np.zeros((2, 2), np.float32)
    x[:, 0] = 3
    assert (run(x, f=half).label == ABSTAIN).all()
    assert (run(x).radius == 0.75).all()


def test_no_inputs_give_no_certificates():
    assert run(np.zeros((0, 4), np.float32)).label.shape == (0,)


def test_traced_inputs_are_refused():
    with pytest.raises(TypeError, match="runs on the host and takes no traced values"):
        jax.jit(lambda x: run(x).label)(spread(2))


def test_a_bar_shows_settled_inputs(capsys):
    run(spread(5), progress=True)
    assert "5/5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"radii": [0.5, 0.5]}, ValueError, "radii must increase"),
        ({"radii": "a"}, TypeError, "radii must be"),
        ({"beta": 1.0}, ValueError, "beta must be a number"),
        ({"n0": 0}, ValueError, "n0 must be an integer"),
        ({"looks": [64, 99], "n": 100}, ValueError, "looks must increase up to n = 100"),
    ],
)
def test_a_bad_mode_is_refused_by_name(settings, error, message):
    with pytest.raises(error, match=message):
        Grid(**{"radii": [0.5], **settings})
