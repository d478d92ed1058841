"""Train a model of PyTorch, Keras or Flax under Gaussian noise, and save its weights for certify.py and predict.py.

Every batch gets fresh noise (Cohen et al. 2019). Training goes on from `--weights`, if given.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from loading import DATA_HELP, MODEL_HELP, load_data, load_model, set_rate, smoothed


def main(argv: list[str] | None = None) -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("data", help=DATA_HELP)
    parser.add_argument("output", type=Path, help="path of the weights, without an ending")
    parser.add_argument("--weights", type=Path, help="of an earlier call, to go on from")
    parser.add_argument("--sigma", type=float, required=True, help="noise level, in the units of the inputs")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the data")
    parser.add_argument("--batch", type=int, default=128, help="inputs in one step")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of Adam")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--quiet", action="store_true", help="show no progress bar")
    arguments = parser.parse_args(argv)
    data: Any = load_data(arguments.data)
    x, y = data if isinstance(data, tuple) else map(np.array, zip(*data, strict=True))
    model = load_model(arguments.model)
    classifier = smoothed(model, np.asarray(x[0]), arguments.sigma, arguments.lr, arguments.seed)
    if arguments.weights is not None:
        classifier.load(arguments.weights.name, arguments.weights.parent)
        set_rate(classifier, arguments.lr)
    before = classifier.compute_loss(x, y, reduction="mean")
    classifier.fit(x, y, batch_size=arguments.batch, nb_epochs=arguments.epochs, verbose=not arguments.quiet)
    classifier.save(arguments.output.name, arguments.output.parent)
    after = classifier.compute_loss(x, y, reduction="mean")
    print(f"loss without noise from {before:.3f} to {after:.3f}, weights in {arguments.output}.*")


if __name__ == "__main__":
    main()
