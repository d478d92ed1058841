"""One network as an Equinox-style callable pytree, a linen and an nnx module: trained, certified, compared.

Each is trained under noise on real MNIST images and certified before and after. A compiled function that gets new
parameters is not compiled again: the table counts how often certification traced each network.
"""

import argparse
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from certify_mnist import load_mnist
from flax import linen, nnx
from jax.tree_util import Partial
from seeds import seed_of

import jaxsmooth
from bridges.flax import as_jax
from jaxsmooth import losses
from jaxsmooth.training import init_train_state, make_train_step

WIDTH = 128
TRACES: list[str] = []


class Dense(NamedTuple):
    """A callable pytree of its parameters, as every Equinox module is: jaxsmooth takes it as it is."""

    hidden: jax.Array
    out: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map images `[B, 28, 28, 1]` to logits `[B, 10]`."""
        TRACES.append("callable pytree")
        return jax.nn.relu(x.reshape(-1, 784) @ self.hidden) @ self.out


class Linen(linen.Module):
    """The same as a linen module."""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map images `[B, 28, 28, 1]` to logits `[B, 10]`."""
        TRACES.append("linen Partial")
        return linen.Dense(10)(linen.relu(linen.Dense(WIDTH)(x.reshape(-1, 784))))


class NNX(nnx.Module):
    """The same as an nnx module."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(784, WIDTH, rngs=rngs)
        self.out = nnx.Linear(WIDTH, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map images `[B, 28, 28, 1]` to logits `[B, 10]`."""
        TRACES.append("nnx as_jax")
        return self.out(nnx.relu(self.hidden(x.reshape(-1, 784))))


def networks(seed: int) -> dict[str, Any]:
    """Return the three, each a callable pytree of floating-point arrays."""
    one, two = jax.random.split(jax.random.key(seed))
    normal, linen_module = jax.random.normal, Linen()
    variables: Any = linen_module.init(one, jnp.zeros((1, 28, 28, 1)))
    return {
        "callable pytree": Dense(normal(one, (784, WIDTH)) / 28, normal(two, (WIDTH, 10)) / WIDTH**0.5),
        "linen Partial": Partial(linen_module.apply, variables),
        "nnx as_jax": as_jax(NNX(nnx.Rngs(seed))),
    }


def main(argv: list[str] | None = None) -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--sigma", type=float, default=0.5, help="noise level, for pixel values in [0, 1]")
    parser.add_argument("--steps", type=int, default=300, help="training steps of 128 images")
    parser.add_argument("--count", type=int, default=200, help="held-out images to certify, of 1,000")
    parser.add_argument("--n", type=int, default=1000, help="votes that bound a class's probability")
    parser.add_argument("--training-seed", type=int, default=0, help="of the split and the training")
    parser.add_argument("--seed", type=int, help="of the votes; drawn if not given")
    arguments = parser.parse_args(argv)
    x, y = load_mnist(arguments.training_seed)
    test_x, test_y = x[: arguments.count], y[: arguments.count]
    noise, key, optimizer = (
        jaxsmooth.Gaussian(arguments.sigma),
        jaxsmooth.key_of_seed(seed_of(arguments.seed)),
        optax.adam(1e-3),
    )
    training_key = jax.random.key(arguments.training_seed)
    rng = np.random.default_rng(arguments.training_seed)
    batches = rng.integers(1000, len(x), (arguments.steps, 128))

    def certified(f: Any) -> tuple[float, int, float]:
        """Return accuracy certified at half of sigma, the times that the network was traced, and seconds."""
        TRACES.clear()
        began = time.perf_counter()
        result = jaxsmooth.certify(f, noise, key, test_x, n0=100, n=arguments.n)
        held = (result.label == test_y) & (result.radius >= arguments.sigma / 2)
        return float(held.mean()), len(TRACES), time.perf_counter() - began

    print(f"accuracy certified at radius {arguments.sigma / 2}: untrained | trained")
    for name, f in networks(arguments.training_seed).items():
        state, step = init_train_state(f, optimizer), make_train_step(losses.gaussian, optimizer)
        before = certified(state.f)
        for batch in batches:
            state, _ = step(state, noise, training_key, jnp.asarray(x[batch]), jnp.asarray(y[batch]))
        after = certified(state.f)
        columns = (f"{accuracy:.3f}, {traces} traces, {seconds:.1f} s" for accuracy, traces, seconds in (before, after))
        print(f"{name:16}", " | ".join(columns))


if __name__ == "__main__":
    main()
