"""The bound at every number of votes: its exact error over a horizon, its formula by brute force, its driver."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mpmath import mp
from scipy import integrate, stats

from jaxsmooth import (
    ABSTAIN,
    Anytime,
    Gaussian,
    anytime_lower_bound,
    certify_anytime,
    certify_dataset,
    count_votes,
    decision_keys,
    read_votes,
)
from jaxsmooth.bounds import clopper_pearson_lower
from tests.classifiers import grid_of_features, inputs, one_of_the_grid


@pytest.mark.parametrize("p", [0.5, 0.8, 0.97])
@pytest.mark.parametrize("alpha", [0.2, 0.01])
def test_the_probability_that_any_bound_up_to_a_horizon_fails_is_below_alpha(p, alpha):
    alive, failed = np.ones(1), 0.0
    for n in range(1, 1001):
        alive = np.convolve(alive, [1 - p, p])
        # Below a share of p the bound is below it; beyond the first bar nothing is left.
        possible = np.flatnonzero((alive > 0) & (np.arange(n + 1) > n * p))
        above = possible[anytime_lower_bound(possible, n, alpha) > p]
        failed += alive[above].sum()
        alive[above] = 0
    assert failed <= alpha
    assert failed > alpha / 20  # it does fail: the test would see a bound that is too high


@pytest.mark.parametrize(("k", "n"), [(1, 1), (3, 4), (10, 10), (30, 40), (75, 100), (200, 220)])
def test_it_is_the_infimum_of_what_the_mixture_does_not_refute(k, n):
    """The evidence by numerical integration over the restricted Jeffreys prior, on a fine mesh of probabilities."""
    alpha = 0.05

    def evidence(q):
        def ratio(t):  # t = arcsin(sqrt(theta)) makes the prior uniform
            theta = np.sin(t) ** 2
            return np.exp(k * np.log(theta / q) + (n - k) * np.log(max(1 - theta, 1e-300) / (1 - q)))

        low = np.arcsin(np.sqrt(q))
        return integrate.quad(ratio, low, np.pi / 2, limit=200, epsabs=1e-10)[0] / (np.pi / 2 - low)

    mesh = np.linspace(max(1e-4, np.exp(-600 / k)), 1 - 1e-4, 4000)
    refuted = np.array([evidence(q) >= 1 / alpha for q in mesh])
    infimum = mesh[np.flatnonzero(~refuted)[0]]
    bound = float(anytime_lower_bound(k, n, alpha))
    assert infimum - 3e-4 <= bound <= infimum + 1e-9


def test_it_grows_with_successes_and_stays_below_the_bound_of_fixed_n():
    for n in (10, 1000, 100_000):
        counts = np.unique(np.linspace(0, n, 200).astype(int))
        bounds = anytime_lower_bound(counts, n, 0.001)
        assert (np.diff(bounds) >= 0).all()
        assert (bounds <= clopper_pearson_lower(counts, n, 0.001)).all()
    # log evidence stays finite where probabilities underflow.
    assert 0.99 < anytime_lower_bound(10**9, 10**9, 1e-9) < 1
    assert anytime_lower_bound(0, 10**9, 1e-9) == 0


@pytest.mark.parametrize(("count", "n"), [(2, 1), (-1, 3), (0, 0), (0.5, 3)])
def test_bad_counts_are_refused(count, n):
    with pytest.raises(ValueError, match="count must hold integers"):
        anytime_lower_bound(count, n, 0.01)


def sign(x):
    return jnp.stack([x[:, 0], -x[:, 0]], axis=1)


def test_certificates_grow_with_the_votes_and_are_true():
    x = np.zeros((40, 3), np.float32)
    x[:, 0] = np.linspace(-1, 1, 40)
    results = list(itertools.islice(certify_anytime(sign, Gaussian(0.5), jax.random.key(0), x, alpha=0.01), 12))
    assert [result.votes.n for result in results] == [256 * i for i in range(1, 13)]
    assert {result.votes.rule for result in results} == {"anytime"}
    for before, after in itertools.pairwise(results):
        assert (before.radius <= after.radius).all()
        assert ((before.label == after.label) | (before.label == ABSTAIN)).all()
    last = results[-1]
    false = (last.label >= 0) & ((last.label != (x[:, 0] < 0)) | (last.radius > np.abs(x[:, 0])))
    # At most alpha for each of 40: more than 5 have probability below 1e-5.
    assert int(false.sum()) <= stats.binom.isf(1e-5, 40, 0.01)
    assert float((last.radius > 0).mean()) > 0.8


@pytest.mark.parametrize(("n", "looks"), [(300, [100, 200, 300]), (250, [100, 200, 250]), (40, [40])])
def test_no_input_gets_more_than_n_votes(n, looks, tmp_path):
    seen = list[int]()

    def until(result):
        seen.append(result.votes.n)
        return False

    data = [(np.full(3, 0.2, np.float32), 0)]
    mode = Anytime(until, votes=100, n=n)
    (row,) = certify_dataset(
        sign, Gaussian(0.5), jax.random.key(0), data, tmp_path / "run.tsv", mode=mode, progress=False
    )
    assert (row.votes, seen) == (n, looks[:-1])
    stored = read_votes(tmp_path / "run.tsv.votes")
    assert stored.votes.counts.sum() == n
    (_, estimation_key), x = decision_keys(jax.random.key(0)), data[0][0][None]
    hits = [count_votes(sign, Gaussian(0.5), estimation_key, x, n=k)[0, 0] for k in looks]
    bounds = [anytime_lower_bound(k, k_of, 1e-3) for k, k_of in zip(hits, looks, strict=True)]
    np.testing.assert_allclose(stored.certificate.p_lower, [max(bounds)], rtol=1e-6)


def test_certificates_do_not_depend_on_batches_or_on_how_f_is_called():
    x = np.array([[0.4, 0.0], [-0.2, 1.0]], np.float32)

    def third(**changes):
        f = changes.pop("f", sign)
        run = certify_anytime(f, Gaussian(0.5), jax.random.key(0), x, votes=100, **changes)
        return list(itertools.islice(run, 3))[-1]

    expected = third()
    for other in (third(batch_size=7), third(f=lambda x: np.asarray(sign(x)), compiled=False)):
        np.testing.assert_array_equal(other.radius, expected.radius)
        np.testing.assert_array_equal(other.votes.counts, expected.votes.counts)


def test_votes_of_a_certificate_are_those_of_count_votes():
    x = np.array([[0.4, 0.0], [-0.2, 1.0]], np.float32)
    noise, key = Gaussian(0.5), jax.random.key(0)
    result = list(itertools.islice(certify_anytime(sign, noise, key, x, n0=30, votes=100), 3))[-1]
    for stream, votes, n in zip(
        decision_keys(key), (result.votes.selection, result.votes.counts), (30, 300), strict=True
    ):
        np.testing.assert_array_equal(votes, count_votes(sign, noise, stream, x, n=n))


def test_components_are_decided_at_their_share_of_alpha():
    x, noise, key = inputs(3, (6,)), Gaussian(0.5), jax.random.key(0)
    settings = {"n0": 50, "votes": 200}
    whole = list(itertools.islice(certify_anytime(grid_of_features, noise, key, x, alpha=0.06, **settings), 3))
    assert whole[-1].label.shape == whole[-1].radius.shape == whole[-1].p_lower.shape == (3, 2, 3)
    for i, j in itertools.product(range(2), range(3)):
        alone = certify_anytime(one_of_the_grid(i, j), noise, key, x, alpha=0.06 / 6, **settings)
        for result, one in zip(whole, alone, strict=False):
            for name in ("label", "radius", "p_lower"):
                np.testing.assert_array_equal(getattr(result, name)[:, i, j], getattr(one, name))
            np.testing.assert_array_equal(result.votes.counts[:, i, j], one.votes.counts)


def test_bad_arguments_are_refused_before_the_first_certificate():
    x = np.zeros((1, 2))
    with pytest.raises(ValueError, match="alpha must be a number"):
        certify_anytime(sign, Gaussian(0.5), jax.random.key(0), x, alpha=1.0)
    with pytest.raises(ValueError, match="votes must be an integer"):
        certify_anytime(sign, Gaussian(0.5), jax.random.key(0), x, votes=0)
    with pytest.raises(TypeError, match="runs on the host and takes no traced values"):
        jax.jit(lambda x: next(certify_anytime(sign, Gaussian(0.5), jax.random.key(0), x)).label)(x)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"until": 3}, TypeError, "until must be a function"),
        ({"n0": 0}, ValueError, "n0 must be an integer"),
        ({"votes": 0}, ValueError, "votes must be an integer"),
        ({"n": 0.5}, TypeError, "n must be an integer"),
    ],
)
def test_a_bad_mode_is_refused_by_name(settings, error, message):
    with pytest.raises(error, match=message):
        Anytime(**settings)


def evidence(q, k, n):
    """Return the log of the evidence against a probability of at most q, by quadrature in 40 digits."""
    with mp.workdps(40):
        a, b, q = mp.mpf(k) + 0.5, mp.mpf(n - k) + 0.5, mp.mpf(q)
        peak = a / (a + b)
        width = mp.sqrt(peak * (1 - peak) / (a + b))
        top = (a - 1) * mp.log(peak) + (b - 1) * mp.log(1 - peak)
        points = [q, *(x for x in (peak + s * width for s in (-6, -3, 0, 3, 6, 14)) if x > q)]
        posterior = top + mp.log(mp.quad(lambda t: mp.exp((a - 1) * mp.log(t) + (b - 1) * mp.log(1 - t) - top), points))
        prior = mp.log(mp.betainc(mp.mpf(0.5), mp.mpf(0.5), q, 1))
        return float(posterior - prior - k * mp.log(q) - (n - k) * mp.log(1 - q))


@pytest.mark.parametrize("n", [10**6, 10**8, 10**9])
@pytest.mark.parametrize("p", [0.5001, 0.9])
def test_the_bound_of_very_many_votes_is_refuted_by_exact_evidence(n, p):
    """What the last digits of large logarithms may err by is taken off: the exact evidence is never too small."""
    alpha, k = 1e-3, int(n * p)
    low = float(anytime_lower_bound([k], n, alpha)[0])
    beyond = evidence(low, k, n) + np.log(alpha)
    assert 0 <= beyond <= 1e-13 * n + 1e-7
    assert evidence(low * (1 + 1e-7 / np.sqrt(n / 10**6)), k, n) + np.log(alpha) < beyond
