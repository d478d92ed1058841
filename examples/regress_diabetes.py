"""Certify a regression: the interval that a prediction cannot leave, whatever changes an input by a given size.

A small network in JAX and the same in PyTorch predict the progression of diabetes from the ten features of
scikit-learn's 442 patients. The smoothed prediction is the median of the network's outputs under noise (Chiang et al.
2020, arXiv:2007.03730). Writes `<output>.png`; nothing is downloaded. It takes about half a minute on two cores.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from seeds import seed_of
from sklearn.datasets import load_diabetes

import jaxsmooth

TESTED = 100
STEPS = 1500


def train_jax(x: np.ndarray, y: np.ndarray, noise: jaxsmooth.Gaussian, seed: int) -> Any:
    """Return a network of one hidden layer, trained under noise, from `[B, 10]` to `[B]`."""
    rng = np.random.default_rng(seed)
    shapes = {"in": (x.shape[1], 32), "out": (32,)}
    params = {name: jnp.asarray(rng.normal(size=s) / np.sqrt(s[0]), jnp.float32) for name, s in shapes.items()}
    params |= {"bias": jnp.zeros(32), "mean": jnp.asarray(y.mean())}

    def predict(params: Any, x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ params["in"] + params["bias"][None]) @ params["out"] + params["mean"]

    optimizer = optax.adam(3e-3)
    state = optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any, noisy: jax.Array) -> tuple[Any, Any]:
        gradient = jax.grad(lambda p: jnp.mean((predict(p, noisy) - y) ** 2))(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state

    key = jaxsmooth.stream_key(jaxsmooth.key_of_seed(seed), jaxsmooth.Stream.TRAINING)
    for turn in range(STEPS):
        params, state = step(params, state, jaxsmooth.add_noise(noise, jax.random.fold_in(key, turn), x))
    return Partial(predict, params)


def train_torch(x: np.ndarray, y: np.ndarray, noise: jaxsmooth.Gaussian, seed: int) -> Any:
    """Return the same network in PyTorch, by way of the bridge."""
    import torch
    from torch import nn

    from bridges.pytorch import as_jax

    class Output(nn.Module):
        """A network of one hidden layer and one output."""

        def __init__(self) -> None:
            super().__init__()
            self.hidden = nn.Linear(x.shape[1], 32)
            self.last = nn.Linear(32, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.hidden(x).tanh())[:, 0]

    torch.manual_seed(seed % 2**32)
    model = Output()
    nn.init.constant_(model.last.bias, float(y.mean()))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    inputs, targets = torch.tensor(x), torch.tensor(y)
    for _ in range(STEPS):
        noisy = inputs + float(np.asarray(noise.sigma)) * torch.randn_like(inputs)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(noisy), targets).backward()
        optimizer.step()
    return as_jax(model)


def draw(results: dict[str, jaxsmooth.Interval], y: np.ndarray, path: Path, title: str) -> None:
    """Draw the interval and the median of each patient, in the order of the medians, and what was measured."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for axis, (name, found) in zip(axes, results.items(), strict=True):
        order = np.argsort(found.estimate)
        at = np.arange(len(order))
        axis.fill_between(at, found.lower[order], found.upper[order], alpha=0.3, step="mid", label="certified interval")
        axis.plot(at, found.estimate[order], label="smoothed prediction")
        axis.plot(at, y[order], ".", color="0.4", markersize=4, label="measured")
        axis.set(title=name, xlabel="patient")
    axes[0].set_ylabel("progression of the disease")
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--sigma", type=float, default=0.5, help="noise level, in standard deviations of a feature")
    parser.add_argument("--radius", type=float, default=0.25, help="size of a change, in L2, in the same units")
    parser.add_argument("--n", type=int, default=5000, help="samples for each patient")
    parser.add_argument("--seed", type=int, help="of the samples and the training; drawn if not given")
    parser.add_argument("--output", type=Path, default=Path("diabetes"), help="path of the picture, no suffix")
    arguments = parser.parse_args(argv)

    seed = seed_of(arguments.seed)
    found: Any = load_diabetes()
    x, y = found.data, found.target
    x = ((x - x.mean(axis=0)) / x.std(axis=0)).astype(np.float32)
    y = y.astype(np.float32)
    order = np.random.default_rng(0).permutation(len(x))
    tested, known = order[:TESTED], order[TESTED:]
    noise = jaxsmooth.Gaussian(arguments.sigma)
    key = jaxsmooth.key_of_seed(seed)
    results: dict[str, jaxsmooth.Interval] = {}
    print(f"{TESTED} patients, a change of at most {arguments.radius} in L2, alpha 0.001")
    print(f"{'network':10}{'mean error':>12}{'mean width':>12}{'by counts':>12}")
    for name, train in (("JAX", train_jax), ("PyTorch", train_torch)):
        f = train(x[known], y[known], noise, seed)
        interval = jaxsmooth.certify_regression(f, noise, key, x[tested], arguments.radius, n=arguments.n)
        # The same from counts of outputs that are at most t: no output is kept, and it runs in compiled code.
        thresholds = np.arange(-100.0, 500.0, 2.0)
        counts = jaxsmooth.count_votes(jaxsmooth.AtMost(f, thresholds), noise, key, x[tested], n=arguments.n)
        votes = jaxsmooth.Votes(counts=counts, n=arguments.n)
        counted = jaxsmooth.regression_interval(votes, thresholds, noise, arguments.radius)
        error = np.abs(interval.estimate - y[tested]).mean()
        widths = [float(np.mean(np.asarray(each.upper) - np.asarray(each.lower))) for each in (interval, counted)]
        print(f"{name:10}{error:12.1f}{widths[0]:12.1f}{widths[1]:12.1f}")
        results[name] = interval
    picture = arguments.output.with_suffix(".png")
    title = f"No change of L2 size {arguments.radius} moves a smoothed prediction out of its interval"
    draw(results, y[tested], picture, title)
    print(f"picture in {picture}")


if __name__ == "__main__":
    main()
