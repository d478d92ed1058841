"""Train the same small CNN on real MNIST images with each training objective, certify, compare.

Every objective makes the same number of steps on the same 4,000 images with its paper's hyperparameters for MNIST,
some with fewer noisy copies. Prints one table and writes `<output>.png`, the certified-accuracy curves. The CNN is one
of Flax, PyTorch or Keras: in the last two `fit(objective=...)` of ART's class trains it.
"""

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from certify_mnist import EPOCHS, certify, load_mnist, train
from seeds import seed_of
from tqdm import tqdm

import jaxsmooth
from bridges.command.models import Optimizer, as_function, load_model, set_rate, trainable
from jaxsmooth import losses

RADII = (0.0, 0.5, 1.0, 1.25)
OBJECTIVES: dict[str, Callable[..., Any]] = {
    "gaussian": losses.gaussian,
    "stability": partial(losses.stability, lambda_=2.0),
    "consistency": partial(losses.consistency, m=2, lambda_=5.0, eta=0.5),
    "smoothadv": partial(losses.smoothadv, m=2, epsilon=1.0, steps=4),
    "macer": partial(losses.macer, m=8, lambda_=16.0, beta=16.0, gamma=8.0),
    "smoothmix": partial(losses.smoothmix, m=2, eta=1.0, alpha=1.0, steps=4),
}


def main(argv: list[str] | None = None) -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--sigma", type=float, default=0.5, help="noise level, for pixel values in [0, 1]")
    parser.add_argument("--framework", choices=("flax", "torch", "keras"), default="flax", help="of the CNN")
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES), help="which to train")
    parser.add_argument("--count", type=int, default=500, help="held-out images to certify, of 1,000")
    parser.add_argument("--training", type=int, default=4000, help="images to train on, of 4,000")
    parser.add_argument("--n0", type=int, default=100, help="votes that select the class of an image")
    parser.add_argument("--n", type=int, default=2000, help="votes that bound its probability")
    parser.add_argument("--alpha", type=float, default=0.001, help="failure probability of each certificate")
    parser.add_argument("--batch-size", type=int, default=256, help="noisy images in one call of the model")
    parser.add_argument("--training-seed", type=int, default=0, help="of the split and the training")
    parser.add_argument("--seed", type=int, help="of the votes; drawn if not given")
    parser.add_argument("--output", type=Path, default=Path("trained_mnist"), help="path of the picture, no suffix")
    arguments = parser.parse_args(argv)
    arguments.seed = seed_of(arguments.seed)

    noise, (x, y) = jaxsmooth.Gaussian(arguments.sigma), load_mnist(arguments.training_seed)
    kept, runs = slice(1000, 1000 + arguments.training), dict[str, list[jaxsmooth.LogRow]]()
    print("certified accuracy" + "".join(f"{r:7.2f}" for r in RADII) + "     ACR  seconds")
    for name in arguments.objectives:
        start = time.perf_counter()
        if arguments.framework == "flax":
            f: Any = train(x[kept], y[kept], noise, arguments.training_seed, OBJECTIVES[name])
        else:
            f = fit(arguments.framework, x[kept], y[kept], arguments.sigma, arguments.training_seed, OBJECTIVES[name])
        seconds = time.perf_counter() - start
        rows = certify(f, noise, x[: arguments.count], y[: arguments.count], arguments)
        predicted, radius, truth = (np.array([getattr(row, c) for row in rows]) for c in ("predict", "radius", "label"))
        accuracy = jaxsmooth.certified_accuracy(predicted, radius, truth, RADII)
        acr = jaxsmooth.average_certified_radius(predicted, radius, truth)
        print(f"{name:18}" + "".join(f"{a:7.3f}" for a in accuracy) + f"{acr:8.3f}{seconds:9.0f}", flush=True)
        runs[name] = rows
    picture = arguments.output.with_suffix(".png")
    title = f"Small CNN on MNIST, sigma = {arguments.sigma}, by training objective"
    jaxsmooth.draw_curves(runs, picture, alpha=arguments.alpha, title=title)
    print(f"curves in {picture}")


def fit(framework: str, x: np.ndarray, y: np.ndarray, sigma: float, seed: int, objective: Callable[..., Any]) -> Any:
    """Return a classifier of another framework, trained by an objective with the optimizer of the Flax one."""
    model = load_model(f"models:mnist_{framework}")
    rate = 2e-3
    classifier = trainable(model, x[0], sigma, Optimizer("adam", rate, 1e-4), seed, clip_values=(0.0, 1.0))
    for epoch in tqdm(range(EPOCHS), desc="training", unit=" epochs"):
        set_rate(classifier, rate * (1 + math.cos(math.pi * epoch / EPOCHS)) / 2)
        classifier.fit(x, y, batch_size=100, nb_epochs=1, drop_last=True, objective=objective)
    return as_function(model)[0]


if __name__ == "__main__":
    main()
