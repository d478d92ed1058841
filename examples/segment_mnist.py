"""Certify a segmentation: which pixels of a canvas with pasted MNIST digits keep their class, all of them together.

A small network is trained for some seconds under noise to name the digit, or the background, at each pixel of a canvas
of 48 x 48. It is the same network in JAX (flax.linen) and in PyTorch: choose with `--framework`. Certified pixels hold
jointly, within one radius, with probability 1 - alpha (Fischer et al. 2021, arXiv:2107.00228). Writes `<output>.png`:
images, truth, and which pixels are certified, abstained or wrong. Nothing is downloaded. It takes about a minute and a
half on two cores.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from certify_mnist import load_mnist
from seeds import seed_of

import jaxsmooth

SIDE = 48
BACKGROUND = 10
CLASSES = 11
BATCH = 16
WIDTHS = (16, 48, 96)
RATE = 3e-3  # of learning, at the beginning; it falls to 0
DIGITS = 2  # pasted on each canvas
TRAINED = 4000  # of the 5,000 digits; the canvases that are certified use the others


def make_canvases(x: np.ndarray, y: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return canvases `[count, 48, 48, 1]` with digits side by side at random heights, and the class of each pixel."""
    rng = np.random.default_rng(seed)
    canvas = np.zeros((count, SIDE, SIDE), np.float32)
    truth = np.full((count, SIDE, SIDE), BACKGROUND, np.int32)
    for index in range(count):
        for place, digit in enumerate(rng.integers(len(x), size=DIGITS)):
            top = rng.integers(SIDE - 27)
            left = rng.integers(5) + (SIDE - 32) * place // (DIGITS - 1)
            rows = slice(top, top + 28)
            columns = slice(left, left + 28)
            pasted = x[digit, ..., 0]
            ink = pasted > 0.3
            canvas[index, rows, columns][ink] = pasted[ink]
            truth[index, rows, columns][ink] = y[digit]
    return canvas[..., None], truth


def train_jax(batches: Callable[[int], tuple[np.ndarray, np.ndarray]], sigma: float, seconds: float, seed: int) -> Any:
    """Return a trained segmenter as a function from canvases `[B, 48, 48, 1]` to scores `[B, 48, 48, 11]`."""
    import flax.linen as nn
    import optax
    from jax.tree_util import Partial

    class Segmenter(nn.Module):
        """Two levels down and up again, with the finer level beside the coarser one."""

        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            first = nn.relu(nn.Conv(WIDTHS[0], (4, 4), strides=2)(x))
            second = nn.relu(nn.Conv(WIDTHS[1], (4, 4), strides=2)(first))
            third = nn.relu(nn.Conv(WIDTHS[2], (4, 4), strides=2)(second))
            third = nn.relu(nn.Conv(WIDTHS[2], (3, 3))(third))
            up = jnp.concatenate([second, _twice(third)], axis=-1)
            up = nn.relu(nn.Conv(WIDTHS[1], (3, 3))(up))
            up = jnp.concatenate([first, _twice(up)], axis=-1)
            # Four scores at each place are those of four pixels.
            scores = nn.Conv(4 * CLASSES, (3, 3))(up).reshape(-1, SIDE // 2, SIDE // 2, 2, 2, CLASSES)
            return scores.transpose(0, 1, 3, 2, 4, 5).reshape(-1, SIDE, SIDE, CLASSES)

    model = Segmenter()
    noise = jaxsmooth.Gaussian(sigma)
    optimizer: Any = optax.inject_hyperparams(optax.adam)(learning_rate=RATE)
    params = model.init(jax.random.key(seed), jnp.zeros((1, SIDE, SIDE, 1)))
    state: Any = optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any, noisy: jax.Array, y: jax.Array) -> tuple[Any, Any, jax.Array]:
        def loss(params: Any) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, noisy), y).mean()  # pyright: ignore

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    key = jaxsmooth.key_of_seed(seed)
    began, steps, value = time.monotonic(), 0, jnp.zeros(())
    while (spent := (time.monotonic() - began) / seconds) < 1:
        x, y = batches(steps)
        state.hyperparams["learning_rate"] = jnp.asarray(RATE * (1.01 - spent))
        noisy = jaxsmooth.add_noise(noise, jaxsmooth.stream_key(key, jaxsmooth.Stream.TRAINING, steps), x)
        params, state, value = step(params, state, noisy, jnp.asarray(y))
        steps += 1
    print(f"trained in JAX for {steps} steps; cross-entropy of the last batch {float(value):.3f}")
    return Partial(model.apply, params)


def _twice(x: jax.Array) -> jax.Array:
    """Return an image of twice the size."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def train_torch(
    batches: Callable[[int], tuple[np.ndarray, np.ndarray]], sigma: float, seconds: float, seed: int
) -> Any:
    """Return the same segmenter, trained in PyTorch, by way of the bridge."""
    import torch
    from torch import nn

    from bridges.pytorch import as_jax

    class Segmenter(nn.Module):
        """The network of `train_jax`. Channels come last in its inputs and scores."""

        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(1, WIDTHS[0], 4, stride=2, padding=1)
            self.second = nn.Conv2d(WIDTHS[0], WIDTHS[1], 4, stride=2, padding=1)
            self.third = nn.Conv2d(WIDTHS[1], WIDTHS[2], 4, stride=2, padding=1)
            self.around = nn.Conv2d(WIDTHS[2], WIDTHS[2], 3, padding=1)
            self.up = nn.Conv2d(WIDTHS[1] + WIDTHS[2], WIDTHS[1], 3, padding=1)
            self.last = nn.Conv2d(WIDTHS[0] + WIDTHS[1], 4 * CLASSES, 3, padding=1)
            self.twice = nn.Upsample(scale_factor=2)
            self.pixels = nn.PixelShuffle(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first = self.first(x.permute(0, 3, 1, 2)).relu()
            second = self.second(first).relu()
            third = self.around(self.third(second).relu()).relu()
            up = self.up(torch.cat([second, self.twice(third)], dim=1)).relu()
            return self.pixels(self.last(torch.cat([first, self.twice(up)], dim=1))).permute(0, 2, 3, 1)

    torch.manual_seed(seed % 2**32)
    model = Segmenter()
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    began, steps, value = time.monotonic(), 0, torch.zeros(())
    while (spent := (time.monotonic() - began) / seconds) < 1:
        optimizer.param_groups[0]["lr"] = RATE * (1.01 - spent)
        x, y = (torch.from_numpy(array) for array in batches(steps))
        scores = model(x + sigma * torch.randn_like(x))
        value = nn.functional.cross_entropy(scores.reshape(-1, CLASSES), y.reshape(-1).long())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        steps += 1
    print(f"trained in PyTorch for {steps} steps; cross-entropy of the last batch {value.item():.3f}")
    return as_jax(model)


def draw(x: np.ndarray, truth: np.ndarray, result: jaxsmooth.Certificate, path: Path, title: str) -> None:
    """Draw canvases, true classes, and the pixels that are certified and right, abstained, and certified but wrong."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    label = np.asarray(result.label)
    shown = np.where(label == jaxsmooth.ABSTAIN, 1, np.where(label == truth, 0, 2))
    names = ("certified", "abstained", "certified, wrong")
    colours = ("#4c9f70", "#d9d9d9", "#c0392b")
    figure = Figure(figsize=(1.6 * len(x) + 0.6, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, len(x), squeeze=False)
    classes = ListedColormap([f"C{digit}" for digit in range(10)] + ["#f4f4f4"])
    for column in range(len(x)):
        axes[0, column].imshow(x[column, ..., 0], cmap="gray", vmin=0, vmax=1)
        axes[1, column].imshow(truth[column], cmap=classes, vmin=0, vmax=10)
        axes[2, column].imshow(shown[column], cmap=ListedColormap(colours), vmin=0, vmax=2)
    for row, name in zip(axes, ("image", "true class", "certificate"), strict=True):
        row[0].set_ylabel(name)
        for axis in row:
            axis.set(xticks=[], yticks=[])
    handles = [Patch(color=colour, label=name) for colour, name in zip(colours, names, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--framework", choices=("jax", "torch"), default="jax", help="that the network is written in")
    parser.add_argument("--sigma", type=float, default=0.25, help="noise level, for pixel values in [0, 1]")
    parser.add_argument("--tau", type=float, default=0.75, help="least probability of a certified pixel's class")
    parser.add_argument("--n", type=int, default=300, help="votes on each canvas")
    parser.add_argument(
        "--alpha", type=float, default=0.001, help="failure probability of a canvas, all pixels together"
    )
    parser.add_argument("--count", type=int, default=6, help="canvases to certify")
    parser.add_argument("--seconds", type=float, default=50.0, help="to train for")
    parser.add_argument("--seed", type=int, help="of the votes and the training; drawn if not given")
    parser.add_argument("--output", type=Path, default=Path("segmented_mnist"), help="path of the picture, no suffix")
    arguments = parser.parse_args(argv)

    seed = seed_of(arguments.seed)
    x, y = load_mnist(0)

    def batches(step: int) -> tuple[np.ndarray, np.ndarray]:
        return make_canvases(x[:TRAINED], y[:TRAINED], BATCH, step)

    train = {"jax": train_jax, "torch": train_torch}[arguments.framework]
    f = train(batches, arguments.sigma, arguments.seconds, seed)
    canvas, truth = make_canvases(x[TRAINED:], y[TRAINED:], arguments.count, 0)
    noise = jaxsmooth.Gaussian(arguments.sigma)
    # Another key for the certificate than for the training.
    key = jaxsmooth.stream_key(jaxsmooth.key_of_seed(seed), 100)
    settings: dict[str, Any] = {"n0": 50, "n": arguments.n, "alpha": arguments.alpha, "batch_size": 32}
    began = time.monotonic()
    result = jaxsmooth.certify_components(f, noise, key, canvas, arguments.tau, **settings)
    seconds = time.monotonic() - began
    label = np.asarray(result.label)
    radius = np.floor(1000 * float(result.radius.max())) / 1000  # rounded down, as every radius
    print(
        f"certified {arguments.count} canvases of {SIDE} x {SIDE} pixels in {seconds:.0f} s, {arguments.n} votes each"
    )
    print(f"radius {radius:.3f} for all certified pixels of a canvas together, in L2")
    print(f"{'pixels':12}{'certified':>11}{'abstained':>11}{'wrong':>9}")
    for name, chosen in (("all", truth >= 0), ("of digits", truth < BACKGROUND)):
        shares = [(label == truth), (label == jaxsmooth.ABSTAIN), (label >= 0) & (label != truth)]
        print(
            f"{name:12}"
            + "".join(f"{share[chosen].mean():>{w}.3f}" for share, w in zip(shares, (11, 11, 9), strict=True))
        )
    picture = arguments.output.with_suffix(".png")
    how = f"sigma {arguments.sigma}, {arguments.framework}"
    title = f"Pixels that keep their class together within L2 radius {radius:.3f} ({how})"
    draw(canvas, truth, result, picture, title)
    print(f"picture in {picture}")


if __name__ == "__main__":
    main()
