"""Noise: its words against published answers, its maps against SciPy's quantiles, its distribution, its radii."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32
from scipy import special, stats

from jaxsmooth import Gaussian, Laplace, LatticeGaussian, Noise, Uniform

NOISES = [Gaussian, Laplace, Uniform]
FALSE_ALARM = 1e-6
EXACT = {
    Gaussian: lambda p: stats.norm.isf(1 - p),
    Laplace: lambda p: -np.log(2 * (1 - p)),
    Uniform: lambda p: 2 * (p - 0.5),
}


@pytest.mark.parametrize("noise", NOISES)
def test_is_a_pytree_whose_scale_is_a_leaf(noise):
    assert isinstance(noise(0.5), Noise)
    assert jax.tree.leaves(noise(0.5)) == [0.5]
    assert noise(0.5).scale == 0.5


@pytest.mark.parametrize("noise", NOISES)
def test_every_noise_takes_its_parameter_as_scale(noise):
    assert noise(scale=0.5) == noise(0.5)
    assert repr(noise(scale=0.5)) == repr(noise(0.5))
    for copied in (
        pickle.loads(pickle.dumps(noise(0.5))),
        copy.deepcopy(noise(0.5)),
        noise(1.0)._replace(**vars_of(0.5, noise)),
    ):
        assert copied == noise(0.5)
        assert type(copied) is noise
    assert type(jax.tree.map(lambda _: None, noise(0.5))) is noise  # as axes of vmap are given
    lattice = LatticeGaussian(scale=0.5, step=0.125)
    assert (lattice.sigma, lattice.step) == (0.5, 0.125)


def vars_of(value, noise):
    return {noise(1.0)._fields[0]: value}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Gaussian, "sigma must be given as sigma= or as scale=, got neither"),
        (lambda: Gaussian(0.5, scale=0.5), "sigma must be given as sigma= or as scale=, got both"),
        (lambda: Uniform(half_width=0.5, scale=0.5), "half_width must be given as half_width= or as scale=, got both"),
        (lambda: LatticeGaussian(step=0.1), "sigma must be given as sigma= or as scale=, got neither"),
        (lambda: LatticeGaussian(0.5), "step must be given"),
    ],
)
def test_a_parameter_is_given_once(make, message):
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_sample_has_the_shape_and_dtype_asked_for(key, noise, dtype):
    sample = noise(0.5).sample(key, (3, 5), dtype)
    assert (sample.shape, sample.dtype) == ((3, 5), dtype)
    np.testing.assert_array_equal(sample, noise(0.5).sample(key, (3, 5)).astype(dtype))


@pytest.mark.parametrize("noise", NOISES)
def test_scale_multiplies_the_noise(key, noise):
    unit, half = noise(1.0).sample(key, (1000,)), noise(0.5).sample(key, (1000,))
    np.testing.assert_array_equal(half, 0.5 * unit)
    scales = jnp.array([0.5, 1.0])
    np.testing.assert_array_equal(jax.vmap(lambda s: noise(s).sample(key, (1000,)))(scales), jnp.stack([half, unit]))


def test_raw_and_typed_keys_give_one_noise(key):
    raw = jax.random.key_data(key)
    np.testing.assert_array_equal(Gaussian(1.0).sample(key, (9,)), Gaussian(1.0).sample(raw, (9,)))


@pytest.mark.parametrize("noise", NOISES)
def test_unit_radius_is_exact(noise):
    p = np.array([0.5, 0.500001, 0.75, 0.999930924833, 1 - 1e-12])
    np.testing.assert_allclose(noise(1.0).unit_radius(p), EXACT[noise](p), rtol=1e-11, atol=1e-15)
    np.testing.assert_array_equal(noise(1.0).unit_radius([0.0, 0.3, 0.5]), 0.0)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("p", [-0.1, 1.1, np.nan])
def test_unit_radius_refuses_what_is_no_probability(noise, p):
    with pytest.raises(ValueError, match="probability must lie in"):
        noise(1.0).unit_radius(p)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf, 1e-60, 1e60])
def test_scale_must_be_positive_and_finite(key, noise, scale):
    with pytest.raises(ValueError, match="must be positive and finite"):
        noise(scale).sample(key, (2,))


def test_sample_refuses_what_it_cannot_draw(key):
    with pytest.raises(ValueError, match="sigma must be a scalar"):
        Gaussian(jnp.ones(3)).sample(key, (3,))
    with pytest.raises(TypeError, match="sigma must be a positive number"):
        Gaussian("half").sample(key, (3,))
    with pytest.raises(TypeError, match="dtype must be a floating dtype"):
        Gaussian(1.0).sample(key, (3,), jnp.int32)


def words_of(key, size):
    """Return the random words of a sample of this size: Threefry of a counter, as JAX computes it."""
    half = (size + 1) // 2
    counter = jnp.concatenate([jnp.zeros(half, jnp.uint32), jnp.arange(half, dtype=jnp.uint32)])
    return np.asarray(threefry_2x32(jnp.asarray(key, jnp.uint32), counter)[:size])


def uniform_of(words):
    """Return what `Uniform(1)` makes of words: the lower 31 bits from the edge inwards, then the sign."""
    m = (words & 0x7FFFFFFF).astype(np.int64)
    magnitude = ((2**31 - 1 - m).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-31)
    return np.where(words >> 31 == 0, magnitude, -magnitude)


def test_a_sample_is_made_of_the_published_words_of_threefry():
    """The first of Random123's answers (Salmon et al. 2011, kat_vectors): key 0, counter 0."""
    expected = uniform_of(np.array([0x6B200159, 0x99BA4EFE], np.uint32))
    np.testing.assert_array_equal(Uniform(1.0).sample(np.zeros(2, np.uint32), (2,)), expected)


@pytest.mark.parametrize("size", [1, 2, 7, 64, 3072])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_sample_is_made_of_the_words_of_jax_threefry_of_a_counter(key, size, wrap):
    found = wrap(lambda key: Uniform(1.0).sample(key, (size,)))(key)
    np.testing.assert_array_equal(found, uniform_of(words_of(jax.random.key_data(key), size)))


@pytest.mark.parametrize("noise", NOISES)
def test_a_sample_does_not_depend_on_jax_settings(key, noise):
    expected = noise(1.0).sample(key, (100,))
    with jax.threefry_partitionable(False):
        np.testing.assert_array_equal(noise(1.0).sample(key, (100,)), expected)


# Keys (0, seed) whose first word has lower bits within 3,000 of one end of their range, or of the other; by search.
SEEDS = np.array([
    1271445935, 1474618877, 840304356, 1013128903, 866250248, 147171763, 913620197, 285375821, 280205241, 109364902,
    307883326, 790437293, 13004434, 375913160, 907210107, 708913881, 638453688, 917300045, 342248109, 43920849,
    1059784491, 13275302, 340480411, 127913641, 887795907, 1882519467, 170612268, 1204369301, 164032848, 566048104,
    452519951, 248972001, 262059915, 1052975966, 371459413, 381186173, 1023410233, 421359387, 496328177, 203827024,
    1038769156, 251104323, 450437669, 209151041, 183878938, 707342571, 555324903, 35872847, 292884161,
], np.uint32)  # fmt: skip


@pytest.fixture(scope="module")
def samples():
    """Return a function that draws under keys whose words reach both ends, with the words' lower bits and signs."""
    keys = np.stack([np.zeros_like(SEEDS), SEEDS], axis=1)
    extreme = np.asarray(jax.vmap(lambda key: threefry_2x32(key, jnp.zeros(2, jnp.uint32))[0])(jnp.asarray(keys)))
    many = words_of([0, 1], 2**22)
    words = np.concatenate([extreme, many])
    m = (words & 0x7FFFFFFF).astype(np.int64)
    # Both ends are reached, and every power of two between has its words.
    ends = np.sort(m)[:10], 2**31 - 1 - np.sort(m)[::-1][:10]
    assert [int(end[0]) for end in ends] == [0, 0]
    assert all(end[7] < 16 for end in ends)
    for distance in (m, 2**31 - 1 - m):
        assert (np.histogram(distance, [0, *(2.0 ** np.arange(2, 32))])[0] > 0).all()

    def draw(noise):
        first = jax.jit(jax.vmap(lambda key: noise.sample(key, (1,))[0]))(jnp.asarray(keys))
        rest = jax.jit(lambda: noise.sample(np.array([0, 1], np.uint32), (2**22,)))()
        return np.concatenate([first, rest]).astype(np.float64)

    return draw, m, np.where(words >> 31 == 0, 1.0, -1.0)


def assert_close_quantiles(noise, samples, quantile, relative):
    """Compare each sample with the exact quantile of (m + 1/2) / 2^32, and those of one m and both signs to the bit."""
    draw, m, sign = samples
    magnitude = draw(noise) * sign
    np.testing.assert_allclose(magnitude, quantile((m + 0.5) / 2**32), rtol=relative)
    order = np.argsort(m, kind="stable")
    twins = np.flatnonzero((np.diff(m[order]) == 0) & (np.diff(sign[order]) != 0))
    assert len(twins) > 1000
    np.testing.assert_array_equal(magnitude[order][twins], magnitude[order][twins + 1])


def test_normal_noise_is_the_quantile_at_every_scale(samples):
    def quantile(p):
        centre = 1 - 2 * p
        # SciPy's ndtri loses relative precision next to 1/2; there the series does not.
        series = np.sqrt(np.pi / 2) * centre * (1 + np.pi / 12 * centre**2)
        return np.where(centre < 1e-4, series, -special.ndtri(p))

    assert_close_quantiles(Gaussian(1.0), samples, quantile, 5e-7)


def test_laplace_noise_is_the_quantile_at_every_scale(samples):
    def quantile(p):
        return np.where(p < 0.25, -np.log(2 * p), -np.log1p(2 * p - 1))

    assert_close_quantiles(Laplace(1.0), samples, quantile, 5e-7)


def test_uniform_noise_is_the_quantile_at_every_scale(samples):
    assert_close_quantiles(Uniform(1.0), samples, lambda p: 1 - 2 * p, 2e-7)


def test_tails_reach_beyond_six_standard_deviations(samples):
    draw, _, _ = samples
    assert np.abs(draw(Gaussian(1.0))).max() == pytest.approx(6.338, abs=1e-3)


TRUTH = {Gaussian: stats.norm(), Laplace: stats.laplace(), Uniform: stats.uniform(-1, 2)}


@pytest.mark.parametrize("noise", NOISES)
def test_distribution_and_independence(key, noise):
    """Kolmogorov-Smirnov, and correlations in every direction; each alarm is false with probability 1e-6."""
    keys = jax.vmap(lambda s: jax.random.fold_in(key, s))(jnp.arange(4096))
    drawn = np.asarray(jax.vmap(lambda k: noise(1.0).sample(k, (64,)))(keys), np.float64)
    assert stats.kstest(drawn.ravel(), TRUTH[noise].cdf).pvalue > FALSE_ALARM
    uniform = TRUTH[noise].cdf(drawn) - 0.5

    def assert_uncorrelated(a, b):
        z = 12 * (a * b).sum() / np.sqrt(a.size)
        assert abs(z) < stats.norm.isf(FALSE_ALARM / 2)

    assert_uncorrelated(uniform[:, :32], uniform[:, 32:])  # the two words of one block
    assert_uncorrelated(uniform[:, :-1], uniform[:, 1:])  # neighbouring features
    assert_uncorrelated(uniform[:-1], uniform[1:])  # neighbouring samples
