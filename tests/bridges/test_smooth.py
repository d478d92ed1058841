"""The smoothed classifier of a network in another framework, and its gradients."""

import jax
import numpy as np
import pytest

from bridges.pytorch import as_jax as torch_as_jax
from bridges.tensorflow import as_jax as tensorflow_as_jax
from jaxsmooth import Gaussian, class_gradients, smooth
from tests.bridges.frameworks import PyTorch, TensorFlow, inputs, reference

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
