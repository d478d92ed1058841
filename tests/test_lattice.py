"""Gaussian noise on a lattice: exact sums, an exact table, no leak of low bits, radii reduced off the lattice."""

import math
from dataclasses import replace
from fractions import Fraction

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mpmath import mp
from scipy import stats

import jaxsmooth
from jaxsmooth import ABSTAIN, Gaussian, LatticeGaussian
from jaxsmooth.lattice import lattice_weights

STEP = 1 / 255
NOISE = LatticeGaussian(0.25, STEP)


@pytest.mark.parametrize("steps", [0.3, 1.0, 7.5, 63.75])
def test_the_table_errs_by_no_more_than_it_says(steps):
    weights, least, variation = lattice_weights(steps)
    with mp.workdps(40):
        edges = [mp.ncdf((least + i - mp.mpf(1) / 2) / mp.mpf(steps)) for i in range(len(weights) // 2 + 2)]
        lower = [edges[i + 1] - edges[i] for i in range(len(weights) // 2 + 1)]  # the other half mirrors it
        exact = lower + lower[-2::-1]
        error = sum(abs(mp.mpf(w) / 2**64 - p) for w, p in zip(weights, exact, strict=True)) / 2 + edges[0]
    assert sum(weights) == 2**64
    assert error <= variation <= 1e-15  # what `LatticeGaussian` promises of a feature


@pytest.mark.parametrize("steps", [0.3, 63.75, 1000.0])
def test_the_alias_table_has_the_weights_exactly(steps):
    """The noise is a pytree: sigma, step, and the two words of each bar, the aliases and the least integer."""
    noise = LatticeGaussian(steps, 1.0)
    weights, least, _ = lattice_weights(float(noise.sigma))
    _, _, low, high, alias, first = map(np.asarray, jax.tree.leaves(noise))
    capacity, mass = 2**64 // len(low), dict.fromkeys(range(least, least + len(low)), 0)
    for column in range(len(low)):
        bar = int(high[column]) * 2**32 + int(low[column])
        mass[int(first) + column] += bar
        mass[int(alias[column])] += capacity - bar
    assert [mass[least + i] for i in range(len(low))] == weights + [0] * (len(low) - len(weights))


def test_draws_are_of_the_table(key):
    drawn = np.asarray(jax.jit(lambda noise, key: noise.sample_integers(key, (1_000_000,)))(NOISE, key))
    edges = np.arange(-200, 201, 10) - 0.5
    expected = np.diff(stats.norm.cdf(np.concatenate([[-np.inf], edges, [np.inf]]) / 63.75)) * len(drawn)
    observed = np.histogram(drawn, np.concatenate([[-10_000], edges, [10_000]]))[0]
    # The false-alarm rate of the chi-square test is 1e-6.
    assert stats.chisquare(observed, expected).pvalue > 1e-6


def test_a_lattice_sum_is_one_float_whatever_made_it():
    total = np.arange(-300, 556, dtype=np.int32)
    values = []
    for image in (0, 1, 17, 128, 200, 255):
        x = np.full(len(total), np.float32(image) / np.float32(255), np.float32)
        noise = (total - image).astype(np.float32) * NOISE.step
        values.append(np.asarray(NOISE.add(x, noise)))
    assert all((value == values[0]).all() for value in values)
    # The plain sum of the same numbers is not: this is what leaks the image.
    plain = [
        np.float32(image) / np.float32(255) + (total - image).astype(np.float32) * NOISE.step for image in (0, 17, 200)
    ]
    assert (plain[0] != plain[1]).any()
    assert (plain[0] != plain[2]).any()


def reads_rounding(x):
    """Class 1 where more than 12 features are no multiples of 2^-28: the unit of rounding of x + noise, if x = 2^-5."""
    scaled = x * jnp.float32(2.0**28)
    leaks = (scaled != jnp.round(scaled)).sum(axis=1) > 12
    return jnp.stack([~leaks, leaks], axis=1).astype(jnp.float32)


def test_a_rounding_attack_is_certified_falsely_under_plain_noise_and_not_on_the_lattice(key):
    """A sum of noise with 0 keeps bits that a sum with 2^-5 rounds off: the classifier tells two near inputs apart."""
    x, near = np.full((1, 1000), 2.0**-5, np.float32), np.zeros((1, 1000), np.float32)
    distance = float(np.linalg.norm(x - near))
    plain = [jaxsmooth.certify(reads_rounding, Gaussian(1.0), key, point, n=2000) for point in (x, near)]
    assert [int(result.label[0]) for result in plain] == [0, 1]
    assert float(plain[0].radius[0]) > distance  # what it promises of `near` is false
    lattice = LatticeGaussian(1.0, 2.0**-8)
    exact = [jaxsmooth.certify(reads_rounding, lattice, key, point, n=2000) for point in (x, near)]
    assert [int(result.label[0]) for result in exact] == [0, 0]
    assert exact[0].radius == exact[1].radius


def test_radii_off_the_lattice_are_reduced_and_say_so(key):
    f = lambda x: jnp.stack([x[:, 0], -x[:, 0]], axis=1)  # noqa: E731
    on = (np.array([[100, 0, 7], [3, 0, 7]]) / 255).astype(np.float32)
    off = on + np.float32([0, 0.3 * STEP, 0])
    for run in (
        lambda x: jaxsmooth.certify(f, NOISE, key, x, n=10_000),
        lambda x: jaxsmooth.certify_radii(f, NOISE, key, x, [0.05, 0.2, 0.3]),
        lambda x: jaxsmooth.certify_within(f, NOISE, key, x),
        lambda x: next(jaxsmooth.certify_anytime(f, NOISE, key, x, votes=1000)),
    ):
        exact, reduced = run(on), run(off)
        # Float32 cannot hold these multiples of step: how far they are away is taken off, and no more.
        assert (np.asarray(exact.votes.lost) <= 1e-4 * STEP).all()
        assert exact.rounded.tolist() == reduced.rounded.tolist() == [True, True]
        lost = float(exact.radius[0] - reduced.radius[0])
        assert STEP * np.sqrt(3) - 1e-6 <= lost <= 1.01 * STEP * np.sqrt(3)
        # What is left of a small radius is an abstention.
        assert (reduced.radius >= 0).all()
        assert ((reduced.label == ABSTAIN) == (reduced.radius == 0)).all()


def half(x):
    return jnp.stack([x[:, 0], -x[:, 0]], axis=1)


@pytest.fixture
def three():
    """One input on the lattice, one whose radius is reduced, and one whose radius is used up."""
    x = np.zeros((3, 9), np.float32)
    x[:, 0], x[:, 1] = [100, 120, 12], [0, 76.5, 76.5]
    return x / np.float32(255)


def test_votes_that_are_read_again_give_the_certificates_of_certify(tmp_path, key, three):
    path, mode = tmp_path / "a.tsv", jaxsmooth.Fixed(n=1000)
    rows = jaxsmooth.certify_dataset(half, NOISE, key, (three, np.zeros(3, int)), path, mode=mode, progress=False)
    result = jaxsmooth.certify(half, NOISE, key, three, n=1000)
    run = jaxsmooth.read_votes(f"{path}.votes")
    again = jaxsmooth.certificate(run.votes, NOISE)
    assert [row.radius for row in rows] == result.radius.tolist()
    for found in (result, run.certificate):
        assert (np.asarray(found.votes.lost) > STEP).tolist() == [False, True, True]
        assert found.label.tolist() == [0, 0, ABSTAIN]
        np.testing.assert_array_equal(found.radius, result.radius)
        np.testing.assert_array_equal(found.votes.lost, NOISE.lost_radius(three))
    # The number of samples is one for each input here, and the radius is then rounded once instead of twice.
    assert again.rounded.tolist() == [True, True, True]
    assert again.label.tolist() == [0, 0, ABSTAIN]
    np.testing.assert_allclose(again.radius, result.radius, rtol=3e-7)
    np.testing.assert_array_equal(again.p_lower, result.p_lower)


def test_votes_that_do_not_say_what_rounding_lost_are_refused(key, three):
    """With a loss of 0 they would get a radius that no theorem gives."""
    result = jaxsmooth.certify(half, NOISE, key, three, n=1000)
    unsaid = replace(result.votes, lost=None)
    with pytest.raises(ValueError, match=r"votes\.lost must be noise\.lost_radius\(x\) for LatticeGaussian"):
        jaxsmooth.certificate(unsaid, NOISE)
    with pytest.raises(ValueError, match=r"votes\.lost must be noise\.lost_radius\(x\)"):
        jax.jit(lambda votes: jaxsmooth.certificate(votes, NOISE).radius)(unsaid)
    said = jaxsmooth.certificate(replace(unsaid, lost=NOISE.lost_radius(three)), NOISE)
    chex.assert_trees_all_equal(said, result)
    # What the refusal prevents: a larger radius, and one where none is left.
    careless = jaxsmooth.certificate(replace(unsaid, lost=np.zeros(3)), NOISE)
    assert careless.label.tolist() == [0, 0, 0]
    assert 0 <= float(careless.radius[0] - result.radius[0]) < 1e-6
    assert float(careless.radius[1] - result.radius[1]) >= STEP * np.sqrt(9)
    assert careless.radius[2] > 0 == result.radius[2]
    # Noise that does not round loses nothing.
    assert not jaxsmooth.certificate(unsaid, Gaussian(0.25)).rounded.any()


def test_a_traced_loss_that_is_no_number_abstains():
    counts = jnp.array([[95, 5]])

    @jax.jit
    def decided(lost):
        votes = jaxsmooth.Votes(counts=counts, selection=counts, n=100, lost=lost)
        found = jaxsmooth.certificate(votes, NOISE)
        return found.label, found.radius

    label, radius = decided(jnp.array([np.nan]))
    assert (int(label[0]), float(radius[0])) == (jaxsmooth.ABSTAIN, 0.0)
    assert float(decided(jnp.zeros(1))[1][0]) > 0.1  # what NaN, which is not above 0, was once taken for


def test_a_sum_of_votes_keeps_what_rounding_lost(key, three):
    votes = jaxsmooth.certify(half, NOISE, key, three, n=500).votes
    other = jaxsmooth.count_votes(half, NOISE, jaxsmooth.decision_keys(key)[1], three, n=500, first=500)
    more = jaxsmooth.Votes(counts=np.asarray(other), n=500, selection=np.zeros_like(votes.selection), lost=votes.lost)
    expected = jaxsmooth.certify(half, NOISE, key, three, n=1000)
    for total in (votes + more, more + votes):
        chex.assert_trees_all_equal(jaxsmooth.certificate(total, NOISE), expected)
    # Of two losses the larger one counts. Votes that know of none do not say that there is none.
    larger = votes + replace(more, lost=votes.lost + np.float32(0.25))
    np.testing.assert_array_equal(larger.lost, votes.lost + np.float32(0.25))
    for one, two in ((votes, replace(more, lost=None)), (replace(votes, lost=None), more)):
        with pytest.raises(ValueError, match="whose lost radius is known and votes without it do not add up"):
            one + two


def test_certificates_are_those_of_gaussian_noise_up_to_the_error_of_the_table():
    probability = np.array([0.6, 0.9, 0.999])
    difference = Gaussian.unit_radius(probability) - LatticeGaussian.unit_radius(probability)
    assert ((difference > 0) & (difference < 1e-6)).all()
    assert LatticeGaussian.unit_radius(0.5) < 0


def test_inputs_beyond_the_lattice_are_not_certified(key):
    f = lambda x: jnp.stack([x[:, 0] * 0 + 1, x[:, 0] * 0], axis=1)  # noqa: E731
    x = np.array([[1e6], [1.0]], np.float32)
    assert jaxsmooth.certify(f, NOISE, key, x, n=1000).label.tolist() == [ABSTAIN, 0]


def test_one_program_serves_every_sigma_with_a_table_of_the_same_size(key):
    traces = []

    def f(x):
        traces.append(x.shape)
        return x[:, :3]

    def count(sigma):
        jaxsmooth.count_votes(f, LatticeGaussian(sigma, STEP), key, jnp.zeros((2, 4)), n=10)
        return len(traces)

    assert count(0.25) == count(0.24) > 0


def test_gradients_pass_through_the_rounding(key):
    x = (np.array([[100, 20, 7]]) / 255).astype(np.float32)
    g = jaxsmooth.smooth(lambda x: 3 * x, NOISE, n=2000)
    h = jaxsmooth.smooth(lambda x: 3 * x, Gaussian(0.25), n=2000)
    by_lattice, by_gaussian = (jax.grad(lambda x, g=g: g(key, x)[0, 0])(x) for g in (g, h))
    np.testing.assert_allclose(by_lattice, by_gaussian, atol=0.02)


@pytest.mark.parametrize(
    ("sigma", "step", "error", "message"),
    [
        (0.0, STEP, ValueError, "sigma must be positive"),
        (0.5, -1.0, ValueError, "step must be positive"),
        (0.5, "a", TypeError, "step must be"),
        (1e6, 1.0, ValueError, "sigma must be at most"),
    ],
)
def test_bad_arguments_are_refused_by_name(sigma, step, error, message):
    with pytest.raises(error, match=message):
        LatticeGaussian(sigma, step)


def test_a_traced_sigma_is_refused():
    with pytest.raises(TypeError, match="sigma must be a concrete number"):
        jax.jit(lambda sigma: LatticeGaussian(sigma, STEP).sigma)(0.5)


def exact_distances(x, step):
    """Return the nearest multiples of step and the distances from them, in exact arithmetic."""
    step = Fraction(float(step))
    numbers = [Fraction(float(value)) for value in np.asarray(x, np.float64).ravel()]
    nearest = [math.floor(value / step + Fraction(1, 2)) for value in numbers]
    return nearest, [abs(value - k * step) for value, k in zip(numbers, nearest, strict=True)]


STEPS = [0.08, 1 / 255, 1 / 65535, 0.125, 3.7e-9, 123.456, 1e-30, 2.3e28]
DTYPES = [np.float32, np.float16, jnp.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("step", STEPS)
def test_what_is_taken_off_is_the_exact_distance(step, dtype):
    rng, noise = np.random.default_rng(0), LatticeGaussian(2 * step, step)
    step = np.float32(noise.step)
    for most in (1, 10, 255, 5000, 70_000, 2**20, 2**22 - 2):
        with np.errstate(over="ignore", under="ignore"):
            x = (np.round(rng.uniform(-most, most, 300)) + rng.choice([0, 1e-3, 0.01, 0.3], 300)) * np.float64(step)
            x = x.astype(np.float32).astype(dtype)
        x = x[np.isfinite(x.astype(np.float64)) & (np.abs(x.astype(np.float64)) <= (2**22 - 2) * np.float64(step))]
        if x.size == 0:
            continue
        nearest, distances = exact_distances(x, step)
        lost = np.asarray(jax.jit(noise.lost_radius)(jnp.asarray(x)[:, None]))
        seen = np.asarray(noise.add(jnp.asarray(x), jnp.zeros(x.shape)))
        for k, distance, taken, point in zip(nearest, distances, lost, seen, strict=True):
            if distance < Fraction(float(step)) / 2:  # at half a step both neighbours are nearest
                assert point == np.float32(np.float32(k) * step)
            assert Fraction(float(taken)) >= distance
            limit = distance if distance <= Fraction(float(step)) / 64 else Fraction(float(step))
            assert Fraction(float(taken)) <= limit * Fraction(1_000_003, 1_000_000)


FEATURES = 1024


@pytest.mark.parametrize("step", [0.08, 1 / 255, 0.125])
@pytest.mark.parametrize("index", [40, 5000, 2**20, 2**22 - 4000])
def test_no_certificate_is_false_by_exact_integers(step, index):
    """The smoothed class of a sum of indices is known, and so is the next lattice point with another one.

    With a bar half an index above it, the radius of an input on the lattice is that distance but for half an index, a
    thousandth of it. So even a small distance from the lattice that is not taken off makes a certificate false.
    """
    noise = LatticeGaussian(20 * step, step)
    step = Fraction(float(noise.step))
    # The sum of the noise is normal to nine digits: the variance of a rounded normal number, 1024 times.
    spread = math.sqrt(FEATURES * (20**2 + 1 / 12))
    probability = stats.norm.cdf((FEATURES - 0.5) / spread) - 1e-9
    radius = float(noise.sigma) * float(noise.unit_radius(probability))
    rng, false = np.random.default_rng(0), 0
    for share in [0.0, 5e-4, 9e-4, 0.01, 0.1, 0.3, 0.45, *rng.uniform(0, 0.49, 20)]:
        x = np.full((1, FEATURES), np.float32((index + share) * float(step)), np.float32)
        (nearest, *_), _ = exact_distances(x[:, :1], noise.step)
        # One index more in each feature is a lattice point of the other class.
        away = abs(Fraction(float(x[0, 0])) - (nearest + 1) * step) * math.isqrt(FEATURES)
        certified = radius - float(noise.lost_radius(x)[0])
        assert certified <= 0 or Fraction(certified) <= away
        false += Fraction(radius) > away
    assert false >= 5  # nothing taken off: the broken twin
