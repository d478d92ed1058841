"""Noise: shapes, dtypes, scales, radii against SciPy, refused arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxsmooth import Gaussian, Laplace, Noise, Uniform

NOISES = [Gaussian, Laplace, Uniform]
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
