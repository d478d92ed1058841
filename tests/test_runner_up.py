"""The bound by the runner-up: exact against SciPy, never below what alpha / 2 costs, true for known classifiers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from jaxsmooth import ABSTAIN, Gaussian, Laplace, Votes, certificate, certify
from jaxsmooth.bounds import clopper_pearson_lower

N, ALPHA, SIGMA = 500, 0.01, 0.5


def random_counts(number=3000, classes=4):
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(classes + 1, 0.3), size=number)
    return np.array([rng.multinomial(N, p)[:classes] for p in shares], np.int32)


def decide(counts, selection=None, **settings):
    selection = counts if selection is None else selection
    votes = Votes(selection=selection, counts=counts, n=N)
    return certificate(votes, Gaussian(SIGMA), **{"alpha": ALPHA, "bound": "runner_up", **settings})


def radii_by_scipy(counts, label):
    k = counts[np.arange(len(counts)), label]
    rest = counts.copy()
    rest[np.arange(len(counts)), label] = 0
    rival = np.maximum(rest.max(axis=1), N - counts.sum(axis=1))
    lower = clopper_pearson_lower(k, N, ALPHA / 2)
    upper = np.where(rival == N, 1.0, stats.beta.isf(ALPHA / 2, rival + 1, np.maximum(N - rival, 1)))
    return SIGMA / 2 * (special.ndtri(lower) - special.ndtri(upper))


def test_radii_are_those_of_scipy_rounded_down():
    counts = random_counts()
    label = counts.argmax(axis=1)
    result = decide(counts)
    expected = radii_by_scipy(counts, label)
    np.testing.assert_array_equal(result.label, np.where(expected > 1e-6, label, ABSTAIN))
    radius = np.asarray(result.radius, np.float64)
    assert (radius <= np.maximum(expected, 0)).all()
    np.testing.assert_allclose(radius, np.maximum(expected, 0), atol=1e-6)


def test_it_is_at_least_cohen_s_at_half_of_alpha_and_more_where_classes_share_the_rest():
    counts = random_counts()
    runner_up, cohen = decide(counts), decide(counts, alpha=ALPHA / 2, bound="cohen")
    assert (np.asarray(runner_up.radius) >= np.asarray(cohen.radius) - 1e-6).all()
    assert int((runner_up.label >= 0).sum()) > int((cohen.label >= 0).sum())


@pytest.mark.parametrize("shares", [(0.5, 0.3, 0.2), (0.45, 0.45, 0.1), (0.34, 0.33, 0.33), (0.9, 0.06, 0.04)])
def test_false_certificates_are_as_rare_as_claimed(shares):
    """Three classes whose probabilities are known: the true radius is that of the two largest."""
    trials, rng = 20_000, np.random.default_rng(1)
    counts = rng.multinomial(N, shares, size=trials).astype(np.int32)
    selection = np.zeros_like(counts)
    selection[:, 0] = 1
    result = decide(counts, selection)
    true = SIGMA / 2 * (special.ndtri(shares[0]) - special.ndtri(shares[1]))
    false = int(((result.label == 0) & (np.asarray(result.radius, np.float64) > true)).sum())
    # Binomial of probability at most alpha: an alarm is false with probability below 1e-6.
    assert false <= stats.binom.isf(1e-6, trials, ALPHA)


def test_invalid_votes_are_a_rival():
    counts = np.array([[300, 0, 0], [300, 200, 0]], np.int32)
    result = decide(counts)
    assert result.radius[0] == result.radius[1] > 0


def test_it_works_in_certify_under_jit_and_vmap():
    def f(x):
        return jnp.stack([x[:, 0], x[:, 1], -x[:, 0]], axis=1)

    x = jnp.array([[1.0, 0.0], [0.5, 0.4]])

    def run(sigma):
        return certify(f, Gaussian(sigma), jax.random.key(0), x, n=1000, bound="runner_up").radius

    sigmas = jnp.array([0.25, 0.5])
    np.testing.assert_array_equal(jax.vmap(jax.jit(run))(sigmas), [run(sigma) for sigma in sigmas])


@pytest.mark.parametrize(
    ("noise", "bound", "error"), [(Gaussian(1.0), "second", ValueError), (Laplace(1.0), "runner_up", TypeError)]
)
def test_bad_bounds_are_refused_by_name(noise, bound, error):
    counts = np.ones((1, 2), int)
    with pytest.raises(error, match="bound"):
        certificate(Votes(selection=counts, counts=counts, n=2), noise, bound=bound)
    with pytest.raises(error, match="bound"):
        certify(lambda x: x, noise, jax.random.key(0), np.zeros((1, 2)), n=2, bound=bound)
