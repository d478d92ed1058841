"""Certify a small CNN against changed pixels: how many of the 784 may become anything, and it keeps its class.

The network sees 45 pixels of an MNIST image, chosen at random, and a mask for the others (randomized ablation; Levine &
Feizi 2020, arXiv:1911.09272). With `--l1` it certifies, beside that, the total change of all pixels under splitting
noise, once by votes and once without any chance (Levine & Feizi 2021, arXiv:2103.10834). Prints tables; nothing is
downloaded. It takes about a minute on two cores, with `--l1` two.
"""

import argparse
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from certify_mnist import load_mnist
from jax.tree_util import Partial
from seeds import seed_of

import jaxsmooth
from jaxsmooth import losses
from jaxsmooth.training import init_train_state, make_train_step

BATCH = 100


class CNN(nn.Module):
    """Convolutions over the pixels and over what is shown: a mask of -1 is no grey level."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map images `[B, 28, 28, 1]` to logits `[B, 10]`."""
        is_shown = x >= 0
        x = jnp.concatenate([jnp.where(is_shown, x, 0), is_shown], axis=-1)
        x = nn.relu(nn.Conv(32, (5, 5), strides=2)(x))
        x = nn.relu(nn.Conv(64, (5, 5), strides=2)(x))
        x = nn.relu(nn.Dense(128)(x.reshape(len(x), -1)))
        return nn.Dense(10)(x)


def train(x: np.ndarray, y: np.ndarray, noise: jaxsmooth.Noise, epochs: int, seed: int) -> Partial:
    """Return a classifier that is trained on what it will see."""
    model = CNN()
    rng = np.random.default_rng(seed)
    params: Any = model.init(jax.random.key(seed % 2**32), jnp.asarray(x[:1]))
    steps = len(x) // BATCH
    optimizer = optax.adamw(optax.cosine_decay_schedule(2e-3, max(epochs * steps, 1)))
    state = init_train_state(Partial(model.apply, params), optimizer)
    step = make_train_step(losses.gaussian, optimizer)
    key = jaxsmooth.stream_key(jaxsmooth.key_of_seed(seed), 100)
    for _ in range(epochs):
        for rows in rng.permutation(steps * BATCH).reshape(steps, BATCH):
            state, _ = step(state, noise, key, jnp.asarray(x[rows]), jnp.asarray(y[rows]))
    return state.f


def main(argv: list[str] | None = None) -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--kept", type=int, default=45, help="pixels that the network sees, of 784")
    parser.add_argument("--n", type=int, default=2000, help="votes on each image")
    parser.add_argument("--count", type=int, default=100, help="images to certify")
    parser.add_argument("--epochs", type=int, default=20, help="of each training")
    parser.add_argument("--l1", action="store_true", help="certify the total change of all pixels, too")
    parser.add_argument("--half-width", type=float, default=1.5, help="of the splitting noise, for pixels in [0, 1]")
    parser.add_argument("--seed", type=int, help="of the votes and the training; drawn if not given")
    arguments = parser.parse_args(argv)

    seed = seed_of(arguments.seed)
    x, y = load_mnist(0)
    images, truth = x[: arguments.count], y[: arguments.count]
    x, y = x[arguments.count :], y[arguments.count :]
    key = jaxsmooth.key_of_seed(seed)

    noise = jaxsmooth.Ablation(positions=(28, 28, 1), kept=arguments.kept, mask=-1)
    began = time.monotonic()
    f = train(x, y, noise, arguments.epochs, seed)
    print(f"trained on {arguments.kept} of 784 pixels in {time.monotonic() - began:.0f} s")
    began = time.monotonic()
    # Ten classes share what the first one leaves, so that the runner-up is far behind.
    result = jaxsmooth.certify(f, noise, key, images, n=arguments.n, bound="runner_up")
    print(f"certified in {time.monotonic() - began:.0f} s")
    rows = jaxsmooth.log_rows(result, truth, noise=noise, alpha=0.001, n=arguments.n, bound="runner_up")
    print(jaxsmooth.report_table({"pixels changed": rows}, [0, 2, 4, 6, 8, 10]))

    if arguments.l1:
        splitting: Any = jaxsmooth.Splitting(arguments.half_width)
        f = train(x, y, splitting, arguments.epochs, seed)
        began = time.monotonic()
        exact = jaxsmooth.certify_splitting(f, splitting, key, images)
        print(f"\nsplitting noise: all {exact.votes.n} places of the cuts in {time.monotonic() - began:.0f} s")
        sampled = jaxsmooth.certify(f, splitting, key, images, n=arguments.n)
        runs = {
            "every place": jaxsmooth.log_rows(exact, truth, noise=splitting, alpha=0, mode="splitting"),
            "by votes": jaxsmooth.log_rows(sampled, truth, noise=splitting, alpha=0.001, n=arguments.n),
        }
        print(jaxsmooth.report_table(runs, [0.0, 0.25, 0.5, 1.0, 1.25]))


if __name__ == "__main__":
    main()
