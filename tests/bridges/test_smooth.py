"""The smoothed classifier of a network in another framework, its gradients, its sequential certificates."""

import jax
import numpy as np
import pytest

from bridges.pytorch import as_jax as torch_as_jax
from bridges.tensorflow import as_jax as tensorflow_as_jax
from jaxsmooth import Gaussian, certify_radii, class_gradients, smooth
from tests.bridges.frameworks import PyTorch, TensorFlow
from tests.bridges.reference import inputs, reference

N = 50


@pytest.mark.parametrize("estimator", ["pathwise", "score"])
@pytest.mark.parametrize(("framework", "as_jax"), [(PyTorch, torch_as_jax), (TensorFlow, tensorflow_as_jax)])
def test_probabilities_and_gradients_are_those_of_the_network_in_jax(key, framework, as_jax, estimator):
    settings = {"n": N, "batch_size": 32, "estimator": estimator}
    bridged = smooth(as_jax(framework.network()), Gaussian(0.5), **settings)
    direct = smooth(reference, Gaussian(0.5), **settings)
    x = inputs(3)
    np.testing.assert_allclose(bridged(key, x), direct(key, x), atol=1e-5)
    expected = class_gradients(direct, key, x)
    np.testing.assert_allclose(class_gradients(bridged, key, x), expected, atol=1e-4)
    gradient = jax.jit(jax.grad(lambda x: bridged(key, x)[:, 0].sum()))(x)
    np.testing.assert_allclose(gradient, expected[:, 0], atol=1e-4)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(("framework", "as_jax"), [(PyTorch, torch_as_jax), (TensorFlow, tensorflow_as_jax)])
def test_sequential_certificates_are_those_of_the_network_in_jax(key, framework, as_jax, compiled):
    x, radii = inputs(20), [0.1, 0.2, 0.4]
    settings = {"n": 5000, "n0": 200, "batch_size": 128}
    bridged = certify_radii(as_jax(framework.network()), Gaussian(0.5), key, x, radii, compiled=compiled, **settings)
    direct = certify_radii(reference, Gaussian(0.5), key, x, radii, **settings)
    # A vote may flip whose two best scores are as close as the two frameworks' rounding: at most one input in 20.
    assert int((bridged.votes.n != direct.votes.n).sum()) <= 1
    assert int((bridged.radius != direct.radius).sum()) <= 1
    assert bool((direct.radius > 0).any())
