"""Layers as people have them: computed weights, scripts, tuples, and graphs from a caller's tensor."""

import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from tests.bridges.frameworks import NNX, PyTorch, TensorFlow
from tests.bridges.reference import SHAPE, inputs, labels

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    COMPUTED = {
        "old weight norm": nn.utils.weight_norm,
        "old spectral norm": nn.utils.spectral_norm,
        "weight norm": parametrizations.weight_norm,
        "spectral norm": parametrizations.spectral_norm,
        "orthogonal": parametrizations.orthogonal,
    }


class Bare(nn.Module):
    """Parameters that no layer knows how to draw."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((16, 3), 0.5))
        self.bias = nn.Parameter(torch.full((3,), 0.5))

    def forward(self, x):
        return x.flatten(1) @ self.weight + self.bias


def network(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "bare":
            return Bare()
        return nn.Sequential(nn.Flatten(), COMPUTED[kind](nn.Linear(16, 8)), nn.ReLU(), COMPUTED[kind](nn.Linear(8, 3)))


def set_all(model, value):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [*COMPUTED, "bare"])
def test_every_parameter_is_new_after_a_reset(kind):
    classifier = PyTorch.smoothed(network(kind))
    before = {name: value.clone() for name, value in classifier.model.named_parameters()}
    outputs = classifier.model(torch.tensor(inputs())).detach()
    clone = classifier.clone_for_refitting()
    classifier.reset()
    for other in (classifier, clone):
        assert dict(other.model.named_parameters()).keys() == before.keys()
        for name, value in other.model.named_parameters():
            assert kind == "orthogonal" or (value != before[name]).any(), name  # it keeps the new weight elsewhere
            assert value.isfinite().all()
        assert (other.model(torch.tensor(inputs())) - outputs).abs().max() > 1e-3
    assert (clone.model(torch.tensor(inputs())) - classifier.model(torch.tensor(inputs()))).abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["old weight norm", "weight norm"])
def test_a_reset_weight_has_the_distribution_of_a_new_one(kind):
    """A linear layer draws its weights uniformly within 1 / sqrt(16), also where all were 9 before."""
    model = network(kind)
    set_all(model, 9.0)
    PyTorch.smoothed(model).reset()
    model(torch.tensor(inputs()))  # hooks compute the weight here
    weight = model[1].weight
    assert weight.abs().max() <= 0.2501
    assert weight.std() > 0.1  # 0.144 for the uniform distribution; 128 values err by 6 % of it


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("freeze", [False, True])
def test_scripts_run_as_their_modules(freeze, tmp_path):
    x, y = inputs(), labels()
    script = torch.jit.script(PyTorch.network().eval())
    script = torch.jit.freeze(script) if freeze else script
    script.save(tmp_path / "net.pt")
    for model in (script, torch.jit.load(tmp_path / "net.pt")):
        expected, found = PyTorch.smoothed(), PyTorch.smoothed(model)
        np.testing.assert_array_equal(found.certify(x, 200), expected.certify(x, 200))
        np.testing.assert_array_equal(found.predict(x), expected.predict(x))
        np.testing.assert_allclose(
            found.loss_gradient(x, y, sampling=True), expected.loss_gradient(x, y, sampling=True), atol=1e-6
        )
        np.testing.assert_allclose(found.compute_loss(x, y), expected.compute_loss(x, y), rtol=1e-5)


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.twice = nn.Linear(5, 5)
        self.never = nn.Linear(5, 5)
        self.last = nn.Linear(20, 3)

    def forward(self, x):
        hidden, _ = self.lstm(x[:, 0])
        return self.last(self.twice(self.twice(hidden)).flatten(1))


def test_activations_of_odd_layers():
    classifier, x = PyTorch.smoothed(Odd()), inputs()
    expected = classifier.model.lstm(torch.tensor(x[:, 0]))[0].detach()
    np.testing.assert_allclose(classifier.get_activations(x, "lstm"), expected, atol=1e-6)
    with pytest.raises(ValueError, match="'twice' was called 2 times"):
        classifier.get_activations(x, "twice")
    with pytest.raises(ValueError, match="'never' was not called"):
        classifier.get_activations(x, "never")
    gradient = classifier.custom_loss_gradient(lambda a, b: ((a - b) ** 2).sum(), x, 2 * x, "lstm")
    assert np.abs(gradient).max() > 0


@pytest.mark.parametrize("preprocessing", [(0.0, 1.0), (0.3, 2.0)], ids=["plain", "standardised"])
def test_activations_keep_the_graph_of_a_tensor(preprocessing):
    """Their gradient is that of the network in the framework itself."""
    import jax
    import jax.numpy as jnp
    import tensorflow as tf

    x, (mean, std) = inputs(), preprocessing
    gradients = []
    classifier = PyTorch.smoothed(preprocessing=preprocessing)
    leaf = torch.tensor(x, requires_grad=True)
    (classifier.get_activations(leaf, "2", framework=True) ** 2).sum().backward()
    gradients.append(leaf.grad.numpy())
    classifier = TensorFlow.smoothed(preprocessing=preprocessing)
    with tf.GradientTape() as tape:
        variable = tf.Variable(x)
        value = tf.reduce_sum(classifier.get_activations(variable, "2", framework=True) ** 2)
    gradients.append(tape.gradient(value, variable).numpy())
    classifier = NNX.smoothed(preprocessing=preprocessing)

    def squares(x):
        return (jax.nn.relu(classifier.get_activations(x, "1", framework=True)) ** 2).sum()

    gradients.append(jax.grad(squares)(jnp.asarray(x)))
    model = PyTorch.network()[:3]
    own = torch.tensor(x, requires_grad=True)
    (model((own - mean) / std) ** 2).sum().backward()
    for gradient in gradients:
        np.testing.assert_allclose(gradient, own.grad, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"x must have shape \(N, 1, 4, 4\)"):
        PyTorch.smoothed().get_activations(torch.zeros(2, 3), "2", framework=True)


def test_mean_and_standard_deviation_of_a_batch_are_taken(framework):
    mean, std = np.full((1, 1, 4, 4), 0.25), np.full((1, 1, 1, 1), 2.0)
    found = framework.smoothed(preprocessing=(mean, std)).predict(inputs())
    np.testing.assert_array_equal(found, framework.smoothed(preprocessing=(0.25, 2.0)).predict(inputs()))


def test_many_classes_take_memory_for_few():
    """Scores of 131,072 rows at once would take 500 MB; a matrix of classes 1 GB."""
    from tests.memory import growth

    classes = 16_000
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, classes))
    classifier = PyTorch.smoothed(model, nb_classes=classes, input_shape=SHAPE, check=False)
    assert growth(lambda n: classifier.certify(inputs(1), n), 100, 3000) < 64
    gradient = classifier.class_gradient(inputs(2), label=7)
    np.testing.assert_allclose(gradient[0, 0].ravel(), model[1].weight[7].detach(), rtol=1e-6)


def test_activations_are_those_before_the_next_layer_writes_to_them():
    model = PyTorch.network()
    model[2] = nn.ReLU(inplace=True)
    classifier, x = PyTorch.smoothed(model), inputs()
    expected = PyTorch.smoothed().get_activations(x, "1")
    assert expected.min() < 0
    np.testing.assert_array_equal(classifier.get_activations(x, "1"), expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["old spectral norm", "spectral norm"])
def test_a_reset_weight_under_spectral_norm_has_norm_one(kind):
    """In evaluation mode, too, where the vectors that estimate it stay as they are."""
    model = network(kind).eval()
    PyTorch.smoothed(model).reset()
    model(torch.tensor(inputs()))
    assert abs(torch.linalg.matrix_norm(model[1].weight.detach(), 2) - 1) < 0.2


class Gate(nn.Module):
    """Waits, so that one of two threads leaves while the other one votes."""

    def __init__(self, base, event, waits):
        super().__init__()
        self.base, self.event, self.waits = base, event, waits

    def forward(self, x):
        if self.waits:
            self.event.wait(20)
        result = self.base(x)
        self.modes.append(self.base.training)
        return result

    modes = []  # noqa: RUF012


def test_a_part_that_two_networks_share_stays_in_evaluation_mode_until_both_are_done():
    event, base = threading.Event(), nn.Sequential(PyTorch.network(), nn.Dropout(0.9)).train()
    slow, fast = (PyTorch.smoothed(Gate(base, event, waits).train(), check=False) for waits in (True, False))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(slow.predict, inputs())
        for _ in range(100):
            if not base.training:
                break
            time.sleep(0.05)
        fast.predict(inputs())
        event.set()
        running.result()
    assert Gate.modes
    assert not any(Gate.modes)
    assert base.training
