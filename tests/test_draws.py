"""The words against published answers, the maps against SciPy's quantiles, the whole against its distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32
from scipy import special, stats

from jaxsmooth import Gaussian, Laplace, Uniform, draws, samples

FALSE_ALARM = 1e-6
ONES = 0xFFFFFFFF
# kat_vectors of Random123 (Salmon et al. 2011): threefry2x32, 20 rounds.
PUBLISHED = [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((ONES, ONES), (ONES, ONES), (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]


@pytest.mark.parametrize(("key", "counter", "expected"), PUBLISHED)
def test_threefry_gives_the_published_answers(key, counter, expected):
    words = draws.threefry2x32(tuple(map(jnp.uint32, key)), tuple(map(jnp.uint32, counter)))
    assert tuple(map(int, words)) == expected


@pytest.mark.parametrize("size", [1, 2, 7, 64, 3072])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_random_words_are_jax_threefry_of_a_counter(key, size, wrap):
    half = (size + 1) // 2
    counter = jnp.concatenate([jnp.zeros(half, jnp.uint32), jnp.arange(half, dtype=jnp.uint32)])
    expected = threefry_2x32(jax.random.key_data(key), counter)[:size]
    np.testing.assert_array_equal(wrap(lambda k: draws.random_words(k, size))(key), expected)


def test_random_words_do_not_depend_on_jax_settings(key):
    expected = draws.random_words(key, 100)
    with jax.threefry_partitionable(False):
        np.testing.assert_array_equal(draws.random_words(key, 100), expected)


@pytest.fixture(scope="module")
def magnitudes():
    """31-bit magnitudes: both ends complete, geometric and linear steps between."""
    ends = np.arange(100_000)
    between = [
        np.geomspace(1, 2**31 - 1, 200_000).astype(np.int64),
        np.linspace(0, 2**31 - 1, 200_000).astype(np.int64),
    ]
    return np.unique(np.concatenate([ends, 2**31 - 1 - ends, *between]))


def assert_close_quantiles(draw, magnitudes, quantile, relative):
    """Compare each word of both signs with the exact quantile of (m + 1/2) / 2^32."""
    words = jnp.asarray(magnitudes.astype(np.uint32))
    values, mirrored = (np.asarray(jax.jit(draw)(w), np.float64) for w in (words, words | np.uint32(2**31)))
    np.testing.assert_array_equal(mirrored, -values)
    np.testing.assert_allclose(values, quantile((magnitudes + 0.5) / 2**32), rtol=relative)


def test_normal_is_the_quantile_at_every_scale(magnitudes):
    def quantile(p):
        centre = 1 - 2 * p
        # SciPy's ndtri loses relative precision next to 1/2; there the series does not.
        series = np.sqrt(np.pi / 2) * centre * (1 + np.pi / 12 * centre**2)
        return np.where(centre < 1e-4, series, -special.ndtri(p))

    assert_close_quantiles(draws.normal, magnitudes, quantile, 5e-7)


def test_laplace_is_the_quantile_at_every_scale(magnitudes):
    assert_close_quantiles(
        draws.laplace, magnitudes, lambda p: np.where(p < 0.25, -np.log(2 * p), -np.log1p(2 * p - 1)), 5e-7
    )


def test_uniform_is_the_quantile_at_every_scale(magnitudes):
    assert_close_quantiles(draws.uniform, magnitudes, lambda p: 1 - 2 * p, 2e-7)


def test_tails_reach_beyond_six_standard_deviations():
    assert float(draws.normal(jnp.uint32(0))) == pytest.approx(6.338, abs=1e-3)


DISTRIBUTIONS = {
    "normal": (draws.normal, stats.norm()),
    "laplace": (draws.laplace, stats.laplace()),
    "uniform": (draws.uniform, stats.uniform(-1, 2)),
}


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("run", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_keys_are_those_of_fold_in(key, count, run):
    words = np.random.default_rng(count).integers(0, 2**32, (count, 50), dtype=np.uint32)
    words[:, 0], words[:, 1] = 0, ONES
    expected = jnp.broadcast_to(key, 50)
    for row in words:
        expected = jax.vmap(jax.random.fold_in)(expected, row)
    found = run(draws.fold_words)(key, jnp.asarray(words))
    np.testing.assert_array_equal(jax.random.key_data(found), jax.random.key_data(expected))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_distribution_and_independence(key, name):
    """Kolmogorov-Smirnov, and correlations in every direction; each alarm is false with probability 1e-6."""
    draw, truth = DISTRIBUTIONS[name]
    keys = jax.vmap(lambda s: jax.random.fold_in(key, s))(jnp.arange(4096))
    noise = np.asarray(jax.vmap(lambda k: draw(draws.random_words(k, 64)))(keys), np.float64)
    assert stats.kstest(noise.ravel(), truth.cdf).pvalue > FALSE_ALARM
    uniform = truth.cdf(noise) - 0.5

    def assert_uncorrelated(a, b):
        z = 12 * (a * b).sum() / np.sqrt(a.size)
        assert abs(z) < stats.norm.isf(FALSE_ALARM / 2)

    assert_uncorrelated(uniform[:, :32], uniform[:, 32:])  # the two words of one block
    assert_uncorrelated(uniform[:, :-1], uniform[:, 1:])  # neighbouring features
    assert_uncorrelated(uniform[:-1], uniform[1:])  # neighbouring samples


@pytest.mark.parametrize("event", [(5,), (784,), (1, 28, 28), (32, 32, 3)])
@pytest.mark.parametrize("noise", [Gaussian(0.37), Laplace(0.4), Uniform(0.7)], ids=["normal", "laplace", "uniform"])
def test_a_sample_is_the_rounded_sum_of_an_input_and_its_rounded_noise(key, noise, event):
    x = np.random.default_rng(0).normal(size=(3, *event)).astype(np.float32)
    task, n, batch_size = samples.check_task(noise, key, x, 40, 50, None, 7)
    arguments = task, samples.Position(np.int32(1), np.int32(35)), n, batch_size
    # Loops over flat rows, and over the last axis of an image.
    drawn, rows = jax.jit(samples.draw, static_argnums=(2, 3))(*arguments)
    alone, _ = jax.jit(samples.draw_noise, static_argnums=(2, 3))(*arguments)
    np.testing.assert_array_equal(drawn, x[np.minimum(rows, 2)] + np.asarray(alone))
