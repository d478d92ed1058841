"""Time to certify with the TensorFlow class: `python -m tests.benchmarks.tensorflow_certify`.

For each network, interleaved in one process, medians over rounds, n = 1,000 on 4 inputs:

- forward: one `tf.function` of the network on as many ready-made noisy inputs, at its best batch size.
- noise: the noisy inputs alone, at their best batch size.
- ours: `certify` of the class.
- art: `certify` of ART's class, if ART is installed.

`ours/parts` is the time of ours over that of forward and noise, timed apart.
"""

import argparse
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import keras
import numpy as np
import tensorflow as tf

from bridges.tensorflow import TensorFlowV2RandomizedSmoothing
from jaxsmooth import Gaussian, stream_samples
from tests.benchmarks.timing import Runs, milliseconds, ratio, times

VOTES, SELECTION, INPUTS = 1000, 32, 4


def mlp() -> keras.Model:
    """Two hidden layers of 256."""
    hidden = [keras.layers.Dense(256, activation="relu") for _ in range(2)]
    return keras.Sequential([keras.Input((64,)), *hidden, keras.layers.Dense(10)])


def cnn() -> keras.Model:
    """The CNN of TensorFlow's tutorial on CIFAR-10: three convolutions, two poolings, two dense layers."""
    layers: list[Any] = [keras.Input((32, 32, 3))]
    for width in (32, 64):
        layers += [keras.layers.Conv2D(width, 3, activation="relu"), keras.layers.MaxPooling2D()]
    layers += [keras.layers.Conv2D(64, 3, activation="relu"), keras.layers.Flatten()]
    return keras.Sequential([*layers, keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)])


def tiny_cnn() -> keras.Model:
    """Two strided convolutions and two dense layers: as much work as the noise."""
    convolutions = [keras.layers.Conv2D(w, 3, 2, "same", activation="relu") for w in (16, 32)]
    dense = [keras.layers.Flatten(), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)]
    return keras.Sequential([keras.Input((32, 32, 3)), *convolutions, *dense])


def resnet20() -> keras.Model:
    """He et al. 2016 for CIFAR-10, batch normalisation folded away as at inference."""
    start = keras.Input((32, 32, 3))
    x: Any = keras.layers.Conv2D(16, 3, 1, "same", activation="relu")(start)
    for width, stride in [(16, 1)] * 3 + [(32, 2), (32, 1), (32, 1), (64, 2), (64, 1), (64, 1)]:
        inner = keras.layers.Conv2D(width, 3, stride, "same", activation="relu")(x)
        inner = keras.layers.Conv2D(width, 3, 1, "same")(inner)
        shortcut = keras.layers.Conv2D(width, 1, stride)(x) if stride > 1 else x
        x = keras.layers.ReLU()(keras.layers.Add()([inner, shortcut]))
    return keras.Model(start, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x)))


NETWORKS: dict[str, tuple[Callable[[], keras.Model], tuple[int, ...], tuple[int, ...]]] = {
    "mlp 64": (mlp, (64,), (512, 1024, 2048)),
    "tiny cnn 32x32x3": (tiny_cnn, (32, 32, 3), (128, 256, 512, 1024)),
    "cnn 32x32x3": (cnn, (32, 32, 3), (32, 64, 128, 256, 512)),
    "resnet-20 32x32x3": (resnet20, (32, 32, 3), (64, 128, 256)),
}


def forward(network: keras.Model, shape: tuple[int, ...], batch_size: int) -> Callable[[], Any]:
    """Return the network's run over as many noisy inputs as certify needs."""
    noisy = tf.random.normal((batch_size, *shape))
    function = tf.function(lambda x: network(x, training=False))

    def run() -> None:
        for _ in range(round((VOTES + SELECTION) * INPUTS / batch_size)):
            function(noisy).numpy()

    return run


def noise(x: np.ndarray, batch_size: int) -> Callable[[], Any]:
    """Return the making of as many noisy inputs as certify needs."""

    def run() -> None:
        for n in (SELECTION, VOTES):
            for noisy, _ in stream_samples(Gaussian(0.25), jax.random.key(0), x, n=n, batch_size=batch_size):
                noisy.block_until_ready()

    return run


def runs(name: str) -> Runs:
    """Return the runs of each contender."""
    build, shape, batch_sizes = NETWORKS[name]
    network = build()
    x = np.random.default_rng(0).uniform(size=(INPUTS, *shape)).astype(np.float32)
    arguments: dict[str, Any] = {"input_shape": shape, "nb_classes": 10, "scale": 0.25}
    ours = TensorFlowV2RandomizedSmoothing(network, seed=0, **arguments)
    table: Runs = {
        "forward": [forward(network, shape, b) for b in batch_sizes],
        "noise": [noise(x, b) for b in batch_sizes],
        "ours": [lambda: ours.certify(x, VOTES)],
    }
    if importlib.util.find_spec("art") is not None:
        module = importlib.import_module("art.estimators.certification.randomized_smoothing")
        art = module.TensorFlowV2RandomizedSmoothing(network, **arguments)
        table["art"] = [lambda: art.certify(x, VOTES)]
    return table


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (5)")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in NETWORKS:
        taken = times(runs(name), arguments.rounds)
        parts = taken["forward"] + taken["noise"]
        print(f"{name:18} {milliseconds(taken)}  ours/parts {ratio(taken['ours'], parts):.2f}", end="")
        print(f"  art/ours {ratio(taken['art'], taken['ours']):.2f}" if "art" in taken else "", flush=True)


if __name__ == "__main__":
    main()
