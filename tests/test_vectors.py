"""Programs for wide vectors: the same bits, inside other programs too, and with an XLA that knows no such option."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsmooth import Gaussian, Laplace, LatticeGaussian, Uniform, samples, stream_samples, vectors

NOISES = [Gaussian(0.37), Laplace(0.4), Uniform(0.7), LatticeGaussian(0.5, step=2.0**-10)]


@pytest.fixture
def forget():
    """Let a test change the options."""
    vectors._takes_options.cache_clear()
    yield
    vectors._takes_options.cache_clear()


@pytest.mark.parametrize("event", [(13,), (784,), (3, 32, 32)])
@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: type(noise).__name__)
def test_noise_has_the_same_bits(key, noise, event):
    if not vectors._takes_options():
        pytest.skip("XLA runs elsewhere, or has no such option")
    x = np.random.default_rng(0).normal(size=(3, *event)).astype(np.float32)
    task, n, batch_size = samples.check_task(noise, key, x, 100, 130, None, 7)
    arguments = task, samples.Position(np.int32(0), np.int32(35)), n, batch_size
    assert samples._draw_jit.wide is not samples._draw_jit._plain
    for wide, plain in zip(samples._draw_jit.wide(*arguments), samples._draw_jit._plain(*arguments), strict=True):
        np.testing.assert_array_equal(wide, plain)


@pytest.mark.usefixtures("forget")
def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setattr(vectors, "_OPTIONS", {"xla_cpu_no_such_option": 1})
    program = vectors.WideJit(jnp.square)
    assert program.wide is program._plain
    assert program(3.0) == 9.0


@pytest.mark.usefixtures("forget")
def test_its_first_call_may_be_within_another_program():
    program = vectors.WideJit(jnp.square)
    assert jax.jit(program)(3.0) == jax.vmap(program)(jnp.full(1, 3.0))[0] == program(3.0) == 9.0


def test_it_runs_within_other_programs(key):
    x = jnp.arange(6.0).reshape(2, 3)

    def second_sample(x):
        return next(iter(stream_samples(Gaussian(0.5), key, x, n=2)))[0][1::2]

    expected = second_sample(x)
    np.testing.assert_array_equal(jax.jit(second_sample)(x), expected)
    np.testing.assert_array_equal(jax.jit(lambda scale: scale * second_sample(x))(1.0), expected)
    np.testing.assert_array_equal(jax.vmap(second_sample)(x[:, None])[:, 0, :], second_sample(x[:1] * 0) + x)
    np.testing.assert_array_equal(jax.grad(lambda x: second_sample(x).sum())(x), jnp.ones((2, 3)))
