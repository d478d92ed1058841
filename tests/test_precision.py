"""A radius within a fraction of the best: the number of votes by brute force, the guarantee, the radii."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import jaxsmooth
from jaxsmooth import ABSTAIN, Gaussian, Laplace, Votes, Within, certify_within
from jaxsmooth.precision import votes_wanted
from tests.classifiers import grid_of_features, inputs, one_of_the_grid

SIGMA = 0.5


def sign(x):
    return jnp.stack([x[:, 0], -x[:, 0]], axis=1)


def spread(number=60, reach=1.2):
    x = np.zeros((number, 3), np.float32)
    x[:, 0] = np.linspace(-reach, reach, number)
    return x


def run(x, f=sign, key=0, noise=None, **changes):
    return certify_within(f, noise or Gaussian(SIGMA), jax.random.key(key), x, **{"n": 20_000, **changes})


@pytest.mark.parametrize("precision", [0.05, 0.01])
@pytest.mark.parametrize("p", [0.7, 0.9, 0.99, 1.0])
def test_the_pilot_asks_for_the_smallest_number_that_gives_the_precision(p, precision):
    n, alpha = 20_000, 1e-3
    votes = np.arange(1, n + 1)
    radius = np.maximum(special.ndtri(special.betaincinv(p * votes, votes - p * votes + 1, alpha)), 0)
    smallest = votes[np.argmax(radius >= (1 - precision) * radius[-1])]
    assert abs(votes_wanted(Gaussian(0.3), 1000, n, alpha, precision)[round(1000 * p)] - smallest) <= 1


def test_hopeless_pilots_get_no_votes_and_close_ones_all():
    wanted = votes_wanted(Gaussian(0.5), 1000, 20_000, 1e-3, 0.05)
    assert (wanted[:450] == 0).all()
    assert (wanted[450:505] == 20_000).all()
    assert (wanted <= 20_000).all()


@pytest.mark.parametrize("bound", ["cohen", "runner_up"])
def test_radii_are_true_and_within_the_precision_of_all_votes(bound):
    x = spread()
    result = run(x, bound=bound)
    fixed = jaxsmooth.certify(sign, Gaussian(SIGMA), jax.random.key(0), x, n0=1000, n=20_000, bound=bound)
    np.testing.assert_array_equal(result.votes.selection, fixed.votes.selection)
    false = (result.label >= 0) & ((result.label != (x[:, 0] < 0)) | (result.radius > np.abs(x[:, 0])))
    assert int(false.sum()) <= 2  # of 60 at 1e-3: more have probability below 1e-4
    both = np.asarray((result.radius > 0.1) & (fixed.radius > 0.1))
    # 5 % are lost by design; the rest is the pilot's error and the votes' own, 20 % in the worst of 50 inputs.
    loss = 1 - np.asarray(result.radius)[both] / np.asarray(fixed.radius)[both]
    assert abs(np.median(loss) - 0.05) < 0.05
    assert loss.max() < 0.25
    assert float(result.votes.n.mean()) < 20_000 / 2


def test_the_decision_is_that_of_certify_on_as_many_votes():
    x = spread(9)
    for bound in ("cohen", "runner_up"):
        result = run(x, bound=bound)
        assert result.votes.rule == "fixed"  # the pilot decided how many, not the votes that are counted
        again = jaxsmooth.certificate(result.votes, Gaussian(SIGMA), bound=bound)
        for name in ("label", "radius", "p_lower"):
            np.testing.assert_array_equal(getattr(again, name), getattr(result, name))
        for i, n in enumerate(result.votes.n.tolist()):
            one = slice(i, i + 1)
            votes = Votes(selection=result.votes.selection[one], counts=result.votes.counts[one], n=max(n, 1))
            same = jaxsmooth.certificate(votes, Gaussian(SIGMA), bound=bound)
            assert int(same.label[0]) == int(result.label[i])
            np.testing.assert_allclose(same.radius[0], result.radius[i], atol=1e-6)
            np.testing.assert_allclose(same.p_lower[0], result.p_lower[i], rtol=1e-6)


def test_false_certificates_are_as_rare_as_claimed():
    """3,000 inputs on which one class has probability .5: every certificate is false."""
    alpha, x = 0.05, np.zeros((3000, 1), np.float32)
    result = run(x, alpha=alpha, n=500, n0=100, batch_size=1024)
    false = int((result.label != ABSTAIN).sum())
    assert 0 < false <= stats.binom.isf(1e-6, 3000, alpha)


def test_results_depend_on_neither_batch_size_nor_order_nor_how_f_is_called():
    x = spread(11)
    expected = run(x, n=3000)
    order = np.random.default_rng(0).permutation(11)
    for result, rows in [
        (run(x, n=3000, batch_size=7), slice(None)),
        (run(x[order], n=3000, ids=order), order),
        (run(x, n=3000, f=lambda x: np.asarray(sign(x)), compiled=False), slice(None)),
    ]:
        for name in ("label", "radius"):
            np.testing.assert_array_equal(getattr(result, name), np.asarray(getattr(expected, name))[rows])
        for name in ("n", "counts", "selection"):
            np.testing.assert_array_equal(getattr(result.votes, name), getattr(expected.votes, name)[rows])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"precision": 0.0}, ValueError, "precision must be a number"),
        ({"precision": 1.0}, ValueError, "precision must be a number"),
        ({"n0": 0}, ValueError, "n0 must be an integer"),
        ({"bound": "other"}, ValueError, "bound must be"),
        ({"bound": "runner_up", "noise": Laplace(1.0)}, TypeError, "is for Gaussian noise"),
    ],
)
def test_bad_arguments_are_refused_by_name(changes, error, message):
    with pytest.raises(error, match=message):
        run(spread(2), **changes)


@pytest.mark.parametrize("bound", ["cohen", "runner_up"])
def test_components_are_decided_at_their_share_of_alpha(bound):
    """An input gets as many votes as the component that asks for most."""
    x, alpha = inputs(6, (6,)), 0.06
    whole = run(x, f=grid_of_features, alpha=alpha, n=3000, n0=200, bound=bound)
    assert whole.label.shape == whole.radius.shape == (6, 2, 3)
    most = np.zeros(6, int)
    for i in range(2):
        for j in range(3):
            alone = run(x, f=one_of_the_grid(i, j), alpha=alpha / 6, n=3000, n0=200, bound=bound)
            most = np.maximum(most, alone.votes.n)
            one = Votes(selection=whole.votes.selection[:, i, j], counts=whole.votes.counts[:, i, j], n=whole.votes.n)
            again = jaxsmooth.certificate(one, Gaussian(SIGMA), alpha=alpha / 6, bound=bound)
            for name in ("label", "radius", "p_lower"):
                np.testing.assert_array_equal(getattr(whole, name)[:, i, j], getattr(again, name))
            np.testing.assert_array_equal(whole.votes.selection[:, i, j], alone.votes.selection)
    np.testing.assert_array_equal(whole.votes.n, most)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"precision": 1.0}, ValueError, "precision must be a number"),
        ({"n0": 0}, ValueError, "n0 must be an integer"),
        ({"bound": "other"}, ValueError, "bound must be one of"),
    ],
)
def test_a_bad_mode_is_refused_by_name(settings, error, message):
    with pytest.raises(error, match=message):
        Within(**settings)


def test_no_inputs_give_no_certificates():
    assert run(np.zeros((0, 3), np.float32)).radius.shape == (0,)
