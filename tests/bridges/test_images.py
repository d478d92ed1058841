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
from jaxsmooth import Gaussian, RandomClassifier, certify
from tests.bridges.architectures import SHAPE, TORCH, with_torchvision

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
    timm = {"input_size": (3, 224, 160), "interpolation": "bicubic", "mean": MEAN, "std": STD}
    assert image_settings(timm) == ImageSettings(MEAN, STD, (224, 160), "bicubic")
    squash = ImageSettings(MEAN, STD, (256, 182), "bicubic", crop=(224, 160))
    assert image_settings({**timm, "crop_pct": 0.875, "crop_mode": "squash"}) == squash
    assert image_settings(timm, size=(32, 32)).size == (32, 32)
    for size, expected in (({"height": 16, "width": 24}, (16, 24)), ({"shortest_edge": 16}, 16)):
        assert image_settings(Processor(size)) == ImageSettings(MEAN, STD, expected, "bicubic")
    with pytest.raises(TypeError, match="config must be a mapping of timm"):
        image_settings({"mean": MEAN})
    for bad, message in (
        ({"std": 0.0}, "std must be positive"),
        ({"std": np.inf}, "std must be finite"),
        ({"mean": np.nan}, "mean must be finite"),
        ({"mean": [[0.5]]}, "mean must be one number, or one for each channel"),
        ({"scale": -1.0}, "scale must be positive"),
        ({"scale": [1.0, 2.0]}, "scale must be one number"),
        ({"crop": 8}, r"crop must be \(height, width\)"),
        ({"config": Processor}, "config must be a mapping of timm"),
        (
            {"config": {**timm, "input_size": (224, 160, 3)}},
            r"input_size of config must be \(channels, height, width\)",
        ),
        ({"config": {**timm, "crop_pct": 0.9, "crop_mode": "border"}}, "crop_mode of config must be one of"),
        ({"mean": "grey"}, "mean must be"),
        ({"size": (3, 8, 8)}, r"size must be \(height, width\)"),
        ({"interpolation": "lanczos"}, "interpolation must be one of"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            image_settings(**bad)


# Smooth, so that only a wrong size, place, order or range of pixels shows, and not the rounding to 8 bits in between.
def smooth_image(height, width):
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(5 * rows + 3 * columns), np.cos(4 * columns), np.sin(3 * rows) * np.cos(2 * columns)]
    return np.uint8(127 + 120 * np.stack(waves, -1))


def ours(config, image):
    x = np.float32(image)[None] / 255
    in_torch = bridges.pytorch.WithPreprocessing(nn.Identity(), config)(torch.tensor(x.transpose(0, 3, 1, 2))).numpy()
    in_keras = bridges.tensorflow.WithPreprocessing(keras.layers.Identity(), config)(x).numpy()
    in_jax = with_preprocessing(lambda x: x, config)(jnp.asarray(x))
    for other in (in_keras, np.asarray(in_jax)):
        np.testing.assert_allclose(in_torch, other.transpose(0, 3, 1, 2), rtol=1e-4, atol=2e-3)
    return in_torch


PROCESSORS = {
    "ViT": ({}, {"resample": 0}, {"resample": 3}, {"rescale_factor": 1 / 127.5}, {"do_rescale": False}),
    "DeiT": ({}, {"size": {"height": 40, "width": 48}, "crop_size": {"height": 32, "width": 16}}),
    "ConvNext": ({}, {"size": {"shortest_edge": 384}}),
    "Bit": ({},),
    "CLIP": ({},),
    "MobileNetV2": ({},),
    "Beit": ({},),
}
OPEN = {"MobileViT": "do_flip_channel_order", "EfficientNet": "include_top", "Levit": "its own resizing"}
OPEN["PoolFormer"] = "its own resizing"


def processor_of(name, **settings):
    def build():
        import transformers

        return getattr(transformers, f"{name}ImageProcessor")(**settings)

    return with_torchvision(build)


@pytest.mark.parametrize("name", PROCESSORS)
def test_images_are_those_of_hugging_face(name):
    from PIL import Image

    image = smooth_image(300, 256)
    for settings in PROCESSORS[name]:
        processor = processor_of(name, **settings)
        theirs = np.asarray(processor(images=Image.fromarray(image), return_tensors="pt")["pixel_values"])
        step = theirs.max() / 255  # a library rounds to 8 bits after the resizing
        np.testing.assert_allclose(ours(processor, image), theirs, atol=max(4 * step, 0.04))


@pytest.mark.parametrize("name", OPEN)
def test_what_is_not_known_of_a_processor_is_refused_by_name(name):
    processor = processor_of(name)
    with pytest.raises(ValueError, match=f"config must do nothing but .* {OPEN[name]}"):
        image_settings(processor)


def test_images_are_those_of_timm():
    from PIL import Image

    def read():
        from timm.data import create_transform, resolve_model_data_config

        configs = [resolve_model_data_config(TORCH[name]()) for name in TORCH if name.startswith("timm")]
        return [(config, create_transform(**config, is_training=False)) for config in configs]

    image = smooth_image(300, 256)
    for config, transform in with_torchvision(read):
        theirs = transform(Image.fromarray(image))[None].numpy()
        np.testing.assert_allclose(ours(config, image), theirs, atol=0.05)


def test_nearest_takes_the_pixels_of_pil():
    from PIL import Image

    image = np.random.default_rng(0).integers(0, 256, (10, 10, 3)).astype(np.uint8)
    for size in ((4, 4), (17, 17), (7, 13)):
        theirs = np.asarray(Image.fromarray(image).resize(size[::-1], 0)).transpose(2, 0, 1)[None]
        found = bridges.pytorch.WithPreprocessing(nn.Identity(), size=size, interpolation="nearest", scale=255.0)
        x = torch.tensor(image.transpose(2, 0, 1)[None] / 255).float()
        np.testing.assert_allclose(found(x), theirs, atol=1e-3)


def test_channels_at_another_place_are_refused():
    for model in (
        with_preprocessing(lambda x: x, mean=MEAN),
        with_preprocessing(lambda x: x, size=(8, 8)),
        bridges.tensorflow.WithPreprocessing(keras.layers.Identity(), size=(8, 8)),
    ):
        with pytest.raises(ValueError, match="must have shape \\[B, H, W, C\\] with"):
            model(FIRST)
    with pytest.raises(ValueError, match="must have shape \\[B, C, H, W\\] with 3 channels of mean and std"):
        bridges.pytorch.WithPreprocessing(nn.Identity(), mean=MEAN)(torch.zeros(2, 1, 8, 8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_of_half_precision(dtype):
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4)).to(dtype)
    whole = bridges.pytorch.WithPreprocessing(network, size=(8, 8), mean=MEAN, std=STD).to(dtype)
    assert bridges.pytorch.as_jax(whole)(FIRST).shape == (2, 4)


def test_a_random_classifier_with_its_preprocessing():
    def drop(x, keys):
        return x.mean((1, 2)) * jax.vmap(lambda key: jax.random.bernoulli(key, 0.9, (3,)))(keys)

    f = with_preprocessing(RandomClassifier(drop), mean=0.5)
    assert certify(f, Gaussian(0.1), jax.random.key(0), IMAGES, n=100).label.shape == (2,)


def test_a_keras_network_with_its_preprocessing_is_saved_and_copied(tmp_path):
    network = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(4)])
    whole = bridges.tensorflow.WithPreprocessing(network, size=(8, 8), mean=0.5)
    before = whole(IMAGES)
    whole.save(tmp_path / "whole.keras")
    for other in (keras.models.load_model(tmp_path / "whole.keras"), copy.deepcopy(whole)):
        np.testing.assert_array_equal(other(IMAGES), before)


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
