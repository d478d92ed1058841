"""The models that the benchmarks run: an MLP on 64 features, a small CNN on 28x28x1 and a ResNet-20 on 32x32x3."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.tree_util import Partial


class MLP(nn.Module):
    """Two hidden layers of 256."""

    @nn.compact
    def __call__(self, x):
        for width in (256, 256):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


class SmallCNN(nn.Module):
    """Two strided convolutions and a dense layer."""

    @nn.compact
    def __call__(self, x):
        for width in (16, 32):
            x = nn.relu(nn.Conv(width, (3, 3), strides=2)(x))
        x = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
        return nn.Dense(10)(x)


class ResNet20(nn.Module):
    """He et al. 2016 for CIFAR-10, with batch statistics folded away as at inference."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(16, (3, 3))(x))
        for stage, width in enumerate((16, 32, 64)):
            for block in range(3):
                strides = 2 if stage > 0 and block == 0 else 1
                y = nn.relu(nn.Conv(width, (3, 3), strides=strides)(x))
                y = nn.Conv(width, (3, 3))(y)
                if strides == 2:
                    x = nn.Conv(width, (1, 1), strides=2)(x)
                x = nn.relu(x + y)
        return nn.Dense(10)(x.mean((1, 2)))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...]]] = {
    "mlp 64": (MLP, (64,), (256, 512, 1024, 2048)),
    "cnn 28x28x1": (SmallCNN, (28, 28, 1), (64, 128, 256, 512)),
    "resnet-20 32x32x3": (ResNet20, (32, 32, 3), (32, 64, 128)),
}
"""Name -> (module, event shape, batch sizes to try)."""


def build(name: str) -> tuple[Partial, tuple[int, ...], tuple[int, ...]]:
    """Return an initialised classifier, its event shape and the batch sizes to try."""
    module, event, batch_sizes = MODELS[name]
    model = module()
    params = model.init(jax.random.key(0), jnp.zeros((1, *event)))
    return Partial(model.apply, params), event, batch_sizes
