"""Models and data for the command: `jaxsmooth certify models:mnist_torch models:mnist_test run.tsv --sigma 0.5`."""

from typing import Any

import numpy as np
from certify_mnist import load_mnist


def mnist_training() -> tuple[np.ndarray, np.ndarray]:
    """Return 4,000 real MNIST images `[28, 28, 1]` with pixels in [0, 1], and their labels."""
    x, y = load_mnist(seed=0)
    return x[1000:], y[1000:]


def mnist_test() -> tuple[np.ndarray, np.ndarray]:
    """Return 1,000 other images and their labels."""
    x, y = load_mnist(seed=0)
    return x[:1000], y[:1000]


def mnist_torch() -> Any:
    """Return a small PyTorch CNN."""
    import torch
    from torch import nn

    class ChannelsFirst(nn.Module):
        """From the images' layout to that of PyTorch."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.permute(0, 3, 1, 2)

    torch.manual_seed(0)  # the weights are the same in every run
    convolutions = [nn.Conv2d(1, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU()]
    dense = [nn.Flatten(), nn.Linear(32 * 36, 64), nn.ReLU(), nn.Linear(64, 10)]
    return nn.Sequential(ChannelsFirst(), *convolutions, *dense)


def mnist_keras() -> Any:
    """Return a small Keras CNN."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    convolutions = [layers.Conv2D(width, 3, 2, activation="relu") for width in (16, 32)]
    dense = [layers.Flatten(), layers.Dense(64, "relu"), layers.Dense(10)]
    return keras.Sequential([keras.Input((28, 28, 1)), *convolutions, *dense])


def mnist_flax() -> Any:
    """Return a small Flax nnx CNN."""
    import jax
    from flax import nnx

    rngs = nnx.Rngs(0)
    first, second = nnx.Conv(1, 16, (3, 3), 2, rngs=rngs), nnx.Conv(16, 32, (3, 3), 2, rngs=rngs)
    dense = [_flatten, nnx.Linear(32 * 49, 64, rngs=rngs), jax.nn.relu, nnx.Linear(64, 10, rngs=rngs)]
    return nnx.Sequential(first, jax.nn.relu, second, jax.nn.relu, *dense)


def _flatten(x: Any) -> Any:
    return x.reshape(len(x), -1)
