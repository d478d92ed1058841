"""Sequential certificates: what they claim is true, they depend on nothing they should not, they resume."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy import stats

import jaxsmooth
from jaxsmooth import ABSTAIN, Gaussian, certify_radii
from jaxsmooth.plans import plan_radii
from jaxsmooth.sequential import RadiiState, settle
from tests.benchmarks.sequential_votes import used_rows

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
    assert result.is_settled.all()
    assert float(result.votes.mean()) < 10_000 / 2


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
        for name in ("label", "radius", "votes"):
            np.testing.assert_array_equal(getattr(result, name), np.asarray(getattr(expected, name))[rows])


def test_the_classifier_is_compiled_once_for_any_number_of_inputs():
    # One trace is for the shape of the scores, one for the program.
    counted = chex.assert_max_traces(sign, 2)
    for number in (1, 5, 23, 300):
        run(spread(number), f=counted, n=1000)


def test_votes_are_those_of_count_votes():
    x = spread(5)
    result = run(x)
    _, key = jaxsmooth.decision_keys(jax.random.key(0))
    for i, votes in enumerate(result.votes.tolist()):
        counts = jaxsmooth.count_votes(sign, Gaussian(SIGMA), key, x[i : i + 1], n=votes, ids=[i])
        assert int(counts[0, result.state.label[i]]) == result.state.hits[i]


@pytest.mark.parametrize("most_votes", [1, 1000, 5000])
def test_a_run_that_was_cut_short_goes_on_to_the_same_certificate(most_votes):
    x, whole = spread(23), run(spread(23))
    state, rounds = None, 0
    while True:
        part = run(x, state=state, most_votes=most_votes)
        rounds += 1
        if part.is_settled.all():
            break
        # What is certified on the way holds, and is never taken back.
        assert (part.radius <= whole.radius).all()
        leaves, treedef = jax.tree.flatten(part.state)
        state = jax.tree.unflatten(treedef, [np.asarray(leaf) for leaf in leaves])
    assert rounds > 1
    for name in ("label", "radius", "votes"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name))


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
    with pytest.raises(TypeError, match="state must be a RadiiState"):
        run(x, state=tuple(state))


def test_votes_that_were_looked_at_cannot_be_passed_to_the_rule_of_fixed_n():
    state = run(spread(3)).state
    with pytest.raises(ValueError, match="counts must"):
        jaxsmooth.certificate(state.selection, state.hits, Gaussian(SIGMA), n=10_000)


def test_settle_under_jit_remembers_and_changes_nothing_between_looks():
    plan, none = plan_radii([0.25, 0.5], Gaussian(SIGMA), n=1000), np.zeros(3, np.int32)
    selection = np.array([[9, 1]] * 3)
    state = RadiiState(selection, np.array([64, 60, 0]), none + 64, none, none + 2, np.zeros(8, np.uint32))
    settled = jax.jit(settle)(plan, state)
    np.testing.assert_array_equal(settled.certified, [2, 1, 0])
    np.testing.assert_array_equal(settled.open_until, [2, 2, 0])
    between = settle(plan, settled._replace(drawn=none + 79, hits=none))
    np.testing.assert_array_equal(between.certified, [2, 1, 0])
    later = settle(plan, settled._replace(drawn=none + 80, hits=none + 40))
    np.testing.assert_array_equal(later.certified, [2, 1, 0])


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
    with pytest.raises(TypeError, match="certify_radii runs on the host"):
        jax.jit(lambda x: run(x).label)(spread(2))


def test_a_bar_shows_settled_inputs(capsys):
    run(spread(5), progress=True)
    assert "5.00/5.00" in capsys.readouterr().err
