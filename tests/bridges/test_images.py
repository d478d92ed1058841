"""What networks want done to their images, inside f: one form for each framework, the same numbers in all."""

import copy
import pickle

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import torch
from torch import nn

import bridges.pytorch
import bridges.tensorflow
from bridges.images import ImageSettings, image_settings, with_preprocessing
from bridges.pytorch import PyTorchRandomizedSmoothing
from jaxsmooth import Gaussian, certify
from tests.bridges.architectures import SHAPE, TORCH

IMAGES = np.random.default_rng(0).uniform(size=(2, 32, 32, 3)).astype(np.float32)
FIRST = np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Processor:
    """The attributes of an image processor of Hugging Face."""

    image_mean, image_std = list(MEAN), list(STD)
    do_resize, do_normalize, resample = True, True, 3

    def __init__(self, size):
        self.size = size


def test_the_settings_of_libraries_are_read():
    timm = {"input_size": (3, 224, 160), "interpolation": "bicubic", "mean": MEAN, "std": STD, "crop_pct": 0.9}
    assert image_settings(timm) == ImageSettings(MEAN, STD, (224, 160), "bicubic")
    assert image_settings(timm, size=(32, 32)).size == (32, 32)
    for size, expected in (({"height": 16, "width": 24}, (16, 24)), ({"shortest_edge": 16}, (16, 16))):
        assert image_settings(Processor(size)) == ImageSettings(MEAN, STD, expected, "bicubic")
    with pytest.raises(TypeError, match="config must be a mapping of timm"):
        image_settings({"mean": MEAN})
    for bad, message in (
        ({"std": 0.0}, "std must be positive"),
        ({"mean": "grey"}, "mean must be"),
        ({"size": (3, 8, 8)}, r"size must be \(height, width\)"),
        ({"interpolation": "lanczos"}, "interpolation must be one of"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            image_settings(**bad)


def test_a_processor_and_a_configuration_of_the_libraries_themselves():
    from tests.bridges.architectures import with_torchvision

    def read():
        import timm
        from transformers import ViTImageProcessor

        model = TORCH["timm convnext_atto"]()
        return timm.data.resolve_model_data_config(model), ViTImageProcessor()

    config, processor = with_torchvision(read)
    assert image_settings(config) == ImageSettings(MEAN, STD, (224, 224), "bicubic")
    assert image_settings(processor) == ImageSettings((0.5,) * 3, (0.5,) * 3, (224, 224), "bilinear")


@pytest.mark.parametrize("size", [None, (16, 16), (48, 40)])
def test_three_frameworks_make_the_same_of_an_image(size):
    settings = {"mean": MEAN, "std": STD, "size": size, "scale": 2.0}
    in_torch = bridges.pytorch.WithPreprocessing(nn.Identity(), **settings)(torch.tensor(FIRST)).numpy()
    in_keras = bridges.tensorflow.WithPreprocessing(keras.layers.Identity(), **settings)(IMAGES).numpy()
    in_jax = with_preprocessing(lambda x: x, **settings)(jnp.asarray(IMAGES))
    first = with_preprocessing(lambda x: x, **settings, channels_first=True)(jnp.asarray(FIRST))
    assert in_jax.shape == (2, *(size or (32, 32)), 3)
    for other in (in_torch.transpose(0, 2, 3, 1), in_keras, first.transpose(0, 2, 3, 1)):
        np.testing.assert_allclose(in_jax, other, atol=2e-3)
    if size is None:
        np.testing.assert_allclose(in_jax, (2 * IMAGES - np.float32(MEAN)) / np.float32(STD), rtol=1e-5)


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet", "vgg16"])
def test_the_ranges_of_keras_applications(name):
    """Three habits: -1 to 1, no scaling but colours swapped, and means taken off."""
    function = getattr(keras.applications, name).preprocess_input
    model = bridges.tensorflow.WithPreprocessing(keras.layers.Identity(), function=function, scale=255.0)
    np.testing.assert_allclose(model(IMAGES), function(255 * IMAGES.copy()), atol=1e-3)


def test_sigma_is_in_the_units_of_the_image():
    """The mistake that everybody makes: noise after the standardisation. Its radius is in units of std."""
    margin = jnp.full((1, 1, 1, 1), 0.4)
    f = with_preprocessing(lambda x: jnp.concatenate([x[:, 0, 0], -x[:, 0, 0]], -1), mean=0.3, std=0.25)
    right = certify(f, Gaussian(0.1), jax.random.key(0), margin, n=10_000).radius
    assert 0.08 < right[0] <= 0.1  # the boundary is at 0.3
    wrong = certify(lambda x: f.f(x), Gaussian(0.1), jax.random.key(0), (margin - 0.3) / 0.25, n=10_000).radius
    assert wrong[0] > 0.3  # in standardised units: no image has a distance of 0.3 here


def test_a_network_with_its_preprocessing_in_the_class():
    model = TORCH["hugging face vit"]()
    network = bridges.pytorch.WithPreprocessing(model, Processor({"height": 32, "width": 32}))
    shape = (3, 40, 40)
    x = np.random.default_rng(0).uniform(size=(2, *shape)).astype(np.float32)
    settings = {"sample_size": 8, "scale": 0.1, "seed": 0}
    found = PyTorchRandomizedSmoothing(network, nn.CrossEntropyLoss(), shape, 5, **settings).certify(x, 50)
    assert found[0].shape == (2,)
    assert SHAPE == (3, 32, 32)
    gradient = jax.grad(lambda x: bridges.pytorch.as_jax(network)(x)[0, 0])(x)
    assert np.abs(gradient[0]).max() > 0


def test_copies_of_a_keras_network_with_its_preprocessing_vote_the_same():
    layers = [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(3)]
    network = keras.Sequential(layers)
    model = bridges.tensorflow.WithPreprocessing(network, size=(8, 8), mean=0.5, std=0.25)
    settings = {"sample_size": 8, "scale": 0.1, "seed": 0}
    classifier = bridges.tensorflow.TensorFlowV2RandomizedSmoothing(model, 3, IMAGES.shape[1:], **settings)
    expected = classifier.certify(IMAGES, 100)
    for other in (copy.deepcopy(classifier), pickle.loads(pickle.dumps(classifier))):
        np.testing.assert_array_equal(other.certify(IMAGES, 100), expected)
