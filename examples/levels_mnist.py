"""Choose the level of noise for each MNIST image by a certified selector, and set the curve beside those of one level.

Three small CNNs are trained under noise of sigma 0.25, 0.5 and 1. The selector asks the one of sigma 1 which digit it
is, and returns the level that is best for that digit on the training images. It is a classifier like any other, whose
levels are certified under noise of its own (Dual Randomized Smoothing, arXiv:2512.01782). The curve "if the level came
free" leaves the selector's radius out: it is no certificate, and shows what the selector costs. Writes `<output>.png`.
It takes about two minutes on two cores.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from certify_mnist import load_mnist, train
from jax.tree_util import Partial
from seeds import seed_of

import jaxsmooth
from jaxsmooth import Gaussian, Level

SIGMAS = (0.25, 0.5, 1.0)
RADII = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
ALPHA = 0.001


def best_levels(experts: list[Partial], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the level of each digit whose radius, as 100 votes estimate it, is largest on average, `[10]`."""
    key = jaxsmooth.key_of_seed(0)  # of training: certificates are drawn under another key
    means: list[list[float]] = []
    for f, sigma in zip(experts, SIGMAS, strict=True):
        noise = Gaussian(sigma)
        counts = jaxsmooth.count_votes(f, noise, key, x, n=100, batch_size=1000)
        votes = jaxsmooth.Votes(counts=counts, n=100)
        radius = sigma * noise.unit_radius(jaxsmooth.true_class_bounds(votes, y, alpha=0.05))
        means.append([float(np.maximum(radius, 0)[y == digit].mean()) for digit in range(10)])
    return np.array(means).argmax(axis=0)


def select(expert: Partial, levels: jax.Array, x: jax.Array) -> jax.Array:
    """Return the score of each level: the probability of the digits for which it is best."""
    return jax.nn.softmax(expert(x)) @ levels


def main(argv: list[str] | None = None) -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--n", type=int, default=2000, help="votes that bound a probability")
    parser.add_argument("--count", type=int, default=200, help="held-out images to certify, of 1,000")
    parser.add_argument("--training", type=int, default=4000, help="images to train on, of 4,000")
    parser.add_argument("--training-seed", type=int, default=0, help="of the split and the training")
    parser.add_argument("--seed", type=int, help="of the votes; drawn if not given")
    parser.add_argument("--output", type=Path, default=Path("levels_mnist"), help="path of the picture, no suffix")
    arguments = parser.parse_args(argv)

    key = jaxsmooth.key_of_seed(seed_of(arguments.seed))
    x, y = load_mnist(arguments.training_seed)
    kept = slice(1000, 1000 + arguments.training)
    experts = [train(x[kept], y[kept], Gaussian(sigma), arguments.training_seed) for sigma in SIGMAS]
    levels = best_levels(experts, x[kept], y[kept])
    for index, sigma in enumerate(SIGMAS):
        print(f"sigma {sigma} is best for the digits {np.flatnonzero(levels == index).tolist()}")
    selector = Partial(select, experts[-1], jnp.asarray(np.eye(len(SIGMAS))[levels], jnp.float32))

    x, y = x[: arguments.count], y[: arguments.count]
    mode = jaxsmooth.Fixed(n=arguments.n)
    settings: dict[str, Any] = {"mode": "fixed", "n0": mode.n0, "n": mode.n}
    runs: dict[str, list[jaxsmooth.LogRow]] = {}
    for f, sigma in zip(experts, SIGMAS, strict=True):
        result = jaxsmooth.certify(f, Gaussian(sigma), key, x, n=arguments.n, alpha=ALPHA, batch_size=1000)
        runs[f"sigma {sigma}"] = jaxsmooth.log_rows(result, y, noise=Gaussian(sigma), alpha=ALPHA, **settings)
    pairs = [Level(f, Gaussian(sigma)) for f, sigma in zip(experts, SIGMAS, strict=True)]
    result = jaxsmooth.certify_levels(
        selector, pairs, Gaussian(SIGMAS[-1]), key, x, mode=mode, alpha=ALPHA, batch_size=1000
    )
    settings["mode"] = "levels-fixed"
    rows = jaxsmooth.log_rows(result, y, noise=pairs, alpha=ALPHA, **settings)
    runs["a level for each image"] = rows
    free = np.where(result.label >= 0, result.state.radius, 0)
    runs["if the level came free"] = [row._replace(radius=float(r)) for row, r in zip(rows, free, strict=True)]

    print("certified accuracy        " + "".join(f"{radius:7.2f}" for radius in RADII) + "     ACR")
    for name, rows in runs.items():
        predicted, radius, truth = (np.array([getattr(row, c) for row in rows]) for c in ("predict", "radius", "label"))
        accuracy = jaxsmooth.certified_accuracy(predicted, radius, truth, RADII)
        mean = jaxsmooth.average_certified_radius(predicted, radius, truth)
        print(f"{name:26}" + "".join(f"{a:7.3f}" for a in accuracy) + f"{mean:8.3f}")
    chosen = [int((result.state.level == index).sum()) for index in range(len(SIGMAS))]
    print(f"images at each level: {chosen}; {int((result.state.level < 0).sum())} without one")
    picture = arguments.output.with_suffix(".png")
    del runs["if the level came free"]
    jaxsmooth.draw_curves(runs, picture, title="Small CNNs on MNIST, by the noise of the certificate")
    print(f"curves in {picture}")


if __name__ == "__main__":
    main()
