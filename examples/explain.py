"""Draw certification in one look: a digit, noisy copies of it, their votes, its radius, and the curve of many digits.

It trains the small CNN of `certify_mnist.py` under noise and certifies real MNIST images. Writes `<output>.png` or
another format (half a minute).
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib.patheffects as effects
import numpy as np
from certify_mnist import load_mnist, train
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from seeds import seed_of

import jaxsmooth

ROWS, COLUMNS = 3, 3  # noisy copies


def main(argv: list[str] | None = None) -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--sigma", type=float, default=0.5, help="noise level, for pixel values in [0, 1]")
    parser.add_argument("--n", type=int, default=1000, help="noisy copies of each image")
    parser.add_argument("--count", type=int, default=200, help="images of the curve")
    parser.add_argument("--digit", type=int, default=4, help="index of the image to show")
    parser.add_argument("--seed", type=int, help="of the votes; drawn if not given")
    parser.add_argument("--output", type=Path, default=Path("explained.png"), help="path of the picture")
    parser.add_argument("--votes", type=Path, help="file for four digits with their noisy copies and votes, too")
    arguments = parser.parse_args(argv)
    noise, key = jaxsmooth.Gaussian(arguments.sigma), jaxsmooth.key_of_seed(seed_of(arguments.seed))
    x, y = load_mnist(seed=0)
    f = train(x[1000:], y[1000:], noise, seed=0)
    result = jaxsmooth.certify(f, noise, key, x[: arguments.count], n=arguments.n)
    # The copies that are shown are the first of those that vote.
    _, estimation = jaxsmooth.decision_keys(key)
    at = arguments.digit
    samples = jaxsmooth.stream_samples(
        noise, estimation, x[at : at + 1], ids=np.array([at]), n=ROWS * COLUMNS, batch_size=ROWS * COLUMNS
    )
    noisy, _ = next(samples)
    if arguments.votes is not None:
        jaxsmooth.draw_votes(f, noise, key, x[:4], arguments.votes, n=arguments.n)
    figure = draw(x[at, ..., 0], np.asarray(noisy)[..., 0], np.asarray(f(noisy).argmax(-1)), result, at, y)
    figure.savefig(arguments.output, dpi=150)
    print(f"digit {y[at]}: class {result.label[at]}, radius {_down(float(result.radius[at]))}; {arguments.output}")


def draw(
    digit: np.ndarray, noisy: np.ndarray, classes: np.ndarray, result: jaxsmooth.Certificate, at: int, truth: np.ndarray
) -> Any:
    """Return the figure: five panels from left to right."""
    figure = Figure(figsize=(12, 2.9), layout="constrained")
    FigureCanvasAgg(figure)
    parts: Any = figure.subfigures(1, 5, width_ratios=[1.0, 1.25, 1.15, 1.0, 1.75])
    axes = parts[0].subplots()
    axes.imshow(digit, cmap="gray")
    _panel(axes, "an image")
    grid: Any = parts[1].subplots(ROWS, COLUMNS)
    for axes, copy, label in zip(grid.flat, noisy, classes, strict=True):
        axes.imshow(copy, cmap="gray", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        is_top = label == result.label[at]
        shown = axes.text(2, 7, str(label), fontsize=10, color="#7fd0ff" if is_top else "#ff8080", weight="bold")
        shown.set_path_effects([effects.withStroke(linewidth=2, foreground="black")])
    parts[1].suptitle("noisy copies, classified", fontsize=10)
    counts = np.asarray(result.votes.counts)[at]
    axes = parts[2].subplots()
    axes.bar(range(10), counts, color=["C0" if label == counts.argmax() else "C3" for label in range(10)])
    axes.set(xticks=range(10), yticks=[], ylim=(0, counts.sum()))
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.set_title(f"votes of {counts.sum():,} copies", fontsize=10)
    _draw_ball(parts[3].subplots(), int(result.label[at]), float(result.radius[at]))
    axes = parts[4].subplots()
    inputs = len(np.asarray(result.label))
    jaxsmooth.draw_curves({f"{inputs} images": (result, truth[:inputs])}, ax=axes, title="")
    axes.set_title("the same for many images", fontsize=10)
    return figure


def _draw_ball(axes: Any, label: int, radius: float) -> None:
    """Draw the ball of images that keep their class."""
    axes.add_patch(Circle((0, 0), 1, color="C0", alpha=0.2))
    axes.plot(0, 0, "o", color="C0")
    axes.annotate("", (np.cos(0.6), np.sin(0.6)), (0, 0), arrowprops={"arrowstyle": "->"})
    axes.text(0.2, 0.42, _down(radius), rotation=34, fontsize=9)
    axes.text(0, -0.45, f"the smoothed\nclassifier says {label}", ha="center", fontsize=9)
    axes.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), aspect="equal")
    _panel(axes, "a certified radius")
    axes.axis("off")


def _down(radius: float) -> str:
    """Return a radius with three decimals, rounded down."""
    return f"{np.floor(radius * 1000) / 1000:.3f}"


def _panel(axes: Any, title: str) -> None:
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=10)


if __name__ == "__main__":
    main()
