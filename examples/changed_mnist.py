"""Certify the bfloat16 version of a pretrained PyTorch network from the votes of the float32 one.

The network is the CNN that the package digit-recognizer-py ships, which nobody here trained:
`pip install --no-deps digit-recognizer-py==0.1.0`. A run over MNIST images keeps the votes of the float32 network. The
other version is certified from them, and from a few samples on which both are called (Ugare et al. 2024,
arXiv:2305.19521). Beside it stands what its own votes certify. Writes `<output>.tsv` with its votes; nothing is
downloaded. It takes about a minute on two cores.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from seeds import seed_of
from torch_mnist import load_images, load_network

import jaxsmooth
from bridges.pytorch import Accelerated, WithPreprocessing, as_jax

RADII = [0.0, 0.25, 0.5, 0.75]


def main(argv: list[str] | None = None) -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--sigma", type=float, default=0.25, help="noise level, for pixel values in [0, 1]")
    parser.add_argument("--n", type=int, default=10_000, help="votes of an image")
    parser.add_argument("--m", type=int, default=1000, help="samples of an image on which both versions are called")
    parser.add_argument("--count", type=int, default=10, help="images to certify")
    parser.add_argument("--seed", type=int, help="of the votes; drawn if not given")
    parser.add_argument("--output", type=Path, default=Path("changed_mnist"), help="path of the log, no suffix")
    arguments = parser.parse_args(argv)

    noise, key = jaxsmooth.Gaussian(arguments.sigma), jaxsmooth.key_of_seed(seed_of(arguments.seed))
    x, y = load_images(arguments.count)
    network = load_network()
    # The input is standardised in float32 in both.
    first = as_jax(WithPreprocessing(network, mean=0.1307, std=0.3081))
    second = as_jax(WithPreprocessing(Accelerated(network, ["bfloat16"]), mean=0.1307, std=0.3081))

    log = arguments.output.with_suffix(".tsv")
    mode = jaxsmooth.Fixed(n=arguments.n)
    jaxsmooth.certify_dataset(first, noise, key, (x, y), log, mode=mode)
    run = jaxsmooth.read_votes(f"{log}.votes")

    results: dict[str, tuple[jaxsmooth.Certificate, float, int]] = {}
    seconds = float(run.seconds.sum())
    results["float32, its own votes"] = run.certificate, seconds, arguments.n
    began = time.monotonic()
    own = jaxsmooth.certify(second, noise, key, x, n=arguments.n)
    results["bfloat16, its own votes"] = own, time.monotonic() - began, arguments.n
    began = time.monotonic()
    changed = jaxsmooth.certify_changed(first, second, noise, None, x[run.idx], run, m=arguments.m)
    results["bfloat16, from those of float32"] = changed, time.monotonic() - began, 2 * arguments.m

    print(f"{'':32}" + "".join(f"{radius:7.2f}" for radius in RADII) + "     ACR  passes/image  seconds")
    for name, (result, seconds, passes) in results.items():
        certified = result.label, result.radius, y
        accuracy = jaxsmooth.certified_accuracy(*certified, RADII)
        mean = jaxsmooth.average_certified_radius(*certified)
        print(f"{name:32}" + "".join(f"{a:7.2f}" for a in accuracy) + f"{mean:8.3f}{passes:14,}{seconds:9.1f}")
    lost = np.asarray(own.radius) - changed.radius
    print(f"largest loss of radius {lost.max():.3f}, mean {lost.mean():.3f}")
    print(f"{int(changed.state.changed.sum())} of {len(x) * arguments.m:,} samples changed their class")
    print(f"votes in {log}.votes")


if __name__ == "__main__":
    main()
