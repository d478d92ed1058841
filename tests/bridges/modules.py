"""A small network in PyTorch, functions as modules, and ways to call them: needs no other framework."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

WRAPS = {"eager": lambda f: f, "jit": jax.jit}


def loss(f, x):
    return jnp.square(f(x)).sum()


def network():
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(36, 3),
    ]
    return nn.Sequential(*layers)


def images(number=4, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(number, 1, 8, 8)), jnp.float32)


class TorchModule(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)
