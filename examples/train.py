"""Train a model of PyTorch, Keras or Flax for certified accuracy, and save its weights for certify.py and predict.py.

By default every batch gets fresh noise and the cross-entropy (Cohen et al. 2019). `--objective` chooses another
objective of `jaxsmooth.losses`, whose settings `--set` gives by name. Training goes on from `--weights`, if given.
"""

import argparse
import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
from loading import DATA_HELP, MODEL_HELP, Optimizer, load_data, load_model, set_rate, smoothed

from jaxsmooth import losses

OBJECTIVES = ("gaussian", "stability", "consistency", "smoothadv", "macer", "smoothmix")


def main(argv: list[str] | None = None) -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("data", help=DATA_HELP)
    parser.add_argument("output", type=Path, help="path of the weights, without an ending")
    parser.add_argument("--weights", type=Path, help="of an earlier call, to go on from")
    parser.add_argument("--sigma", type=float, required=True, help="noise level, in the units of the inputs")
    parser.add_argument("--objective", choices=OBJECTIVES, default="gaussian", help="what is trained")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the objective, as m=4")
    parser.add_argument("--range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="of the inputs, for attacks")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the data")
    parser.add_argument("--batch", type=int, default=128, help="inputs in one step")
    parser.add_argument("--optimizer", choices=("adam", "sgd"), default="adam", help="sgd has momentum 0.9")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate at first")
    parser.add_argument("--weight-decay", type=float, default=0.0, help="of the optimizer")
    parser.add_argument("--schedule", choices=("constant", "cosine", "steps"), default="constant", help="of the rate")
    parser.add_argument("--step-epochs", type=int, default=50, help="epochs until 'steps' divides the rate by ten")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--quiet", action="store_true", help="show no progress bar")
    arguments = parser.parse_args(argv)
    objective = functools.partial(getattr(losses, arguments.objective), **settings_of(arguments.set))
    data: Any = load_data(arguments.data)
    x, y = data if isinstance(data, tuple) else map(np.array, zip(*data, strict=True))
    optimizer = Optimizer(arguments.optimizer, arguments.lr, arguments.weight_decay)
    bounds = None if arguments.range is None else tuple(arguments.range)
    classifier = smoothed(
        load_model(arguments.model), np.asarray(x[0]), arguments.sigma, optimizer, arguments.seed, bounds
    )
    if arguments.weights is not None:
        classifier.load(arguments.weights.name, arguments.weights.parent)
    before = classifier.compute_loss(x, y, reduction="mean")
    for epoch in _epochs(arguments.epochs, arguments.quiet):
        set_rate(classifier, rate_of(arguments, epoch))
        classifier.fit(x, y, batch_size=arguments.batch, nb_epochs=1, objective=objective)
    classifier.save(arguments.output.name, arguments.output.parent)
    after = classifier.compute_loss(x, y, reduction="mean")
    print(f"loss without noise from {before:.3f} to {after:.3f}, weights in {arguments.output}.*")


def settings_of(words: list[str]) -> dict[str, Any]:
    """Return settings from words such as `m=4`, `epsilon=0.5` or `attack=ddn`."""
    settings: dict[str, Any] = {}
    for word in words:
        name, separator, text = word.partition("=")
        if not separator:
            raise SystemExit(f"--set takes NAME=VALUE, got {word}")
        try:
            number = float(text)
        except ValueError:
            settings[name] = text
        else:
            settings[name] = int(number) if text.lstrip("-").isdigit() else number
    return settings


def rate_of(arguments: argparse.Namespace, epoch: int) -> float:
    """Return the learning rate of an epoch."""
    if arguments.schedule == "cosine":
        return arguments.lr * (1 + math.cos(math.pi * epoch / arguments.epochs)) / 2
    return arguments.lr * 0.1 ** (epoch // arguments.step_epochs) if arguments.schedule == "steps" else arguments.lr


def _epochs(number: int, quiet: bool) -> Any:
    if quiet:
        return range(number)
    from tqdm import tqdm

    return tqdm(range(number), desc="epochs")


if __name__ == "__main__":
    main()
