"""Rewritten convolutions compute the same, in every layout, within every kind of program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxsmooth import Gaussian, smooth, stream_samples
from jaxsmooth.convolutions import canonical_convolutions

CASES = {
    "plain": {},
    "strided": {"window_strides": (2, 1)},
    "padded unevenly": {"padding": ((1, 2), (0, 3))},
    "inputs dilated": {"lhs_dilation": (2, 3), "padding": ((1, 1), (0, 2))},
    "kernel dilated": {"rhs_dilation": (2, 1)},
    "groups of features": {"feature_group_count": 2},
    "groups of the batch": {"batch_group_count": 2},
    "kernel turned": {"dimension_numbers": ("NHWC", "HWOI", "NHWC")},
    "batch last": {"dimension_numbers": ("CHWN", "IHWO", "NHWC")},
    "result turned": {"dimension_numbers": ("HWNC", "OHWI", "CNWH")},
}


def arrays(layout, feature_groups=1):
    rng = np.random.default_rng(0)
    sizes = {"N": 4, "C": 4, "H": 7, "W": 6, "O": 6, "I": 4 // feature_groups}
    kernel = {**sizes, "H": 3, "W": 2}
    x = rng.normal(size=[sizes[axis] for axis in layout[0]])
    return jnp.asarray(x, jnp.float32), jnp.asarray(rng.normal(size=[kernel[axis] for axis in layout[1]]), jnp.float32)


@pytest.mark.parametrize("case", CASES)
def test_every_layout_gives_the_same(case):
    settings = {"window_strides": (1, 1), "padding": "VALID", "dimension_numbers": ("NCHW", "OIHW", "NCHW")}
    settings |= CASES[case]
    x, kernel = arrays(settings["dimension_numbers"], settings.get("feature_group_count", 1))

    def run(x, kernel):
        return lax.conv_general_dilated(x, kernel, **settings)

    np.testing.assert_allclose(canonical_convolutions(run)(x, kernel), run(x, kernel), rtol=1e-4, atol=1e-5)
    gradient = jax.grad(lambda x, kernel: (run(x, kernel) ** 2).sum(), argnums=(0, 1))
    for one, two in zip(canonical_convolutions(gradient)(x, kernel), gradient(x, kernel), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)


def conv(x, kernel):
    return lax.conv(x, kernel, (1, 1), "SAME")


PROGRAMS = {
    "jit": lambda x, k: jax.jit(conv)(x, k),
    "checkpoint": lambda x, k: jax.checkpoint(conv)(x, k),
    "scan": lambda x, k: lax.scan(lambda x, _: (conv(x, k), x.sum()), x, None, 3),
    "while": lambda x, k: lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, conv(s[1], k)), (0, x)),
    "cond": lambda x, k: lax.cond(x.sum() > 0, lambda x: conv(x, k), lambda x: 2 * x, x),
    "custom derivative": lambda x, k: jax.nn.relu(conv(x, k)),
    "literals and repeated arguments": lambda x, k: (conv(x, k) * 2.0, conv(x, k) + x - x),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_within_programs_compute_the_same(program):
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 3, 5, 5), (3, 3, 3, 3)))
    run = PROGRAMS[program]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        jax.jit(canonical_convolutions(run))(x, kernel),
        run(x, kernel),
    )


def test_a_kernel_s_inputs_and_outputs_come_last_in_the_rewritten_program():
    x, kernel = arrays(("NCHW", "OIHW"))
    program = jax.make_jaxpr(jax.jit(canonical_convolutions(conv)))(x, kernel)
    assert "lhs_spec=(0, 3, 1, 2), rhs_spec=(3, 2, 0, 1)" in str(program)
    assert "lhs_spec=(0, 1, 2, 3)" not in str(program)


@pytest.mark.parametrize("batch_size", [5, 100])
def test_gradients_of_a_smoothed_network_with_convolutions(key, batch_size):
    rng = np.random.default_rng(0)
    kernel, dense = (jnp.asarray(rng.normal(size=s) / 5, jnp.float32) for s in ((6, 3, 3, 3), (96, 4)))
    x = jnp.asarray(rng.normal(size=(3, 3, 8, 8)), jnp.float32)

    def network(kernel, dense, x):
        hidden = jax.nn.relu(lax.conv(x, kernel, (2, 2), "SAME"))
        return hidden.reshape(len(x), -1) @ dense

    def averaged(kernel, dense, x):
        f = jax.tree_util.Partial(network, kernel, dense)
        g = smooth(f, Gaussian(0.5), n=12, batch_size=batch_size)
        return jnp.log(g(key, x)[:, 0]).sum()

    ((noisy, rows),) = stream_samples(Gaussian(0.5), key, x, n=12, batch_size=36)
    noise = noisy - x[rows]

    def direct(kernel, dense, x):
        p = jax.nn.softmax(network(kernel, dense, x[rows] + noise))[:, 0].reshape(3, 12).mean(1)
        return jnp.log(p).sum()

    for one, two in zip(*(jax.grad(f, (0, 1, 2))(kernel, dense, x) for f in (averaged, direct)), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-5)
