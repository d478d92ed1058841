"""Networks behind denoisers in PyTorch and Keras: the same as in JAX, alone, as JAX functions and in the classes."""

import copy

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import torch
from torch import nn

import bridges.pytorch
import bridges.tensorflow
from bridges.pytorch import PyTorchRandomizedSmoothing
from bridges.tensorflow import TensorFlowV2RandomizedSmoothing
from jaxsmooth import Gaussian, certify, denoised, key_of_seed, linear_schedule
from tests.bridges.architectures import with_torchvision

KEY = key_of_seed(0)
SIGMA = 0.25
SCHEDULE = linear_schedule(1000)
X = np.random.default_rng(0).uniform(size=(3, 8, 8, 1)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=(64, 4)).astype(np.float32)


def blur(x):
    """A denoiser in operators only, so that it is the same function in every framework."""
    return 0.25 * x + 0.5 * x * x


def predict_noise(image, t):
    del t
    return 0.3 * image


def classify(x):
    return x.reshape(len(x), -1) @ jnp.asarray(WEIGHTS)


class Flat(nn.Module):
    """The same classifier in PyTorch, of images with channels first."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(WEIGHTS))

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1) @ self.weights


def keras_network():
    network = keras.Sequential([keras.layers.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(4)])
    network.layers[-1].set_weights([WEIGHTS, np.zeros(4, np.float32)])
    return network


DENOISERS = {
    "function": (blur, {}),
    "diffusion": (predict_noise, {"noise": Gaussian(SIGMA), "schedule": SCHEDULE}),
    "pixels": (predict_noise, {"noise": Gaussian(SIGMA), "schedule": SCHEDULE, "clip_values": (-1.0, 3.0)}),
    "velocity": (predict_noise, {"noise": Gaussian(SIGMA), "schedule": SCHEDULE, "prediction": "v_prediction"}),
}


@pytest.mark.parametrize("name", DENOISERS)
def test_all_frameworks_compute_the_same(name):
    denoiser, settings = DENOISERS[name]
    expected = denoised(classify, denoiser, **settings)
    ours = {
        "pytorch": (bridges.pytorch.Denoised(Flat(), denoiser, **settings), X.transpose(0, 3, 1, 2)),
        "tensorflow": (bridges.tensorflow.Denoised(keras_network(), denoiser, **settings), X),
    }
    for framework, (network, x) in ours.items():
        assert network.step == expected.step
        f = getattr(bridges, framework).as_jax(network)
        for run in (f, jax.jit(f)):
            np.testing.assert_allclose(run(x), expected(X), rtol=1e-4, atol=1e-5)
        gradient = jax.grad(lambda x, f=f: f(x)[:, 0].sum())(jnp.asarray(x))
        wanted = np.asarray(jax.grad(lambda x: expected(x)[:, 0].sum())(jnp.asarray(X)))
        if framework == "pytorch":
            wanted = wanted.transpose(0, 3, 1, 2)
        np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-5)


def test_the_classes_certify_them_as_the_core_does():
    settings = {"sample_size": 200, "scale": SIGMA, "alpha": 0.001, "seed": 0, "clip_values": (0, 1)}

    class Blur(nn.Module):
        def forward(self, x):
            return blur(x)

    networks = [bridges.pytorch.Denoised(Flat(), blur), nn.Sequential(Blur(), Flat()), Flat()]
    x = X.transpose(0, 3, 1, 2)
    results = [
        PyTorchRandomizedSmoothing(network, nn.CrossEntropyLoss(), (1, 8, 8), 4, **settings).certify(x, n=500)
        for network in networks
    ]
    assert (results[0][1] > 0).any()
    np.testing.assert_array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    step = keras.Sequential([keras.layers.Input((8, 8, 1)), keras.layers.Lambda(blur)])
    networks = [
        bridges.tensorflow.Denoised(keras_network(), blur),
        keras.Sequential([keras.layers.Input((8, 8, 1)), step, keras_network()]),
    ]
    results = [
        TensorFlowV2RandomizedSmoothing(network, 4, (8, 8, 1), loss_object=loss, **settings).certify(X, n=500)
        for network in networks
    ]
    np.testing.assert_array_equal(results[0], results[1])


def test_a_model_of_diffusers_is_taken_as_it_is():
    diffusers = with_torchvision(lambda: __import__("diffusers"))
    build = {
        "sample_size": 16,
        "in_channels": 3,
        "block_out_channels": (32, 32),
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
    }
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5))
    x = torch.rand(2, 3, 16, 16)
    for channels, prediction in ((3, "epsilon"), (6, "epsilon"), (3, "v_prediction")):
        unet = with_torchvision(lambda channels=channels: diffusers.UNet2DModel(out_channels=channels, **build)).eval()
        scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000, prediction_type=prediction)
        model = bridges.pytorch.Denoised(network, unet, Gaussian(0.5), schedule=scheduler)
        assert model.step.t == 259
        assert model.step.prediction == prediction
        with torch.no_grad():
            image = model.step.noisy_image(x)
            output = unet(image, torch.tensor(259)).sample[:, :3]
            # The scheduler's own arithmetic for the clean image.
            clean = scheduler.step(output, 259, image).pred_original_sample
            torch.testing.assert_close(model.denoise(x), clean.clamp(-1, 1) / 2 + 0.5, rtol=1e-4, atol=1e-5)
        result = certify(bridges.pytorch.as_jax(model), Gaussian(0.5), KEY, x.numpy(), n0=20, n=60, batch_size=64)
        assert result.votes.counts.sum() == 120
        with torch.no_grad():
            expected = model.denoise(x)
            unet.to(torch.bfloat16)
            torch.testing.assert_close(model.denoise(x), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("kind", ["list", "one argument", "two arguments"])
def test_keras_diffusion_models_of_two_inputs(kind):
    if kind == "list":
        image, t = keras.Input((8, 8, 1)), keras.Input((), dtype="int32")
        scale = keras.layers.Reshape((1, 1, 1))(keras.layers.Embedding(1000, 1)(t))
        denoiser = keras.Model([image, t], image * scale)
    else:

        class Own(keras.Model):
            def __init__(self):
                super().__init__()
                self.table = keras.layers.Embedding(1000, 1)

            def scaled(self, image, t):
                return image * keras.ops.reshape(self.table(t), (-1, 1, 1, 1))

        class OfTwo(Own):
            def call(self, image, t, training=None):
                del training
                return self.scaled(image, t)

        class OfOne(Own):
            def call(self, inputs, training=None):
                del training
                return self.scaled(*inputs)

        denoiser = OfOne() if kind == "one argument" else OfTwo()
    model = bridges.tensorflow.Denoised(keras_network(), denoiser, Gaussian(SIGMA), schedule=SCHEDULE)
    assert bridges.tensorflow.as_jax(model)(X).shape == (3, 4)
    table = next(w for w in denoiser.weights if w.shape == (1000, 1))
    image = model.step.noisy_image(X)
    clean = np.clip(model.step.clean_image(image, image * table.numpy()[model.step.t, 0]), -1, 1)
    np.testing.assert_allclose(model.denoise(X), model.step.as_x(clean), rtol=1e-5, atol=1e-6)


def test_a_keras_one_is_saved_and_copied_with_its_step(tmp_path):
    denoiser = keras.Sequential([keras.layers.Input((8, 8, 1)), keras.layers.Conv2D(1, 3, padding="same")])
    model = bridges.tensorflow.Denoised(keras_network(), denoiser)
    expected = model(X)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(X), expected, rtol=1e-6)
    image, t = keras.Input((8, 8, 1)), keras.Input((), dtype="int32")
    scale = keras.layers.Reshape((1, 1, 1))(keras.layers.Embedding(1000, 1)(t))
    model = bridges.tensorflow.Denoised(
        keras_network(), keras.Model([image, t], image * scale), Gaussian(SIGMA), schedule=SCHEDULE
    )
    expected = model(X)
    copied = copy.deepcopy(model)
    assert copied.step == model.step
    np.testing.assert_allclose(copied(X), expected, rtol=1e-6)


def test_two_steps_are_two_classifiers():
    from jaxsmooth._claims import identity

    at = [bridges.pytorch.Denoised(Flat(), predict_noise, Gaussian(sigma), schedule=SCHEDULE) for sigma in (0.25, 0.5)]
    assert identity(bridges.pytorch.as_jax(at[0])) != identity(bridges.pytorch.as_jax(at[1]))
    at = [
        bridges.tensorflow.Denoised(keras_network(), predict_noise, Gaussian(sigma), schedule=SCHEDULE)
        for sigma in (0.25, 0.5)
    ]
    assert identity(bridges.tensorflow.as_jax(at[0])) != identity(bridges.tensorflow.as_jax(at[1]))


@pytest.mark.parametrize("framework", ["pytorch", "tensorflow"])
def test_what_is_not_as_described_is_refused(framework):
    make = getattr(bridges, framework).Denoised
    network = Flat() if framework == "pytorch" else keras_network()
    with pytest.raises(TypeError, match="model must be"):
        make(3, blur)
    with pytest.raises(TypeError, match="denoiser must be"):
        make(network, None)
    with pytest.raises(ValueError, match="noise must be given with a schedule"):
        make(network, predict_noise, schedule=SCHEDULE)
    with pytest.raises(ValueError, match="left out without a schedule"):
        make(network, blur, Gaussian(0.5))
    x = X.transpose(0, 3, 1, 2) if framework == "pytorch" else X
    with pytest.raises(ValueError, match="denoiser must return clean inputs of the shape of x"):
        getattr(bridges, framework).as_jax(make(network, lambda x: x[:, :, :1]))(x)
