"""Components certified together: Holm by statsmodels, the family-wise error on components that depend on each other."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from jaxsmooth import (
    ABSTAIN,
    Gaussian,
    Laplace,
    LatticeGaussian,
    Votes,
    certificate,
    certify,
    certify_components,
    certify_radii,
    components_certificate,
    key_of_seed,
)
from tests.classifiers import grid_of_features

KEY = key_of_seed(0)
SIGMA, TAU, ALPHA = 0.5, 0.75, 0.05
NOISE = Gaussian(SIGMA)
REACH = SIGMA * stats.norm.ppf(TAU)


def random_votes(number=40, components=(3, 4), classes=3, n=100, seed=0):
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(classes, 0.2), size=(number, *components))
    counts = np.array([rng.multinomial(n, p) for p in shares.reshape(-1, classes)])
    counts = counts.reshape(number, *components, classes)
    return Votes(counts=counts, selection=counts, n=n)


def test_components_are_those_of_holm_s_method(monkeypatch):
    monkeypatch.setattr(gc, "collect", lambda: 0)  # statsmodels collects at each call: seconds, late in a run
    votes = random_votes()
    result = components_certificate(votes, NOISE, TAU, alpha=ALPHA)
    for i in range(40):
        k = votes.counts[i].max(axis=-1).ravel()
        rejected = multipletests(stats.binom.sf(k - 1, 100, TAU), alpha=ALPHA, method="holm")[0]
        np.testing.assert_array_equal(result.label[i].ravel() >= 0, rejected)
    certified = result.label >= 0
    assert 0.1 < certified.mean() < 0.9
    np.testing.assert_array_equal(result.label[certified], votes.counts.argmax(axis=-1)[certified])
    np.testing.assert_allclose(result.radius[certified], REACH, rtol=1e-6)
    assert (result.radius[certified].astype(np.float64) <= REACH).all()
    assert (result.radius[~certified] == 0).all()
    assert (result.p_lower[certified] <= TAU).all()


def test_more_are_certified_than_by_bonferroni():
    votes = random_votes(number=200)
    holm = components_certificate(votes, NOISE, TAU, alpha=ALPHA)
    single = certificate(votes, NOISE, alpha=ALPHA)
    bonferroni = (single.label >= 0) & (single.p_lower >= TAU)
    assert (holm.label[bonferroni] >= 0).all()
    assert (holm.label >= 0).sum() > bonferroni.sum()


@pytest.mark.parametrize("correlation", [0.0, 0.6, 1.0])
def test_all_certified_components_hold_together_as_often_as_claimed(correlation):
    """Half of the components have probability tau exactly, the others are certain; samples share a part of their noise.

    A certified component of the first half is false. The twin certifies each component at alpha.
    """
    trials, components, n = 3000, 20, 100
    rng = np.random.default_rng(1)
    hits = np.zeros((trials, components), int)
    for i in range(trials):
        shared = rng.normal(size=(n, 1))
        own = rng.normal(size=(n, components))
        z = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own
        hits[i] = (z < stats.norm.ppf(TAU)).sum(axis=0)
    hits[:, components // 2 :] = n
    counts = np.stack([hits, n - hits], axis=-1)
    selection = np.zeros_like(counts)
    selection[..., 0] = 1
    votes = Votes(counts=counts, selection=selection, n=n)
    label = components_certificate(votes, NOISE, TAU, alpha=ALPHA).label
    assert (label[:, components // 2 :] == 0).all()
    # Binomial of probability at most alpha: an alarm is false with probability below 1e-6.
    most = stats.binom.isf(1e-6, trials, ALPHA)
    assert (label[:, : components // 2] == 0).any(axis=1).sum() <= most
    if correlation < 1:
        broken = stats.binom.sf(hits - 1, n, TAU) <= ALPHA
        assert broken[:, : components // 2].any(axis=1).sum() > most


def test_the_class_is_chosen_by_other_votes():
    """Of two classes of probability 1/2 neither is above tau, whichever the counted votes would choose."""
    rng = np.random.default_rng(2)
    trials = 20_000
    counts = rng.multinomial(200, [0.5, 0.5], size=(trials, 1))
    fresh = rng.multinomial(10, [0.5, 0.5], size=(trials, 1))
    proper = components_certificate(Votes(counts=counts, selection=fresh, n=200), NOISE, 0.501, alpha=ALPHA)
    broken = components_certificate(Votes(counts=counts, selection=counts, n=200), NOISE, 0.501, alpha=ALPHA)
    most = stats.binom.isf(1e-6, trials, ALPHA)
    assert (proper.label >= 0).sum() <= most
    assert (broken.label >= 0).sum() > most


def test_it_is_the_certificate_of_its_votes_in_both_loops():
    x = np.full((2, 6), 0.3, np.float32)
    votes = certify(grid_of_features, NOISE, KEY, x, n0=10, n=200).votes
    expected = components_certificate(votes, NOISE, TAU)
    for compiled in (True, False):
        found = certify_components(grid_of_features, NOISE, KEY, x, TAU, n0=10, n=200, compiled=compiled)
        np.testing.assert_array_equal(found.label, expected.label)
        np.testing.assert_array_equal(found.radius, expected.radius)
    assert found.label.shape == (2, 2, 3)


def test_the_radius_is_below_that_of_a_known_classifier():
    x = np.full((200, 6), REACH * 1.5, np.float32)
    x[:, :3] = REACH * 0.9
    result = certify_components(grid_of_features, NOISE, KEY, x, TAU, n=400, alpha=ALPHA, batch_size=4096)
    # The first row of components holds within less than the radius of tau, the second within more.
    assert (result.label[:, 0] >= 0).any(axis=1).sum() <= stats.binom.isf(1e-6, 200, ALPHA)
    assert (result.label[:, 1] == 0).mean() > 0.5


def test_one_component_is_a_plain_test():
    counts = np.array([[90, 10], [80, 20]])
    result = components_certificate(Votes(counts=counts, selection=counts, n=100), NOISE, TAU, alpha=ALPHA)
    np.testing.assert_array_equal(result.label, np.where(stats.binom.sf([89, 79], 100, TAU) <= ALPHA, 0, ABSTAIN))


def test_votes_of_each_input_s_own_number_and_rounded_inputs():
    counts = np.array([[[95, 5]], [[190, 10]]])
    votes = Votes(counts=counts, selection=counts, n=np.array([100, 200]))
    assert (components_certificate(votes, NOISE, TAU).label == 0).all()
    lattice = LatticeGaussian(0.5, 0.125)
    lost = Votes(counts=counts, selection=counts, n=np.array([100, 200]), lost=np.array([0.1, 9.0]))
    found = components_certificate(lost, lattice, TAU)
    assert found.label.tolist() == [[0], [ABSTAIN]]
    assert found.radius[0, 0] < REACH - 0.09
    with pytest.raises(ValueError, match=r"votes\.lost must be"):
        components_certificate(votes, lattice, TAU)


def test_radii_of_other_noises():
    counts = np.full((1, 4, 2), 0)
    counts[..., 0] = 100
    result = components_certificate(Votes(counts=counts, selection=counts, n=100), Laplace(0.5), 0.8, alpha=ALPHA)
    np.testing.assert_allclose(result.radius, -0.5 * np.log(2 * 0.2), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"tau": 0.5}, ValueError, r"tau must be a number in \(1/2, 1\)"),
        ({"tau": 1.0}, ValueError, r"tau must be a number in \(1/2, 1\)"),
        ({"tau": float("nan")}, ValueError, "tau must"),
        ({"tau": "x"}, TypeError, "tau must"),
        ({"tau": [0.75]}, ValueError, "tau must"),
        ({"alpha": 0.7}, ValueError, "alpha"),
    ],
)
def test_what_is_not_as_described_is_refused_before_any_call(change, error, match):
    def never(_):
        raise AssertionError("f was called")

    arguments = {"tau": TAU, **change}
    tau = arguments.pop("tau")
    with pytest.raises(error, match=match):
        certify_components(never, NOISE, KEY, np.zeros((1, 6), np.float32), tau, **arguments)
    with pytest.raises(error, match=match):
        components_certificate(random_votes(), NOISE, tau, **arguments)


def test_votes_that_do_not_support_it_are_refused():
    x = np.full((1, 6), 0.3, np.float32)
    stopped = certify_radii(grid_of_features, NOISE, KEY, x, [0.1], n=500).votes
    with pytest.raises(ValueError, match="rule 'fixed'"):
        components_certificate(stopped, NOISE)
    with pytest.raises(ValueError, match="selection votes"):
        components_certificate(Votes(counts=np.ones((1, 2, 2), int), n=2), NOISE)
    with pytest.raises(TypeError, match="no traced values"):
        jax.jit(lambda x: certify_components(grid_of_features, NOISE, KEY, x).label)(jnp.asarray(x))


def test_too_few_votes_to_certify_anything_are_refused_before_a_call():
    def never(x):
        if not isinstance(x, jax.core.Tracer):
            raise AssertionError("called")
        return jnp.stack([x, -x], axis=-1)

    x = np.zeros((1, 4000), np.float32)
    least = 500  # the least n with 0.97^n at most 0.001 / 4000
    assert 0.97**least <= 0.001 / 4000 < 0.97 ** (least - 1)
    with pytest.raises(ValueError, match=f"n must be at least {least} for 4000 components"):
        certify_components(never, NOISE, KEY, x, 0.97)
    found = certify_components(lambda x: jnp.stack([0 * x, x * 0 - 1], axis=-1), NOISE, KEY, x, 0.97, n=least)
    assert (found.label == 0).all()


def test_no_inputs_have_no_components():
    votes = Votes(counts=np.zeros((0, 3, 2), int), selection=np.zeros((0, 3, 2), int), n=100)
    assert components_certificate(votes, NOISE, TAU).label.shape == (0, 3)
    assert certify_components(grid_of_features, NOISE, KEY, np.zeros((0, 6), np.float32), TAU).label.shape == (0, 2, 3)
