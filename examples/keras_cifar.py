"""Certify a pretrained Keras network on real CIFAR-10 images, attack it, and set the radii beside the attacks.

The network is the CNN that the package cifar-10-model ships, which nobody here trained; the images come with foolbox:
`pip install --no-deps cifar-10-model==7.4.0 foolbox==3.3.4`. The network takes pixels from 0 to 255, so sigma and the
radii are in these units. The attack follows the gradient of the smoothed classifier until its prediction changes.
Writes `<output>.png`; nothing is downloaded.
"""

import argparse
import importlib.util
from pathlib import Path
from typing import Any

import keras
import matplotlib as mpl
import numpy as np
from matplotlib.image import imread
from seeds import seed_of

from bridges.tensorflow import TensorFlowV2RandomizedSmoothing

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
INSTALL = "pip install --no-deps cifar-10-model==7.4.0 foolbox==3.3.4"


def package_folder(package: str) -> Path:
    """Return the folder of an installed package."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"This example needs {package}: {INSTALL}")
    return Path(spec.origin).parent


def load_network() -> Any:
    """Return the pretrained network."""
    file = package_folder("cifar_10_model") / "trained_models" / "cnn_model.h5"
    return keras.models.load_model(file, compile=False)


def load_images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images `[count, 32, 32, 3]` in [0, 255] and labels."""
    files = sorted((package_folder("foolbox") / "data").glob("cifar10_*.png"))[:count]
    images = np.stack([imread(file)[..., :3] for file in files]) * 255
    return images.astype(np.float32), np.array([int(file.stem.split("_")[-1]) for file in files])


def attack(classifier: TensorFlowV2RandomizedSmoothing, x: np.ndarray, label: np.ndarray, steps: int) -> np.ndarray:
    """Return the size of a perturbation that changes each smoothed prediction, infinite where none was found.

    Each step goes half a sigma along the gradient of the smoothed loss.
    """
    found, size = x.copy(), np.full(len(x), np.inf)
    for _ in range(steps):
        here = np.isinf(size)
        gradient = classifier.loss_gradient(found[here], label[here], sampling=True)
        norm = np.linalg.norm(gradient.reshape(len(gradient), -1), axis=1)
        found[here] += classifier.scale / 2 * gradient / np.maximum(norm, 1e-12)[:, None, None, None]
        found = np.clip(found, 0, 255)
        changed = classifier.predict(found, is_abstain=False).argmax(axis=1) != label
        distance = np.linalg.norm((found - x).reshape(len(x), -1), axis=1)
        size = np.where(here & changed, distance, size)
        if not np.isinf(size).any():
            break
    return size


def draw(x: np.ndarray, label: np.ndarray, radius: np.ndarray, size: np.ndarray, path: Path) -> None:
    """Draw each image under its class, its radius and, where it was attacked, the change found."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows = -(-len(x) // 5)
    figure, axes = plt.subplots(rows, 5, figsize=(7, 1.9 * rows + 0.4), layout="constrained", squeeze=False)
    for place in axes.flat:
        place.axis("off")
    for image, c, r, s, place in zip(x, label, radius, size, axes.flat, strict=False):
        changed = "" if np.isnan(s) else f"\nchanged by {s:.0f}"
        place.imshow(image.astype(np.uint8))
        place.set_title("abstains" if c < 0 else f"{CLASSES[c]}\nradius {r:.1f}{changed}", fontsize=8)
    figure.suptitle("L2 radius, in pixel values from 0 to 255, within which nothing changes the class", fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--sigma", type=float, default=8.0, help="noise level, for pixel values in [0, 255]")
    parser.add_argument("--n", type=int, default=1000, help="votes that bound the probability of a class")
    parser.add_argument("--count", type=int, default=20, help="images to certify, at most 20")
    parser.add_argument("--attacked", type=int, default=10, help="images to attack")
    parser.add_argument("--steps", type=int, default=40, help="gradient steps of the attack")
    parser.add_argument("--seed", type=int, help="of the votes; drawn if not given")
    parser.add_argument(
        "--output", type=Path, default=Path("certified_keras_cifar"), help="path of the picture, no suffix"
    )
    arguments = parser.parse_args(argv)

    x, y = load_images(arguments.count)
    classifier = TensorFlowV2RandomizedSmoothing(
        load_network(),
        nb_classes=10,
        input_shape=(32, 32, 3),
        loss_object=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        clip_values=(0.0, 255.0),
        sample_size=32,
        scale=arguments.sigma,
        seed=seed_of(arguments.seed),
    )
    label, radius = classifier.certify(x, n=arguments.n, verbose=True)
    radius = np.floor(radius * 10) / 10  # what is shown is rounded down, like the radius itself
    size = np.full(len(x), np.nan)
    chosen = np.flatnonzero(label >= 0)[: arguments.attacked]
    size[chosen] = attack(classifier, x[chosen], label[chosen], arguments.steps)
    print("image  class       certified    radius  change found")
    for i, row in enumerate(zip(y, label, radius, size, strict=True)):
        certified = "-" if row[1] < 0 else CLASSES[row[1]]
        print(f"{i:5d}  {CLASSES[row[0]]:10}  {certified:10}  {row[2]:7.1f}  {row[3]:12.1f}")
    print(f"{np.mean(label == y):.0%} of the images are certified as what they are")
    below = int((size[chosen] < radius[chosen]).sum())
    print(f"{below} of {len(chosen)} attacked images were changed within their radius (alpha {classifier.alpha} each)")
    picture = arguments.output.with_suffix(".png")
    draw(x, label, radius, size, picture)
    print(f"picture in {picture}")


if __name__ == "__main__":
    main()
