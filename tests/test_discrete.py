"""Noises of norm 0: published thresholds, linear programs over all outcomes as oracle, exact draws, whole radii."""

import itertools
import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

import jaxsmooth
from jaxsmooth import (
    Ablation,
    BitFlips,
    DiscreteNoise,
    Gaussian,
    RandomClassifier,
    Replacement,
    Votes,
    add_noise,
    certificate,
    certify,
    certify_anytime,
    certify_changed,
    certify_components,
    certify_dataset,
    certify_levels,
    certify_radii,
    certify_within,
    check_classifier,
    count_votes,
    draw_curves,
    key_of_seed,
    losses,
    predict,
    read_votes,
    report_table,
    stream_votes,
)
from tests.guarantees.alarms import ALPHA, FALSE_ALARM, raises_alarm

KEY = key_of_seed(0)
MASKED = Ablation((24,), 6, mask=0)

# rho^-1(0.5) of r = 1, 2, ... as published in github.com/guanghelee/neurips19-certificates-of-robustness.
# ImageNet has 256 values, at keep = 0.2 and 0.5; binarised MNIST has two, at keep = 0.8.
PUBLISHED = {
    Replacement(256, 0.2): [
        "0.69686274509803921569",
        "0.85373533256439830835",
        "0.97898829668830238747",
        "0.99493645881485561183",
        "0.99619020439204454170",
        "0.99744272681434420339",
        "0.99864514829441225005",
        "0.99976849778447424675",
        "0.99993970389648837618",
    ],
    Replacement(256, 0.5): [
        "0.99803921568627450981",
        "0.99901576316801230297",
        "0.99998848105178249693",
        "0.99999708638368616099",
    ],
    Replacement(2, 0.8): [
        "0.875",
        "0.96875",
        "0.9921875",
        "0.99275",
        "0.9969875",
        "0.999006875",
        "0.99970371875",
        "0.9999163296875",
        "0.99991875875",
        "0.9999654816875",
    ],
    BitFlips(0.2, 0.2): ["0.875", "0.96875", "0.9921875", "0.99275", "0.9969875"],
}


@pytest.mark.parametrize("noise", PUBLISHED, ids=str)
def test_thresholds_are_the_published_ones(noise):
    published = [float(value) for value in PUBLISHED[noise]]
    changes = np.arange(1, len(published) + 1)
    # The published ones have an error of 1e-20, and ours 2^-64 times the number of values and of features.
    np.testing.assert_array_equal(noise.unit_radius(np.array(published) + 4e-9), changes)
    np.testing.assert_array_equal(noise.unit_radius(np.array(published) - 4e-9), changes - 1)


@pytest.mark.parametrize("changes", [1, 2, 3, 5])
def test_imagenet_thresholds_follow_from_a_closed_form(changes):
    """A change of r features: i of them look like x, j like the other input, with a multinomial probability."""
    keep, values = Fraction(1, 5), 256
    other = (1 - keep) / (values - 1)
    regions = []
    for i, j in itertools.product(range(changes + 1), repeat=2):
        if i + j <= changes:
            ways = math.comb(changes, i) * math.comb(changes - i, j)
            rest = ((values - 2) * other) ** (changes - i - j)
            regions.append((ways * keep**i * other**j * rest, ways * keep**j * other**i * rest))
    used = kept = Fraction(0)
    for p, q in sorted(regions, key=lambda pair: pair[1] / pair[0]):
        if kept + q > Fraction(1, 2):
            break
        used, kept = used + p, kept + q
    edge = float(used + (Fraction(1, 2) - kept) * p / q)
    noise = Replacement(values, 0.2)
    assert noise.unit_radius(edge + 4e-9) == changes
    assert noise.unit_radius(edge - 4e-9) == changes - 1


def outcomes_of_ablation(x):
    return {
        tuple(v if i in kept else "masked" for i, v in enumerate(x)): 1 / math.comb(5, 2)
        for kept in itertools.combinations(range(5), 2)
    }


def outcomes_of_replacement(x):
    def of(z):
        same = sum(a == b for a, b in zip(x, z, strict=True))
        return 0.5**same * 0.25 ** (3 - same)

    return {z: of(z) for z in itertools.product(range(3), repeat=3)}


def outcomes_of_flips(x):
    chance = {(0, 1): 0.1, (0, 0): 0.9, (1, 0): 0.4, (1, 1): 0.6}
    return {z: math.prod(chance[pair] for pair in zip(x, z, strict=True)) for z in itertools.product((0, 1), repeat=4)}


CASES = [
    (Ablation((5,), 2, -1), outcomes_of_ablation, 3, 5),
    (Replacement(3, 0.5), outcomes_of_replacement, 3, 3),
    (BitFlips(0.1, 0.4), outcomes_of_flips, 2, 4),
]


def least_left(p, one, other):
    """The least that a classifier of probability p under `one` has under `other`, by a linear program."""
    places = list(dict.fromkeys([*one, *other]))
    under = np.array([[outcome.get(z, 0.0) for z in places] for outcome in (one, other)])
    found = optimize.linprog(under[1], A_eq=under[:1], b_eq=[p], bounds=(0, 1), method="highs")
    assert found.success
    return found.fun


@pytest.mark.parametrize(("noise", "outcomes", "values", "features"), CASES, ids=["ablation", "replacement", "flips"])
def test_no_classifier_is_worse_than_the_radius_says_and_one_is_as_bad(noise, outcomes, values, features):
    every = list(itertools.product(range(values), repeat=features))
    rng = np.random.default_rng(0)
    some = [every[i] for i in rng.permutation(len(every))[:6]]
    pairs = [(x, z, sum(a != b for a, b in zip(x, z, strict=True))) for x in some for z in every]
    seen = set()
    for p in [0.55, 0.71, 0.81, 0.91, 0.96, 0.995]:
        radius = int(noise.unit_radius(p))
        seen.add(radius)
        left = {}
        for x, z, changes in pairs:
            if 0 < changes <= radius + 1:
                worst = least_left(p, outcomes(x), outcomes(z))
                left[changes] = min(left.get(changes, 1.0), worst)
        assert all(left[changes] > 0.5 for changes in range(1, min(radius, features) + 1))
        # Twin: one more change is too many, for some pair and classifier.
        if radius + 1 <= features:
            assert left[radius + 1] <= 0.5 + 1e-9
    assert len(seen) > 1


def test_ablation_is_counted_in_whole_numbers():
    noise = Ablation((784,), 45, -1)
    for changes in (1, 3, 9):
        edge = Fraction(3, 2) - Fraction(math.comb(784 - changes, 45), math.comb(784, 45))
        assert noise.unit_radius(float(edge) + 1e-12) == changes
        assert noise.unit_radius(float(edge) - 1e-12) == changes - 1
    np.testing.assert_array_equal(noise.unit_radius([0.0, 0.5, 0.5000001]), [-1, -1, 0])
    # With one position kept, a change of r of d positions is seen with probability r / d.
    assert Ablation((10,), 1, -1).unit_radius(0.81) == 3
    assert Ablation((10,), 10, -1).unit_radius(1.0) == 0
    assert Ablation((2, 5), 1, -1).unit_radius(1.0) == 4


@pytest.mark.parametrize("noise", [Ablation((784,), 45, -1), Replacement(256, 0.2), BitFlips(0.1, 0.3)], ids=str)
def test_a_bound_at_an_edge_of_another_radius_is_not_rounded_up(noise):
    p = np.linspace(0, 1, 4001)
    radius = noise.unit_radius(p)
    assert (np.diff(radius) >= 0).all()
    np.testing.assert_array_equal(radius, np.floor(radius))
    for n in (50, 997):
        counts = np.stack([np.arange(n + 1), n - np.arange(n + 1)], axis=1)
        selection = np.broadcast_to([9, 1], counts.shape)
        on_host = certificate(Votes(counts=counts, selection=selection, n=n), noise, alpha=0.01)
        bound = stats.beta.ppf(0.01, np.arange(n + 1), n - np.arange(n + 1) + 1)
        expected = noise.unit_radius(np.where(np.arange(n + 1) > 0, bound, 0.0) * (1 - 1e-13))
        np.testing.assert_array_equal(on_host.radius, np.maximum(expected, 0))
        np.testing.assert_array_equal(on_host.label, np.where(expected >= 0, 0, -1))
        traced = jax.jit(lambda c, s, n=n: certificate(Votes(counts=c, selection=s, n=n), noise, alpha=0.01))
        jax.tree.map(np.testing.assert_array_equal, traced(counts, selection).radius, on_host.radius)
        # One n for each input takes another way through the host.
        each = certificate(Votes(counts=counts, selection=selection, n=np.full(n + 1, n)), noise, alpha=0.01)
        np.testing.assert_array_equal(each.radius, on_host.radius)


def test_kept_positions_are_drawn_uniformly():
    noise = Ablation((6,), 2, -1)
    n = 60_000
    drawn = np.asarray(noise.sample(jax.random.key(5), (n, 6)))
    assert (drawn.sum(axis=1) == 2).all()
    place = {pair: i for i, pair in enumerate(itertools.combinations(range(6), 2))}
    found = np.bincount([place[tuple(np.flatnonzero(row))] for row in drawn], minlength=15)
    assert stats.chisquare(found).pvalue > FALSE_ALARM
    # Twin: 15 pairs of which one comes a sixth more often.
    skewed = found + np.where(np.arange(15) == 0, n // 90, 0)
    assert stats.chisquare(skewed).pvalue < FALSE_ALARM
    # Positions of neighbouring samples are independent.
    first, second = drawn[:-1, 0], drawn[1:, 0]
    table = np.array([[np.sum((first == a) & (second == b)) for b in (0, 1)] for a in (0, 1)])
    assert stats.chi2_contingency(table).pvalue > FALSE_ALARM


@pytest.mark.parametrize("kept", [1, 2, 31, 63, 64])
def test_as_many_positions_are_kept_as_asked_for(kept):
    drawn = Ablation((8, 8, 1), kept, -1).sample(jax.random.key(1), (50, 8, 8, 3))
    np.testing.assert_array_equal(np.asarray(drawn)[..., 0].sum(axis=(1, 2)), kept)
    np.testing.assert_array_equal(drawn[..., 0], drawn[..., 2])
    first = Ablation((1, 8, 8), kept, -1).sample(jax.random.key(1), (50, 3, 8, 8))
    np.testing.assert_array_equal(np.asarray(first)[:, 1].sum(axis=(1, 2)), kept)


@pytest.mark.parametrize(("values", "keep"), [(2, 0.7), (5, 0.3), (5, 0.999)])
def test_features_are_replaced_with_the_named_probabilities(values, keep):
    noise = Replacement(values, keep)
    n = 100_000
    x = jnp.full((n, 1), values - 1, jnp.int32)
    found = np.bincount(np.asarray(noise.add(x, noise.sample(jax.random.key(2), (n, 1))))[:, 0], minlength=values)
    expected = np.full(values, (1 - keep) / (values - 1) * n)
    expected[values - 1] = keep * n
    assert stats.chisquare(found, expected).pvalue > FALSE_ALARM
    wrong = np.full(values, (1 - keep - 0.001) / (values - 1) * n) if keep > 0.99 else np.full(values, n / values)
    wrong[values - 1] = n - wrong[: values - 1].sum()
    assert stats.chisquare(found, np.maximum(wrong, 1e-3) * n / np.maximum(wrong, 1e-3).sum()).pvalue < FALSE_ALARM


def test_bits_flip_with_probabilities_of_their_own():
    noise = BitFlips(0.02, 0.4)
    n = 100_000
    for bit, chance in ((0, 0.02), (1, 0.4)):
        x = jnp.full((n, 1), bit, jnp.uint8)
        flipped = int((noise.add(x, noise.sample(jax.random.key(3), (n, 1))) != x).sum())
        assert stats.binomtest(flipped, n, chance).pvalue > FALSE_ALARM
        assert stats.binomtest(flipped, n, chance + 0.02).pvalue < FALSE_ALARM


@pytest.mark.parametrize("noise", [Ablation((784,), 45, -1), Replacement(256, 0.2), BitFlips(0.1, 0.3)], ids=str)
def test_certificates_are_false_as_rarely_as_claimed(noise):
    """The true probability is the largest that certifies one change less. The twin takes the share for the bound."""
    number, n = 20_000, 200
    grid = np.linspace(0.5, 1, 200_001)
    changes = int(noise.unit_radius(0.9)) + 1
    edge = grid[np.searchsorted(noise.unit_radius(grid), changes) - 1]
    assert noise.unit_radius(edge) == changes - 1
    k = np.random.default_rng(0).binomial(n, edge, number)
    counts = np.stack([k, n - k], axis=1)
    votes = Votes(counts=counts, selection=np.broadcast_to([9, 1], counts.shape), n=n)
    false = (certificate(votes, noise, alpha=ALPHA).radius >= changes).sum()
    assert not raises_alarm(false, number, ALPHA)
    assert false > 0
    assert raises_alarm((noise.unit_radius(k / n) >= changes).sum(), number, ALPHA)


def test_the_runner_up_s_bound_is_that_of_the_paper():
    """The largest r with L - D_r > U + D_r, in exact fractions, and the same under jit."""
    noise = Ablation((784,), 45, -1)
    rng = np.random.default_rng(0)
    n = 500
    counts = rng.multinomial(n, rng.dirichlet(np.full(5, 0.3), 400))
    votes = Votes(counts=counts, selection=counts, n=n)
    result = certificate(votes, noise, alpha=0.01, bound="runner_up")
    effect = [1 - Fraction(math.comb(784 - r, 45), math.comb(784, 45)) for r in range(20)]
    for i in range(400):
        top, rival = np.sort(counts[i])[[-1, -2]]
        lower = stats.beta.ppf(0.005, top, n - top + 1)
        upper = stats.beta.ppf(0.995, rival + 1, n - rival)
        expected = sum(2 * effect[r] < Fraction(lower - 1e-7) - Fraction(upper) for r in range(20)) - 1
        assert result.label[i] == (counts[i].argmax() if expected >= 0 else -1)
        assert result.radius[i] == max(expected, 0)
    cohen = certificate(votes, noise, alpha=0.005)
    assert (result.radius >= cohen.radius).all()
    assert (result.radius > cohen.radius).mean() > 0.2
    traced = jax.jit(lambda c: certificate(Votes(counts=c, selection=c, n=n), noise, alpha=0.01, bound="runner_up"))
    np.testing.assert_array_equal(traced(counts).radius, result.radius)
    np.testing.assert_array_equal(traced(counts).label, result.label)
    each = certificate(Votes(counts=counts, selection=counts, n=np.full(400, n)), noise, alpha=0.01, bound="runner_up")
    np.testing.assert_array_equal(each.radius, result.radius)


def test_certificates_by_the_runner_up_are_false_as_rarely_as_claimed():
    """Three classes whose two largest are 2 D_1 apart: one change may make them equal. The twin takes shares."""
    noise = Ablation((784,), 45, -1)
    number, n = 20_000, 400
    apart = 2 * 45 / 784
    shares = np.array([0.4 + apart / 2, 0.4 - apart / 2, 0.2])
    counts = np.random.default_rng(0).multinomial(n, shares, number)
    votes = Votes(counts=counts, selection=np.broadcast_to([9, 1, 0], counts.shape), n=n)
    false = (certificate(votes, noise, alpha=ALPHA, bound="runner_up").radius >= 1).sum()
    assert not raises_alarm(false, number, ALPHA)
    top, second = counts[:, 0] / n, counts[:, 1] / n
    assert raises_alarm((top - second > apart).sum(), number, ALPHA)


def counts_threes(x):
    """Class 0 where more tokens are 3 than 2."""
    return jnp.stack([(x == 3).sum(axis=-1), (x == 2).sum(axis=-1)], axis=-1).astype(jnp.float32)


def tokens(dtype=np.int32):
    rows = [[3] * 20 + [2] * 4, [3] * 16 + [2] * 8, [2] * 22 + [3] * 2, [3] * 13 + [2] * 11]
    return np.array(rows, dtype)


@pytest.mark.parametrize("noise", [MASKED, Replacement(5, 0.4)], ids=str)
def test_the_votes_of_integers_do_not_depend_on_how_they_are_counted(noise):
    x = tokens()
    expected = count_votes(counts_threes, noise, KEY, x, n=500)
    for dtype in (np.int64, np.uint8, np.int16):
        np.testing.assert_array_equal(count_votes(counts_threes, noise, KEY, x.astype(dtype), n=500), expected)
    np.testing.assert_array_equal(stream_votes(counts_threes, noise, KEY, x, n=500, batch_size=7), expected)
    np.testing.assert_array_equal(jax.jit(lambda x: count_votes(counts_threes, noise, KEY, x, n=500))(x), expected)
    alone = [count_votes(counts_threes, noise, KEY, x[i : i + 1], n=500, ids=[i])[0] for i in range(4)]
    np.testing.assert_array_equal(alone, expected)
    drawn = RandomClassifier(lambda x, _: counts_threes(x))
    np.testing.assert_array_equal(count_votes(drawn, noise, KEY, x, n=500), expected)


def test_large_integers_stay_as_they_are():
    """Token ids beyond 2^24 are no float32 numbers."""
    big = 2**30 + 1
    x = np.full((1, 6), big, np.int32)
    found = count_votes(lambda x: jnp.stack([(x == big).sum(-1), (x == big - 1).sum(-1)], -1), MASKED_6, KEY, x, n=50)
    np.testing.assert_array_equal(found, [[50, 0]])


MASKED_6 = Ablation((6,), 3, -1)


def test_positions_name_every_axis_of_an_input():
    """With fewer axes each channel would get a mask of its own, and the radius would count entries, not positions."""

    def f(x):
        return jnp.stack([(x != 7).all(axis=(1, 2, 3)), (x == 7).any(axis=(1, 2, 3))], axis=1).astype(jnp.float32)

    x = np.ones((1, 3, 8, 8), np.float32)
    for positions in ((8, 8), (8,), (1,), (3, 8, 8, 1)):
        noise = Ablation(positions, 1, mask=0)
        for run in (
            lambda noise=noise: certify(f, noise, KEY, x),
            lambda noise=noise: jax.jit(lambda x: certify(f, noise, KEY, x))(x),
            lambda noise=noise: predict(f, noise, KEY, x),
            lambda noise=noise: add_noise(noise, KEY, x),
            lambda noise=noise: stream_votes(f, noise, KEY, x, n=5),
        ):
            with pytest.raises(ValueError, match=r"shape of an input, \(3, 8, 8\), with as many axes"):
                run()
    radius = int(certify(f, Ablation((1, 8, 8), 10, mask=0), KEY, x, n=5000).radius[0])
    assert radius > 0
    # As many changed pixels, in all channels, leave the class.
    changed = x.copy()
    changed.reshape(1, 3, 64)[:, :, :radius] = 7
    assert predict(f, Ablation((1, 8, 8), 10, mask=0), KEY, changed).label[0] == 0
    with pytest.raises(ValueError, match="with as many axes"):
        add_noise(Ablation((28, 28, 1), 5, mask=0), KEY, np.ones((28, 28, 28), np.float32))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Ablation((24,), 1, mask=0), Ablation((24,), 24, mask=0)),
        (Ablation((24,), 6, mask=0), Ablation((24,), 6, mask=1)),
        (Replacement(5, 0.99), Replacement(5, 0.5)),
    ],
    ids=str,
)
def test_a_state_is_of_one_noise(first, second):
    x = tokens()[:1]
    state = certify_radii(counts_threes, first, KEY, x, [1], n0=10, n=1000, most_votes=64).state
    with pytest.raises(ValueError, match="same x, ids, key, noise"):
        certify_radii(counts_threes, second, KEY, x, [1], n0=10, n=1000, state=state)


def test_a_noise_that_nothing_tells_from_another_one_is_refused(tmp_path):
    class Kernel(DiscreteNoise):
        def __init__(self, rate):
            self.rate = rate

        def sample(self, key, shape, dtype=jnp.int32):
            return jax.random.bernoulli(key, self.rate, shape).astype(dtype)

        def add(self, x, noise):
            return x ^ noise

        def regions(self, changes):
            return [[(changes, changes)]]

    with pytest.raises(TypeError, match="noise must be a dataclass with all of its settings as fields"):
        certify(counts_threes, jax.tree_util.register_static(Kernel)(0.1), KEY, tokens())

    @jax.tree_util.register_static
    @dataclass(frozen=True)
    class Told(Kernel):
        rate: float

    x, y = tokens() % 2, np.zeros(4, int)
    settings = {"mode": jaxsmooth.Fixed(n=100, n0=10), "progress": False}
    certify_dataset(counts_threes, Told(0.1), KEY, (x, y), tmp_path / "run.tsv", **settings)
    # Their words in the log are the same: float32 has no number between them.
    with pytest.raises(ValueError, match="noise"):
        certify_dataset(counts_threes, Told(0.1 + 1e-9), KEY, (x, y), tmp_path / "run.tsv", **settings)
    run = read_votes(tmp_path / "run.tsv.votes")
    with pytest.raises(ValueError, match="noise must be that of the run"):
        certify_changed(counts_threes, counts_threes, Told(0.1 + 1e-9), None, x, run)

    @dataclass(frozen=True)
    class NotRegistered(Kernel):
        rate: float

    with pytest.raises(TypeError, match="register_static"):
        certify(counts_threes, NotRegistered(0.1), KEY, x)


def test_settings_that_are_no_fields_are_refused():
    """JAX and a log would take one noise for the other."""

    class Inverted(Ablation):
        def __init__(self, positions, kept, mask, inverted):
            super().__init__(positions, kept, mask)
            object.__setattr__(self, "inverted", inverted)

    class Named(NamedTuple):
        sigma: float
        norm = 2
        scale = property(lambda self: self.sigma)
        unit_radius = staticmethod(Gaussian.unit_radius)

        def sample(self, key, shape, dtype=jnp.float32):
            return Gaussian(self.sigma).sample(key, shape, dtype)

    class Wide(Named):
        def __new__(cls, sigma, wide):
            made = super().__new__(cls, sigma)
            made.wide = wide
            return made

    class Opaque:
        def __repr__(self):
            return "Opaque"

    @jax.tree_util.register_static
    @dataclass(frozen=True)
    class Static:
        width: Any = field(default=1.0, compare=False)
        norm = 2
        scale = 1.0
        unit_radius = staticmethod(Gaussian.unit_radius)

        def sample(self, key, shape, dtype=jnp.float32):
            return Gaussian(self.width).sample(key, shape, dtype)

    @jax.tree_util.register_static
    @dataclass(frozen=True)
    class Holds(Static):
        width: Any = 1.0

    x = np.ones((1, 24), np.float32)

    def f(x):
        return x[:, :2]

    for noise, name in (
        (jax.tree_util.register_static(Inverted)((24,), 3, -1, True), "inverted"),
        (Wide(1.0, 3.0), "wide"),
        (Static(2.0), "width"),
        (Holds(Opaque()), "width"),
    ):
        with pytest.raises(TypeError, match=f"settings as fields .* which {name} of"):
            certify(f, noise, KEY, x, n=10)
    assert certify(f, Named(1.0), KEY, x, n=10).label.shape == (1,)
    assert certify(f, Holds(2.0), KEY, x, n=10).label.shape == (1,)


@pytest.mark.parametrize(
    ("found", "error", "message"),
    [
        ([], ValueError, "at least one list"),
        ([(1, 1)], TypeError, "lists of pairs"),
        ([[(0.5, 0.5), (0.5, 0.5)]], TypeError, "fractions.Fraction"),
        ([[(1, 2)]], ValueError, "the same total"),
        ([[(-1, 1), (2, 0)]], ValueError, "none negative"),
    ],
)
def test_regions_that_are_none_are_refused(found, error, message):
    @jax.tree_util.register_static
    @dataclass(frozen=True)
    class Kernel(DiscreteNoise):
        number: int = len(message)

        def sample(self, key, shape, dtype=jnp.int32):
            raise AssertionError((key, shape, dtype))

        def add(self, x, noise):
            raise AssertionError((x, noise))

        def regions(self, changes):
            assert changes == 1
            return found

    with pytest.raises(error, match=message):
        Kernel().unit_radius(0.9)


def test_radii_of_a_grid_are_numbers_of_changes():
    for radii, message in (([0.5, 1.0], "whole numbers of at most"), ([1, 500], "at most 2 for Ablation, got 500")):
        with pytest.raises(ValueError, match=message):
            certify_radii(counts_threes, MASKED, KEY, tokens(), radii)
        with pytest.raises(ValueError, match=message):
            certify_dataset(
                counts_threes, MASKED, KEY, (tokens(), np.zeros(4, int)), "none.tsv", mode=jaxsmooth.Grid(radii)
            )


def test_levels_count_the_same_features():
    def f(x):
        return jnp.stack([x.sum(axis=(1, 2)), -x.sum(axis=(1, 2))], axis=1)

    levels = [(f, Ablation((6, 6), 5, mask=0)), (f, Ablation((6, 1), 2, mask=0))]
    with pytest.raises(ValueError, match="count the same features"):
        certify_levels(f, levels, Ablation((6, 6), 5, mask=0), KEY, np.ones((1, 6, 6), np.float32))


def test_values_near_the_end_of_their_dtype_are_their_remainders():
    """They do not wrap around to others. Under jit they could not be refused."""
    noise = Replacement(3, 0.5)
    for dtype, top in ((np.int32, 2**31 - 1), (np.uint8, 255), (np.uint32, 2**32 - 1)):
        moved = noise.add(jnp.full(3, top, dtype), jnp.arange(3))
        np.testing.assert_array_equal(moved, (top + np.arange(3)) % 3)
    with pytest.raises(TypeError, match="dtype that holds 256 values"):
        certify(counts_threes, Replacement(256, 0.5), KEY, tokens(np.int8))
    with pytest.raises(ValueError, match="mask of the noise"):
        certify(counts_threes, Ablation((24,), 3, mask=1e6), KEY, tokens().astype(np.float16))


def test_every_mode_gives_whole_radii():
    x = tokens()
    fixed = certify(counts_threes, MASKED, KEY, x, n=5000)
    assert fixed.radius[0] == 2
    assert fixed.label[0] == 0
    # Known at x only: the label holds there, with no change.
    assert fixed.radius[3] == 0
    assert fixed.label[3] == 0
    called = certify(counts_threes, MASKED, KEY, x, n=5000, compiled=False)
    np.testing.assert_array_equal(called.radius, fixed.radius)
    grid = certify_radii(counts_threes, MASKED, KEY, x, [1, 2])
    np.testing.assert_array_equal(grid.radius[:3], [2, 1, 2])
    assert set(np.unique(certify_within(counts_threes, MASKED, KEY, x).radius)) <= {0, 1, 2}
    *_, last = itertools.islice(certify_anytime(counts_threes, MASKED, KEY, x), 20)
    np.testing.assert_array_equal(last.radius[:3], [2, 1, 2])
    changed = certify_changed(counts_threes, counts_threes, MASKED, KEY, x, fixed.votes, m=2000)
    assert changed.radius[0] == 2
    levels = [(counts_threes, MASKED), (counts_threes, Ablation((24,), 2, mask=0))]
    chosen = certify_levels(counts_threes, levels, MASKED, KEY, x, mode=jaxsmooth.Fixed(n=3000))
    assert set(np.unique(chosen.radius)) <= {0, 1, 2}


def test_components_share_one_whole_radius():
    def each(x):
        return jnp.stack([x == 3, x == 2, x == 0], axis=-1).astype(jnp.float32)

    result = certify_components(each, Replacement(5, 0.9), KEY, tokens(), 0.6, n=2000)
    certified = result.label >= 0
    assert certified.mean() > 0.9
    np.testing.assert_array_equal(result.label[certified], np.where(tokens() == 3, 0, 1)[certified])
    assert (result.radius == 0).all()  # of 0.6 under this noise


def test_the_edges_of_a_grid_are_the_thresholds():
    for changes in (1, 2):
        edge = jaxsmooth.sequential.edge_probability(MASKED, changes)
        missed = Fraction(math.comb(24 - changes, 6), math.comb(24, 6))
        assert 0 <= edge - float(Fraction(3, 2) - missed) < 1e-14


def test_a_user_s_own_kernel_certifies():
    @jax.tree_util.register_static
    @dataclass(frozen=True)
    class Redrawn(DiscreteNoise):
        """Each bit is drawn anew with probability 1/2."""

        domain = 2

        def sample(self, key, shape, dtype=jnp.int32):
            return jax.random.bernoulli(key, 0.25, shape).astype(dtype)

        def add(self, x, noise):
            return (x % 2) ^ noise

        def regions(self, changes):
            row = [math.comb(changes, i) * Fraction(3**i, 4**changes) for i in range(changes + 1)]
            return [list(zip(row, row[::-1], strict=True))]

    p = np.linspace(0.5, 0.9999, 300)
    twin = BitFlips(0.25, 0.25)
    np.testing.assert_array_equal(Redrawn().unit_radius(p), twin.unit_radius(p))
    x = np.ones((2, 9), np.int32)

    def ones(x):
        return jnp.stack([x.sum(axis=1), 9 - x.sum(axis=1)], axis=1)

    own = certify(ones, Redrawn(), KEY, x, n=2000)
    theirs = certify(ones, twin, KEY, x, n=2000)
    assert own.radius[0] > 0
    np.testing.assert_allclose(own.p_lower, theirs.p_lower, atol=0.06)  # 4 standard errors of a difference

    with pytest.raises(ValueError, match=r"integers in \[0, 2\)"):
        certify(ones, Redrawn(), KEY, x + 1)


def test_a_run_goes_on_and_says_norm_and_noise(tmp_path):
    x, y = tokens(), np.array([0, 0, 1, 0])
    path = tmp_path / "run.tsv"
    settings = {"mode": jaxsmooth.Fixed(n=2000), "progress": False}
    certify_dataset(counts_threes, MASKED, KEY, (x, y), path, most=2, **settings)
    rows = certify_dataset(counts_threes, MASKED, KEY, (x, y), path, **settings)
    whole = certify(counts_threes, MASKED, KEY, x, n=2000)
    np.testing.assert_array_equal([row.radius for row in rows], whole.radius)
    assert rows[0].settings["norm"] == "0"
    assert rows[0].settings["noise"] == "Ablation(positions=24,kept=6,mask=0)"
    assert rows[0].settings["dtype"] == "int32"
    np.testing.assert_array_equal(certificate(read_votes(f"{path}.votes").votes, MASKED).radius, whole.radius)
    with pytest.raises(ValueError, match="noise"):
        certify_dataset(counts_threes, Ablation((24,), 5, mask=0), KEY, (x, y), path, **settings)
    table = report_table({"tokens": rows}, [0, 1, 2])
    assert "norm 0" in table
    other = [row._replace(claim="norm=2 alpha=0.001") for row in rows]
    for refused in (
        lambda: report_table({"tokens": rows, "pixels": other}, [0, 1]),
        lambda: draw_curves({"tokens": rows, "pixels": other}, tmp_path / "a.png"),
    ):
        with pytest.raises(ValueError, match="of one norm, got L0 and L2"):
            refused()
    assert not (tmp_path / "a.png").exists()


def test_a_hair_s_breadth_of_a_probability_is_another_run(tmp_path):
    x, y = tokens(), np.array([0, 0, 1, 0])
    settings = {"mode": jaxsmooth.Fixed(n=200), "progress": False}
    certify_dataset(counts_threes, Replacement(5, 0.4), KEY, (x, y), tmp_path / "run.tsv", **settings)
    with pytest.raises(ValueError, match="noise"):
        certify_dataset(counts_threes, Replacement(5, 0.4 + 1e-12), KEY, (x, y), tmp_path / "run.tsv", **settings)


def test_inputs_that_do_not_fit_are_refused_before_a_call():
    def never(x):
        raise AssertionError(f"called with {x}")

    x = tokens()
    noise = Replacement(5, 0.4)
    with pytest.raises(ValueError, match=r"integers in \[0, 5\).*from 5 to 6"):
        certify(never, noise, KEY, x + 3)
    with pytest.raises(ValueError, match="from -1"):
        certify(never, noise, KEY, x - 3)
    with pytest.raises(TypeError, match=r"integers in .* got dtype float32"):
        certify(never, noise, KEY, x.astype(np.float32))
    with pytest.raises(ValueError, match="positions of the noise must"):
        certify(never, Ablation((20,), 5, -1), KEY, x)
    with pytest.raises(ValueError, match="positions of the noise must"):
        certify(never, Ablation((4, 6), 5, -1), KEY, x)
    with pytest.raises(ValueError, match="mask of the noise must be a number that inputs of dtype uint8"):
        certify(never, Ablation((24,), 5, -1), KEY, x.astype(np.uint8))
    with pytest.raises(TypeError, match="floating-point inputs, got dtype int32"):
        certify(never, Gaussian(0.5), KEY, x)
    with pytest.raises(ValueError, match="must fit into int32"):
        certify(never, MASKED, KEY, x.astype(np.int64) + 2**40)
    with pytest.raises(TypeError, match="bound='runner_up' is for Gaussian noise and Ablation"):
        certify(never, noise, KEY, x, bound="runner_up")


def test_traced_inputs_out_of_range_are_those_of_their_remainders():
    """They cannot be refused. The smoothed classifier is that of the remainders, so their certificates are true."""
    for noise, values in ((Replacement(5, 0.4), 5), (BitFlips(0.2, 0.3), 2)):
        x = tokens() % values
        moved = x + (values * np.array([[0], [1], [3], [-2]]) if values > 2 else 6 * x)
        count = jax.jit(lambda x, noise=noise: count_votes(counts_threes, noise, KEY, x, n=200))
        np.testing.assert_array_equal(count(moved), count(x))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Ablation((24,), 25, -1), ValueError, "kept"),
        (lambda: Ablation((24,), 0, -1), ValueError, "kept"),
        (lambda: Ablation((), 1, -1), TypeError, "positions"),
        (lambda: Ablation("24", 1, -1), TypeError, "positions"),
        (lambda: Ablation((2**11, 2**11), 1, -1), ValueError, "positions"),
        (lambda: Ablation((24,), 3, mask=math.nan), ValueError, "mask"),
        (lambda: Replacement(1, 0.5), ValueError, "values"),
        (lambda: Replacement(2**17, 0.5), ValueError, "values"),
        (lambda: Replacement(4, 0.2), ValueError, "keep"),
        (lambda: Replacement(4, 1.0), ValueError, "keep"),
        (lambda: BitFlips(0.0, 0.1), ValueError, "add_one"),
        (lambda: BitFlips(0.1, 0.6), ValueError, "remove_one"),
        (lambda: Ablation((24,), 3, -1).unit_radius(1.2), ValueError, "probability"),
    ],
)
def test_bad_noises_are_refused_by_name(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_noisy_copies_for_training_are_masked_or_replaced():
    x = tokens()
    masked = np.asarray(add_noise(MASKED, KEY, x))
    assert masked.dtype == np.int32
    assert ((masked != 0).sum(axis=1) == 6).all()
    assert ((masked == x) | (masked == 0)).all()
    replaced = np.asarray(add_noise(Replacement(5, 0.4), KEY, x))
    assert set(np.unique(replaced)) == {0, 1, 2, 3, 4}
    image = np.random.default_rng(0).uniform(0.1, 1, (3, 4, 4, 2)).astype(np.float32)
    hidden = np.asarray(add_noise(Ablation((4, 4, 1), 5, -1), KEY, image))
    assert ((hidden != -1).all(axis=-1).sum(axis=(1, 2)) == 5).all()
    assert ((hidden == image) | (hidden == -1)).all()


def test_objectives_train_on_masked_inputs():
    def f(x):
        kept = (x != 0).sum(axis=1)
        return jnp.stack([kept, 0 * kept], axis=1).astype(jnp.float32)

    y = np.zeros(4, int)
    # 6 tokens are kept in each copy, and 24 in a clean input.
    of_six = math.log1p(math.exp(-6))
    np.testing.assert_allclose(losses.gaussian(f, MASKED, KEY, tokens(), y), of_six, rtol=1e-3)
    np.testing.assert_allclose(losses.consistency(f, MASKED, KEY, tokens(), y, m=3, eta=0.0), of_six, rtol=1e-3)
    np.testing.assert_allclose(losses.stability(f, MASKED, KEY, tokens(), y, lambda_=1.0), of_six, rtol=1e-3)
    for objective in (losses.smoothadv, losses.smoothmix):
        with pytest.raises(TypeError, match="noise must be one that is added"):
            objective(f, MASKED, KEY, tokens().astype(np.float32), y, clip_values=None)


def test_classifiers_of_integers_are_checked():
    check_classifier(counts_threes, tokens(), noise=MASKED, classes=2)
    with pytest.raises(ValueError, match="depend on the batch"):
        check_classifier(lambda x: counts_threes(x) - counts_threes(x)[:1], tokens(), noise=MASKED)


def test_prediction_needs_no_radius():
    np.testing.assert_array_equal(predict(counts_threes, MASKED, KEY, tokens()).label[:3], [0, 0, 1])


def test_gradients_pass_through_what_is_kept():
    x = jnp.ones((2, 8))
    g = jaxsmooth.smooth(lambda x: x[:, :2], Ablation((8,), 4, mask=0), n=400)
    gradient = jax.grad(lambda x: g(KEY, x)[:, 0].sum())(x)
    assert (gradient[:, 0] > 0).all()
    np.testing.assert_array_equal(gradient[:, 2:], 0)
