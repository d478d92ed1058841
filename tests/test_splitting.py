"""Splitting noise: published counts, every input of small lattices, and the formula of the paper."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy import stats

from jaxsmooth import (
    ABSTAIN,
    Gaussian,
    RandomClassifier,
    Splitting,
    Uniform,
    Votes,
    add_noise,
    certificate,
    certify,
    certify_radii,
    certify_splitting,
    certify_splitting_dataset,
    key_of_seed,
    log_rows,
    losses,
    noise_report,
    read_log,
    read_votes,
    report_table,
    splitting_certificate,
)
from tests.guarantees.alarms import ALPHA, raises_alarm

KEY = key_of_seed(0)

# Counts and radii, in steps of 1/255, of CIFAR-10 images that Levine & Feizi published for sigma = 0.5, which is 441
# shifts (github.com/alevine0/smoothingSplittingNoise, cifar_split_derandomized_0.5, images 0, 1, 2, 9, 33, 49, 2128).
PUBLISHED = [
    ([0, 0, 0, 266, 0, 172, 0, 3, 0, 0], 47),
    ([0, 0, 0, 0, 0, 0, 0, 0, 441, 0], 220),
    ([4, 6, 0, 0, 0, 0, 0, 0, 431, 0], 212),
    ([0, 201, 0, 0, 0, 0, 0, 0, 7, 233], 15),
    ([0, 0, 42, 4, 1, 394, 0, 0, 0, 0], 175),
    ([0, 0, 14, 1, 100, 0, 326, 0, 0, 0], 112),
    ([0, 0, 0, 1, 220, 0, 220, 0, 0, 0], 0),
]


def test_radii_are_the_published_ones():
    counts = np.array([row for row, _ in PUBLISHED])
    steps = np.array([steps for _, steps in PUBLISHED])
    result = splitting_certificate(Votes(counts=counts, n=441, rule="splitting"), 255)
    np.testing.assert_array_equal(np.round(result.radius * 255), steps)
    assert (result.radius.astype(np.float64) <= steps / 255).all()
    np.testing.assert_array_equal(result.label, counts.argmax(axis=1))


def rows_of_a_table(seed, classes=3):
    """A classifier without any regularity: a hash of the bits of its row decides."""

    def f(x):
        words = jax.lax.bitcast_convert_type(x, jnp.uint32)
        mixed = jnp.uint32(seed)
        for i in range(x.shape[1]):
            mixed = (mixed ^ words[:, i]) * np.uint32(2654435761)
            mixed = mixed ^ (mixed >> np.uint32(15))
        return jax.nn.one_hot(mixed % classes, classes)

    return f


@pytest.mark.parametrize(("half_width", "shifts"), [(0.5, 3), (0.9, 5), (1.5, 9)])
@pytest.mark.parametrize("seed", range(4))
def test_no_input_within_the_radius_has_another_class(half_width, shifts, seed):
    """All 64 inputs of three features with four levels each. The twin adds a step to each radius."""
    levels = 3
    lattice = np.array(list(itertools.product(range(levels + 1), repeat=3)))
    result = certify_splitting(
        rows_of_a_table(seed), Splitting(half_width), KEY, lattice / levels, levels=levels, batch_size=50
    )
    assert result.votes.n == shifts
    steps = np.round(result.radius * levels).astype(int)
    distance = np.abs(lattice[:, None] - lattice[None]).sum(axis=-1)
    differs = result.label[:, None] != result.label[None]
    assert not (differs & (distance <= steps[:, None])).any()
    assert (differs & (distance <= steps[:, None] + 1)).any()
    assert (result.label >= 0).all()
    np.testing.assert_array_equal(result.votes.counts.sum(axis=1), shifts)


def test_a_smooth_classifier_has_radii_that_are_tight():
    """One feature, cut somewhere: the class is known for every input, and so is where it changes."""
    levels = 20
    x = np.arange(levels + 1)[:, None] / levels
    result = certify_splitting(lambda x: jnp.concatenate([x, 1 - x], axis=1), Splitting(0.5), KEY, x, levels=levels)
    steps = np.round(result.radius * levels).astype(int)
    change = np.flatnonzero(np.diff(result.label))
    assert len(change) == 1
    true = np.where(
        np.arange(levels + 1) <= change[0], change[0] - np.arange(levels + 1), np.arange(levels + 1) - change[0] - 1
    )
    assert (steps <= true).all()
    assert (true - steps).max() <= 1


def middles_by_the_formula(x, cut, half_width):
    """The x~ of Theorem 1."""
    above = 2 * half_width * np.ceil((x - cut) / (2 * half_width)) + cut
    below = 2 * half_width * np.ceil((x - cut) / (2 * half_width) - 1) + cut
    return (np.minimum(above, 1) + np.maximum(below, 0)) / 2


@pytest.mark.parametrize("half_width", [0.2, 0.5, 0.8, 2.0])
def test_what_is_seen_are_the_middles_of_the_paper(half_width):
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (500, 4)).astype(np.float32)
    cut = rng.uniform(-half_width, half_width, x.shape).astype(np.float32)
    found = Splitting(half_width).add(jnp.asarray(x), jnp.asarray(cut))
    np.testing.assert_allclose(found, middles_by_the_formula(x, cut, half_width), atol=2e-6)
    # Without chance: the cuts of one feature take each of the L places once.
    levels = 255
    shifts = int(2 * levels * half_width + 1e-6)
    seen = []

    def f(x):
        seen.append(np.asarray(x))
        return np.concatenate([x, -x], axis=1)

    certify_splitting(f, Splitting(half_width), KEY, np.array([[70 / 255]]), batch_size=shifts, compiled=False)
    every = middles_by_the_formula(70 / 255, (np.arange(shifts) + 0.5) / 255, shifts / 510)
    np.testing.assert_allclose(np.sort(seen[0][:, 0]), np.sort(every), atol=1e-6)


def test_drawn_cuts_certify_as_uniform_noise_does():
    noise, twin = Splitting(0.75), Uniform(0.75)
    counts = np.array([[900, 100], [480, 520]])
    votes = Votes(counts=counts, selection=counts, n=1000)
    np.testing.assert_array_equal(certificate(votes, noise).radius, certificate(votes, twin).radius)
    assert noise.norm == 1
    assert not noise_report(noise, KEY, np.zeros((1, 400), np.float32)).failed


def test_certificates_of_drawn_cuts_are_true_for_half_lines():
    """One feature, and whether its middle is above 1/2: so it is only where the cut is in [0, x]."""
    half_width = 0.75
    number = 2000
    # The probability of this is x / (2 half_width), which is 1/2 at x = 0.75: the true radius at 0.7 is 0.05.
    x = np.full((number, 1), 0.7, np.float32)

    def below_half(x):
        return jnp.concatenate([0.5 - x, x - 0.5], axis=1)

    result = certify(below_half, Splitting(half_width), KEY, x, n=500, alpha=ALPHA, batch_size=4096)
    false = (result.label == 1) | (result.radius > 0.05 + 1e-6)
    assert not raises_alarm(false.sum(), number, ALPHA)
    # Twin: the share of the votes for the bound.
    share = np.asarray(result.votes.counts)[:, 0] / 500
    assert raises_alarm((2 * half_width * (share - 0.5) > 0.05).sum(), number, ALPHA)
    grid = certify_radii(below_half, Splitting(half_width), KEY, x[:50], [0.02, 0.2], n=20_000)
    assert (grid.radius < 0.2).all()


def test_rows_do_not_depend_on_batches_or_on_how_they_are_called():
    x = np.random.default_rng(0).integers(0, 256, (5, 6)) / 255
    f = rows_of_a_table(1)
    expected = certify_splitting(f, Splitting(0.3), KEY, x).votes.counts
    for settings in ({"batch_size": 7}, {"batch_size": 1000}, {"compiled": False}, {"batch_size": 153}):
        np.testing.assert_array_equal(certify_splitting(f, Splitting(0.3), KEY, x, **settings).votes.counts, expected)
    alone = [certify_splitting(f, Splitting(0.3), KEY, x[i : i + 1]).votes.counts[0] for i in range(5)]
    np.testing.assert_array_equal(alone, expected)
    np.testing.assert_array_equal(
        certify_splitting(f, Splitting(0.3), KEY, x.astype(np.float32)).votes.counts, expected
    )
    other = certify_splitting(f, Splitting(0.3), key_of_seed(1), x).votes.counts
    assert (other != expected).any()
    none = certify_splitting(f, Splitting(0.3), KEY, x[:0])
    assert none.votes.counts.shape == (0, 3)
    assert none.label.shape == none.radius.shape == (0,)


def test_tensors_of_another_framework_are_scores():
    class Tensor:
        def __init__(self, array):
            self.array = np.asarray(array)
            self.shape = self.array.shape
            self.dtype = "a dtype of its own"

        def __array__(self, dtype=None, copy=None):
            return np.array(self.array, dtype, copy=copy)

    x = np.eye(3)
    expected = certify_splitting(lambda x: x, Splitting(0.5), KEY, x).votes.counts
    found = certify_splitting(lambda x: Tensor(x), Splitting(0.5), KEY, x, compiled=False).votes.counts
    np.testing.assert_array_equal(found, expected)


def test_it_works_out_what_is_known_while_jax_traces():
    x = np.eye(2)

    @jax.jit
    def scaled_by_a_certificate(y):
        return y * certify_splitting(lambda x: x, Splitting(0.5), KEY, x).radius[0]

    radius = certify_splitting(lambda x: x, Splitting(0.5), KEY, x).radius[0]
    assert scaled_by_a_certificate(jnp.float32(2)) == 2 * radius
    with pytest.raises(TypeError, match=r"under jax\.jit there is no certificate without chance"):
        jax.jit(lambda x: certify_splitting(lambda x: x, Splitting(0.5), KEY, x))(x)


def test_invalid_scores_vote_for_no_class():
    def f(x):
        return jnp.where(x[:, :1] > 0.4, jnp.nan, jnp.concatenate([1 - x, x], axis=1)[:, :2])

    x = np.array([[0.0], [1.0]])
    result = certify_splitting(f, Splitting(0.5), KEY, x)
    assert result.votes.counts.sum(axis=1)[0] < 255
    never = certify_splitting(lambda x: jnp.full((len(x), 2), jnp.nan), Splitting(0.5), KEY, x)
    np.testing.assert_array_equal(never.label, ABSTAIN)
    np.testing.assert_array_equal(never.radius, 0)


def test_the_votes_are_no_sample():
    result = certify_splitting(lambda x: x, Splitting(0.5), KEY, np.eye(2))
    with pytest.raises(ValueError, match="all places of the cuts"):
        certificate(result.votes, Splitting(0.5))
    with pytest.raises(ValueError, match="of the rule 'splitting', got 'fixed'"):
        splitting_certificate(Votes(counts=result.votes.counts, n=255), 255)
    with pytest.raises(ValueError, match="only votes of the rule 'fixed'"):
        result.votes + result.votes


def test_rows_claim_no_alpha():
    result = certify_splitting(lambda x: x, Splitting(0.5), KEY, np.eye(2))
    rows = log_rows(result, [0, 1], noise=Splitting(0.5), alpha=0, mode="splitting")
    assert rows[0].settings["alpha"] == "0"
    assert "alpha 0" in report_table({"split": rows}, [0.0])
    with pytest.raises(ValueError, match="alpha must be 0"):
        log_rows(result, [0, 1], noise=Splitting(0.5), alpha=0.001)


def scaled(weights, x):
    return x * weights[None]


def test_a_run_goes_on_and_leaves_nothing_to_chance(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (6, 3)) / 255
    y = x.argmax(axis=1)
    f = Partial(scaled, jnp.ones(3))
    path = tmp_path / "run.tsv"
    certify_splitting_dataset(f, Splitting(0.5), KEY, (x, y), path, most=2, progress=False)
    rows = certify_splitting_dataset(f, Splitting(0.5), KEY, (x, y), path, batch_size=100, progress=False)
    whole = certify_splitting(f, Splitting(0.5), KEY, x)
    np.testing.assert_array_equal([row.predict for row in rows], whole.label)
    np.testing.assert_array_equal(np.float32([row.radius for row in rows]), whole.radius)
    settings = rows[0].settings
    assert (settings["norm"], settings["mode"], settings["alpha"], settings["levels"]) == ("1", "splitting", "0", "255")
    assert len(read_log(path)) == 6
    run = read_votes(f"{path}.votes")
    np.testing.assert_array_equal(splitting_certificate(run.votes, run.settings["levels"]).radius, whole.radius)
    np.testing.assert_array_equal(run.votes.counts, whole.votes.counts)
    # The band is the curve: no certificate can be false.
    table = report_table({"split": rows}, [0.0, 0.1, 0.5]).splitlines()
    curve, band = (np.array(line.split()[-n:][:3], float) for line, n in ((table[1], 6), (table[2], 3)))
    assert (curve > 0).sum() >= 2
    np.testing.assert_allclose(curve, band, atol=0.0011)  # the one is rounded, the other rounded down
    for changes in ({"f": Partial(scaled, 2 * jnp.ones(3))}, {"noise": Splitting(0.6)}, {"levels": 51}):
        given = {"f": f, "noise": Splitting(0.5), "levels": 255} | changes
        data = (np.round(x * 51) / 51, y) if given["levels"] == 51 else (x, y)
        with pytest.raises(ValueError, match="in the file"):
            certify_splitting_dataset(
                given["f"], given["noise"], KEY, data, path, levels=given["levels"], progress=False
            )
    with pytest.raises(ValueError, match="depend on the batch"):
        certify_splitting_dataset(
            lambda x: x - x.mean(axis=0, keepdims=True), Splitting(0.5), KEY, (x, y), tmp_path / "b.tsv", progress=False
        )
    assert json.loads(json.dumps(run.settings))["levels"] == 255


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"noise": Uniform(0.5)}, TypeError, "noise must be Splitting"),
        ({"noise": Splitting(0.001)}, ValueError, "half_width must leave"),
        ({"noise": Splitting(-1.0)}, ValueError, "half_width"),
        ({"levels": 0}, ValueError, "levels"),
        ({"levels": 2.5}, TypeError, "levels"),
        ({"x": np.full((1, 2), 0.5)}, ValueError, "multiples of 1 / 255"),
        ({"x": np.full((1, 2), 1.2)}, ValueError, "multiples of 1 / 255"),
        ({"x": np.full((1, 2), 255, np.uint8)}, TypeError, "dtype uint8: divide by 255"),
        ({"x": np.full((1, 2), 255.0)}, ValueError, "divide pixels from 0 to 255 by 255"),
        ({"f": RandomClassifier(lambda x, _: x)}, TypeError, "RandomClassifier"),
        ({"f": 3}, TypeError, "f must be"),
        ({"batch_size": 0}, ValueError, "batch_size"),
    ],
)
def test_bad_arguments_are_refused_before_a_call(changes, error, message):
    def never(x):
        raise AssertionError(f"called with {x}")

    given = {"f": never, "noise": Splitting(0.5), "x": np.eye(2), "levels": 255, "batch_size": 8} | changes
    x = given.pop("x")
    with pytest.raises(error, match=message):
        certify_splitting(given.pop("f"), given.pop("noise"), KEY, x, **given)


def test_scores_of_components_are_refused():
    with pytest.raises(ValueError, match=r"scores \[B, K\]"):
        certify_splitting(lambda x: jnp.stack([x, x], axis=-1), Splitting(0.5), KEY, np.eye(2))


def test_what_decides_is_said_and_asked_for():
    result = certify_splitting(lambda x: x, Splitting(0.5), KEY, np.eye(2), levels=5)
    assert result.state.levels == 5
    rows = log_rows(result, [0, 1], noise=Splitting(0.5), alpha=0)
    assert rows[0].settings["levels"] == "5"
    with pytest.raises(TypeError, match="noise must be Splitting"):
        log_rows(result, [0, 1], noise=Gaussian(0.5), alpha=0)
    with pytest.raises(ValueError, match="levels must be that of the result, 5"):
        log_rows(result, [0, 1], noise=Splitting(0.5), alpha=0, levels=255)
    other = log_rows(
        certify_splitting(lambda x: x, Splitting(0.5), KEY, np.eye(2)),
        [0, 1],
        noise=Splitting(0.5),
        alpha=0,
        idx=[2, 3],
    )
    with pytest.raises(ValueError, match="of one levels"):
        report_table({"mixed": rows + other}, [0.0])


@pytest.mark.parametrize(
    ("half_width", "shifts"), [(0.1, 51), (0.3, 153), (0.7, 357), (0.5, 255), (3.0, 1530), (7 / 510, 7), (0.301, 153)]
)
def test_the_number_of_places_is_that_of_the_paper(half_width, shifts):
    for given in (half_width, np.float32(half_width), jnp.float32(half_width)):
        assert certify_splitting(lambda x: x, Splitting(given), KEY, np.eye(2)).votes.n == shifts


def test_attacks_that_add_noise_are_refused():
    def f(x):
        return 20 * jnp.stack([x.mean(axis=1), 0.5 - x.mean(axis=1)], axis=1)

    x, y = np.full((2, 6), 0.4, np.float32), np.array([0, 1])
    for objective in (losses.smoothadv, losses.smoothmix):
        with pytest.raises(TypeError, match="noise must be one that is added"):
            objective(f, Splitting(0.7), KEY, x, y)
    assert losses.gaussian(f, Splitting(0.7), KEY, x, y) != losses.gaussian(f, Uniform(0.7), KEY, x, y)


def test_inputs_beyond_the_range_count_as_its_ends():
    noise = Splitting(0.2)
    cuts = jnp.linspace(-0.2, 0.2, 9)
    np.testing.assert_array_equal(noise.add(jnp.full(9, 3.0), cuts), noise.add(jnp.full(9, 1.0), cuts))
    np.testing.assert_array_equal(noise.add(jnp.full(9, -3.0), cuts), noise.add(jnp.full(9, 0.0), cuts))


def test_training_sees_the_middles():
    x = np.random.default_rng(0).uniform(0, 1, (200, 3)).astype(np.float32)
    noisy = np.asarray(add_noise(Splitting(0.2), KEY, x))
    assert ((noisy >= 0) & (noisy <= 1)).all()
    assert (np.abs(noisy - x) <= 0.2 + 1e-6).all()
    # Uniform within the piece: no correlation with where the cut fell.
    assert stats.pearsonr((noisy - x).ravel(), x.ravel()).statistic < 0.3
