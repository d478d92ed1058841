"""Copies, files and clones of networks of every layer kind and dtype that PyTorch and Keras offer."""

import copy
import pickle
import warnings

import keras
import numpy as np
import pytest
import torch
from keras import layers as k
from torch import nn

from bridges.pytorch import PyTorchRandomizedSmoothing
from bridges.tensorflow import TensorFlowV2RandomizedSmoothing

LABELS = np.array([0, 1, 2, 0])
SETTINGS = {"sample_size": 20, "scale": 0.3, "seed": 1}


class First(nn.Module):
    """A recurrent layer returns its states, too."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(8, 4)
        self.cell = nn.LSTMCell(24, 5)
        self.pair = nn.Bilinear(5, 6, 4)

    def forward(self, x):
        return self.pair(self.cell(self.embedding((3 * x.abs()).long().clamp(0, 7)).flatten(1))[0], x)


TORCH_LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), (6,)),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(5), nn.PReLU(), nn.Dropout()), (6,)),
    "cells": (Cell, (6,)),
    "convolutions": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4)), (2, 6, 6)),
    "one axis": (lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.ConvTranspose1d(3, 2, 3)), (2, 8)),
    "three axes": (lambda: nn.Sequential(nn.Conv3d(2, 3, 3), nn.BatchNorm3d(3)), (2, 4, 4, 4)),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(2, 3, 3), nn.InstanceNorm2d(3, affine=True)), (2, 4, 4)),
    "running": (lambda: nn.InstanceNorm2d(2, affine=True, track_running_stats=True), (2, 4, 4)),
    "rms": (lambda: nn.Sequential(nn.RMSNorm(6), nn.LayerNorm(6), nn.GELU()), (6,)),
    "transformer": (lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), (3, 4)),
    "rnn": (lambda: First(nn.RNN(4, 5, batch_first=True)), (3, 4)),
    "lstm": (lambda: First(nn.LSTM(4, 5, batch_first=True, bidirectional=True)), (3, 4)),
    "gru": (lambda: First(nn.GRU(4, 5, batch_first=True)), (3, 4)),
}


class Attention(keras.Model):
    """Layers that a constructor makes take their dtype from the process."""

    dtype_of_last = None

    def __init__(self, **settings):
        super().__init__(**settings)
        self.attention = k.MultiHeadAttention(2, 4)
        self.last = k.Dense(3, dtype=self.dtype_of_last)

    def call(self, x):
        return self.last(k.Flatten()(self.attention(x, x)))


KERAS_LAYERS = {
    "dense": (lambda: [k.Dense(5), k.BatchNormalization(), k.PReLU(), k.Dropout(0.5)], (6,)),
    "norms": (lambda: [k.SpectralNormalization(k.Dense(6)), k.LayerNormalization(), k.UnitNormalization()], (6,)),
    "images": (
        lambda: [k.Conv2D(4, 3), k.GroupNormalization(2), k.DepthwiseConv2D(2), k.SeparableConv2D(3, 2)],
        (8, 8, 2),
    ),
    "transposed": (lambda: [k.Conv2DTranspose(3, 3), k.Resizing(4, 4), k.RandomFlip()], (6, 6, 2)),
    "one axis": (lambda: [k.Conv1D(3, 3), k.TimeDistributed(k.Dense(3)), k.EinsumDense("abc,cd->abd", (6, 5))], (8, 2)),
    "recurrent": (lambda: [k.GRU(4, return_sequences=True), k.Bidirectional(k.LSTM(3))], (3, 4)),
    "attention": (None, (3, 4)),
}
KERAS_CASES = [(kind, "float32") for kind in KERAS_LAYERS if kind not in ("dense", "attention")]
KERAS_CASES += [(kind, d) for kind in ("dense", "attention") for d in ("float64", "mixed_bfloat16", "bfloat16")]


def torch_classifier(kind, dtype):
    make, shape = TORCH_LAYERS[kind]
    torch.manual_seed(0)
    model = nn.Sequential(make(), nn.Flatten(), nn.LazyLinear(3)).to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lazy layers are new
        model(torch.zeros(2, *shape, dtype=dtype))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    return PyTorchRandomizedSmoothing(model, nn.CrossEntropyLoss(), shape, 3, optimizer=optimizer, **SETTINGS)


def keras_classifier(kind, dtype):
    make, shape = KERAS_LAYERS[kind]
    usual = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        layers = [] if make is None else [keras.Input(shape), *make(), k.Flatten(), k.Dense(3)]
        model = Attention() if make is None else keras.Sequential(layers)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    finally:
        keras.config.set_dtype_policy(usual)
    return TensorFlowV2RandomizedSmoothing(model, 3, shape, loss_object=loss, optimizer=optimizer, **SETTINGS)


def weights(classifier):
    model = classifier.model
    if isinstance(model, nn.Module):
        return {name: value.detach().double().numpy() for name, value in model.state_dict().items()}
    # Not the states of random generators: Keras does not save them.
    return {f"{place} {v.name}": v.numpy().astype(np.float64) for place, v in enumerate(model.weights)}


def check_round_trips(classifier, shape, folder):
    x = np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)
    classifier.fit(x, LABELS, batch_size=4, nb_epochs=2)
    votes = classifier.certify(x, 100)
    held = weights(classifier)

    def agrees(other):
        np.testing.assert_array_equal(other.certify(x, 100), votes)
        assert weights(other).keys() == held.keys()
        for name, value in weights(other).items():
            np.testing.assert_array_equal(value, held[name], err_msg=name)

    classifier.save("net", folder)
    copies = [copy.deepcopy(classifier), pickle.loads(pickle.dumps(classifier)), classifier.clone_for_refitting()]
    for other in copies[:2]:
        agrees(other)
    for other in copies:
        other.fit(x, LABELS, batch_size=4, nb_epochs=1)
    copies[0].reset()
    for other in (copies[0], copies[2]):
        # A matrix is drawn at random, so a new one is another one.
        assert all((value != held[name]).any() for name, value in weights(other).items() if value.ndim > 1)
    for other in copies:
        other.load("net", folder)
        agrees(other)
    agrees(classifier)  # nothing was shared


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", TORCH_LAYERS)
def test_pytorch_networks_of_every_layer_and_dtype(kind, dtype, tmp_path):
    check_round_trips(torch_classifier(kind, dtype), TORCH_LAYERS[kind][1], tmp_path)


@pytest.mark.parametrize(("kind", "dtype"), KERAS_CASES)
def test_keras_networks_of_every_layer_and_dtype(kind, dtype, tmp_path):
    check_round_trips(keras_classifier(kind, dtype), KERAS_LAYERS[kind][1], tmp_path)


def test_a_keras_model_whose_copy_would_compute_in_other_dtypes_is_refused(monkeypatch):
    """Its last layer is made in a dtype that no configuration tells."""
    monkeypatch.setattr(Attention, "dtype_of_last", "mixed_bfloat16")
    classifier = keras_classifier("attention", "float32")
    classifier.predict(np.zeros((2, 3, 4), np.float32))
    copy.deepcopy(classifier)
    monkeypatch.setattr(Attention, "dtype_of_last", "float32")
    with pytest.raises(TypeError, match=r"dtype policies .*mixed_bfloat16"):
        copy.deepcopy(classifier)
