"""Bounds against SciPy and statsmodels in float64; nothing in float32 above them."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from jaxsmooth import Gaussian, bounds

ALPHAS = [0.05, 0.001, 1e-6]
SIZES = [1, 2, 10, 100, 1000, 9_999, 100_000]


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("n", SIZES)
def test_clopper_pearson_is_the_bound_of_statsmodels(n, alpha):
    k = np.unique(np.linspace(0, n, 2000).astype(int))
    expected = proportion_confint(k, n, 2 * alpha, method="beta")[0]
    np.testing.assert_allclose(bounds.clopper_pearson_lower(k, n, alpha), expected, rtol=1e-12)


@given(st.data(), st.integers(1, 100_000), st.floats(1e-9, 0.49))
@settings(deadline=None, max_examples=200)
def test_clopper_pearson_inverts_the_binomial_tail(data, n, alpha):
    k = data.draw(st.integers(1, n))
    bound = float(bounds.clopper_pearson_lower(k, n, alpha))
    assert stats.binom.sf(k - 1, n, bound) == pytest.approx(alpha, rel=1e-6)


def test_clopper_pearson_is_zero_without_votes_and_scalar_for_scalars():
    assert bounds.clopper_pearson_lower(0, 10, 0.05) == 0.0
    assert np.shape(bounds.clopper_pearson_lower(3, 10, 0.05)) == ()


@pytest.mark.parametrize(("k", "error"), [(-1, ValueError), (11, ValueError), (0.5, TypeError)])
def test_clopper_pearson_refuses_counts_out_of_range(k, error):
    with pytest.raises(error, match="count must"):
        bounds.clopper_pearson_lower(k, 10, 0.05)


@pytest.mark.parametrize("alpha", [*ALPHAS, 0.49, 0.999, 1e-300])
def test_passing_counts_are_those_of_the_exact_test(alpha):
    table = bounds.passing_counts(150, alpha)
    for total in range(151):
        top = int(table[total])
        assert total < 2 * top <= 2 * (total + 1)
        # The p-value falls as the top count rises from half of the total.
        assert top > total or stats.binomtest(top, total).pvalue <= alpha
        assert 2 * (top - 1) <= total or stats.binomtest(top - 1, total).pvalue > alpha


@pytest.mark.parametrize("alpha", ALPHAS)
def test_passing_counts_of_large_totals(alpha):
    table = bounds.passing_counts(100_000, alpha)
    for total in [1_000, 9_999, 50_001, 99_999, 100_000]:
        top = int(table[total])
        assert stats.binomtest(top, total).pvalue <= alpha < stats.binomtest(top - 1, total).pvalue


@pytest.mark.parametrize("alpha", [1e-300, 1e-100])
def test_passing_counts_of_extreme_levels(alpha):
    table = bounds.passing_counts(20_000, alpha)
    for total in [0, 1, 2, 300, 1_500, 2_001, 20_000]:
        top = int(table[total])
        assert total // 2 < top <= total + 1
        assert top > total or stats.binomtest(top, total).pvalue <= alpha
        assert 2 * (top - 1) <= total or stats.binomtest(top - 1, total).pvalue > alpha
    np.testing.assert_array_equal(bounds.passing_counts(100, 5e-324), np.arange(101) + 1)


@pytest.mark.parametrize("n", [1, 10, 1000, 100_000])
def test_binomial_p_value(n):
    rng = np.random.default_rng(0)
    total = rng.integers(0, n + 1, 300)
    top = np.minimum(total, total // 2 + rng.integers(0, 2 + 6 * int(n**0.5), 300))
    values = jax.jit(lambda a, b: bounds.binomial_p_value(a, b, n))(jnp.asarray(top), jnp.asarray(total - top))
    expected = [stats.binomtest(int(t), int(m)).pvalue if 2 * t > m else 1.0 for t, m in zip(top, total, strict=True)]
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-36)
    assert (np.asarray(values) > 0).all()


@given(st.floats(-1e30, 1e30))
def test_round_down_is_the_largest_float32_below(value):
    rounded = bounds.round_down(np.float64(value))
    assert rounded.dtype == np.float32
    assert float(rounded) <= value < float(np.nextafter(rounded, np.float32(np.inf)))


@given(
    st.lists(st.floats(2.0**-20, 40.0), min_size=64, max_size=64),
    st.floats(2.0**-20, 2.0**20, width=32),
)
@settings(deadline=None, max_examples=100)
def test_scaled_radius_is_below_the_product_by_less_than_two_units(unit, scale):
    unit = np.array(unit)
    radius = np.asarray(jax.jit(bounds.scaled_radius)(jnp.float32(scale), *bounds.split_radii(Gaussian(scale), unit)))
    for r, u in zip(radius, unit, strict=True):
        exact = Fraction(float(scale)) * Fraction(float(u))
        assert Fraction(float(r)) <= exact * (1 - Fraction(1, 2**24))
        two_up = np.nextafter(np.nextafter(r, np.float32(np.inf)), np.float32(np.inf))
        assert exact < Fraction(float(two_up)) * (1 + Fraction(1, 10**11))
