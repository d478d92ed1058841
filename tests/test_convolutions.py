"""Gradients of a smoothed network with convolutions: those of plain differentiation, in every layout and program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.tree_util import Partial

from jaxsmooth import Gaussian, smooth, stream_samples

NOISE, N = Gaussian(0.5), 12
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


def array(*shape):
    return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape) / 3, jnp.float32)


def gradients(network, parameters, x, batch_size=10):
    """Return the gradients in parameters and x, by `smooth` and by differentiation of the mean over its samples."""
    key = jax.random.key(20)
    inputs = len(x)

    def smoothed(parameters, x):
        g = smooth(Partial(network, parameters), NOISE, n=N, batch_size=batch_size)
        return jnp.log(g(key, x)[:, 0]).sum()

    ((noisy, rows),) = stream_samples(NOISE, key, x, n=N, batch_size=N * inputs)
    noise = noisy - x[rows]

    def direct(parameters, x):
        p = jax.nn.softmax(network(parameters, x[rows] + noise))[:, 0].reshape(inputs, N).mean(1)
        return jnp.log(p).sum()

    return [jax.jit(jax.grad(run, (0, 1)))(parameters, x) for run in (smoothed, direct)]


def assert_close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), one, other)


def scores(values):
    """Return two scores of each row, in which each of its values has a weight of its own."""
    flat = jnp.tanh(values.reshape(len(values), -1))
    slopes = jnp.linspace(-1.0, 1.0, flat.shape[1])[None]
    return jnp.stack([(flat * slopes).sum(axis=1), (flat * slopes[:, ::-1] ** 2).sum(axis=1)], axis=1)


@pytest.mark.parametrize("case", CASES)
def test_every_layout_gives_the_same_gradients(case):
    """The rows are the batch of the convolution, wherever its layout has it."""
    settings = {"window_strides": (1, 1), "padding": "VALID", "dimension_numbers": ("NCHW", "OIHW", "NCHW")}
    settings |= CASES[case]
    layout, kernel_layout, result = settings["dimension_numbers"]
    sizes = {"N": 4, "C": 4, "H": 7, "W": 6, "O": 6, "I": 4 // settings.get("feature_group_count", 1)}
    window = {**sizes, "H": 3, "W": 2}
    kernel = array(*(window[axis] for axis in kernel_layout))
    if case == "groups of the batch":  # they mix the batch: each row is a batch of 4 by itself
        x = array(2, *(sizes[axis] for axis in layout))

        def network(kernel, x):
            return scores(lax.map(lambda row: lax.conv_general_dilated(row, kernel, **settings), x))
    else:
        x = array(3, *(sizes[axis] for axis in layout.replace("N", "")))

        def network(kernel, x):
            values = lax.conv_general_dilated(jnp.moveaxis(x, 0, layout.index("N")), kernel, **settings)
            return scores(jnp.moveaxis(values, result.index("N"), 0))

    assert_close(*gradients(network, kernel, x))


def conv(x, kernel):
    return lax.conv(x, kernel, (1, 1), "SAME")


PROGRAMS = {
    "jit": lambda x, k: jax.jit(conv)(x, k),
    "checkpoint": lambda x, k: jax.checkpoint(conv)(x, k),
    "scan": lambda x, k: lax.scan(lambda x, _: (conv(x, k), x.sum()), x, None, 3)[0],
    "while": lambda x, k: lax.stop_gradient(while_loop(x, k)) + conv(x, k),
    "cond": lambda x, k: lax.cond(x.sum() > 0, lambda x: conv(x, k), lambda x: 2 * conv(x, k), x),
    "custom derivative": lambda x, k: jax.nn.relu(conv(x, k)),
    "literals and repeated arguments": lambda x, k: conv(x, k) * 2.0 + conv(x, k) + x - x,
}


def while_loop(x, k):
    x, k = lax.stop_gradient((x, k))
    return lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, conv(s[1], k)), (0, x))[1]


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_within_programs_give_the_same_gradients(program):
    run = PROGRAMS[program]
    if program == "cond":  # its condition is about one row: a sum over the batch would be no function of each row

        def network(kernel, x):
            return scores(lax.map(lambda row: run(row[None], kernel)[0], x))
    else:

        def network(kernel, x):
            return scores(run(x, kernel))

    assert_close(*gradients(network, array(3, 3, 3, 3), array(2, 3, 5, 5)))


def test_a_kernel_s_inputs_and_outputs_come_last_in_the_loop_of_the_gradient(key):
    """The forward pass keeps the layout of the network. What the loop of the gradient adds has the fast one."""
    x, kernel = array(2, 4, 7, 6), array(6, 4, 3, 2)
    g = smooth(lambda x: scores(conv(x, kernel)), NOISE, n=N, batch_size=8)
    forward = str(jax.make_jaxpr(lambda x: g(key, x))(x))
    gradient = str(jax.make_jaxpr(jax.grad(lambda x: g(key, x)[0, 0]))(x))
    plain, fast = "lhs_spec=(0, 1, 2, 3)", "lhs_spec=(0, 3, 1, 2), rhs_spec=(3, 2, 0, 1)"
    assert forward.count("lhs_spec") == forward.count(plain) > 0
    assert gradient.count(plain) == forward.count(plain)
    expected = gradient.count(fast) if jax.default_backend() == "cpu" else 0
    assert gradient.count("lhs_spec") - forward.count("lhs_spec") == expected >= 2


@pytest.mark.parametrize("batch_size", [5, 100])
def test_gradients_of_a_network_in_all_its_parameters(batch_size):
    rng = np.random.default_rng(0)
    kernel, dense = (jnp.asarray(rng.normal(size=s) / 5, jnp.float32) for s in ((6, 3, 3, 3), (96, 4)))
    x = jnp.asarray(rng.normal(size=(3, 3, 8, 8)), jnp.float32)

    def network(parameters, x):
        kernel, dense = parameters
        hidden = jax.nn.relu(lax.conv(x, kernel, (2, 2), "SAME"))
        return hidden.reshape(len(x), -1) @ dense

    assert_close(*gradients(network, (kernel, dense), x, batch_size))
