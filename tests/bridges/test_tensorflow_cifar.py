"""A pretrained network that nobody here trained, on real images: the CIFAR-10 CNN of cifar-10-model, pixels 0..255."""

import keras
import numpy as np
import pytest
from matplotlib.image import imread

import jaxsmooth
from bridges.tensorflow import TensorFlowV2RandomizedSmoothing
from tests.packages import folder


@pytest.fixture(scope="module")
def cifar():
    """Ten images as NHWC in [0, 255], and their labels."""
    files = sorted((folder("foolbox") / "data").glob("cifar10_*.png"))[:10]
    images = np.stack([imread(file)[..., :3] for file in files]) * 255
    return images.astype(np.float32), np.array([int(file.stem.split("_")[-1]) for file in files])


@pytest.fixture(scope="module")
def classifier():
    with pytest.warns(UserWarning, match="input_shape"):  # Keras, about how the file was written
        model = keras.models.load_model(folder("cifar_10_model") / "trained_models" / "cnn_model.h5", compile=False)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return TensorFlowV2RandomizedSmoothing(model, 10, (32, 32, 3), loss, scale=8.0, sample_size=50, seed=0)


def test_it_is_certified(classifier, cifar):
    x, y = cifar
    label, radius = classifier.certify(x, n=300)
    assert jaxsmooth.certified_accuracy(label, radius, y, [4.0])[0] >= 0.8
    # 300 of 300 votes at alpha 0.001 bound the probability at 0.97724, which is 2.0000 sigma.
    assert radius.max() <= 8 * 2.0001
    predicted = classifier.predict(x)
    assert (predicted.argmax(1) == y)[predicted.any(axis=1)].mean() >= 0.9


def test_attacks_within_the_radius_fail_and_beyond_it_succeed(classifier, cifar):
    """Steps along the gradient of the smoothed loss: none inside the radius changes a class, some far outside do."""
    x, y = cifar[0][:4], cifar[1][:4]
    label, radius = classifier.certify(x, n=300)
    assert (label == y).all()
    gradient = classifier.loss_gradient(x, y, sampling=True)
    direction = gradient / np.linalg.norm(gradient.reshape(4, -1), axis=1)[:, None, None, None]
    inside = classifier.predict(x + 0.9 * radius[:, None, None, None] * direction, is_abstain=False)
    outside = classifier.predict(x + 100.0 * direction, is_abstain=False)
    assert (inside.argmax(1) == y).all()
    assert (outside.argmax(1) != y).any()
