"""Time and memory of a gradient through the smoothing, ResNet-20: `python -m tests.benchmarks.smooth_gradient`.

Prints the time of the gradient in x over that of the forward pass at the same n, interleaved, and by how much the peak
memory of a process of its own grows from n = 64 to n = 4,096.
"""

import argparse
import subprocess
import sys

import jax
import jax.numpy as jnp

from jaxsmooth import Gaussian, smooth
from tests import memory
from tests.benchmarks.models import build
from tests.benchmarks.timing import ratio, times

FEW, MANY = 64, 4096


def gradient(n: int, batch_size: int):
    """Return the forward pass and the gradient of one image's class probability, compiled, and the image."""
    f, event, _ = build("resnet-20 32x32x3")
    g = smooth(f, Gaussian(0.25), n=n, batch_size=batch_size)
    key, x = jax.random.key(0), jnp.full((1, *event), 0.5)
    forward = jax.jit(lambda x: g(key, x)[0, 0])
    return forward, jax.jit(jax.grad(forward)), x


def peak(n: int, batch_size: int) -> float:
    """Return the peak memory in MB of a process that computes one gradient."""
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.smooth_gradient",
        "--peak",
        str(n),
        "--batch-size",
        str(batch_size),
    ]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (5)")
    parser.add_argument("--batch-size", type=int, default=64, help="rows in one call of the network (64)")
    parser.add_argument("--peak", type=int, help="print the peak memory in MB of one gradient at this n")
    arguments = parser.parse_args()
    if arguments.peak:
        _, backward, x = gradient(arguments.peak, arguments.batch_size)
        backward(x).block_until_ready()
        print(memory.peak())
        return
    for n in (arguments.batch_size, 9 * arguments.batch_size):
        forward, backward, x = gradient(n, arguments.batch_size)
        runs = {"f": [lambda: forward(x).block_until_ready()], "gradient": [lambda: backward(x).block_until_ready()]}  # noqa: B023
        taken = times(runs, arguments.rounds)
        print(f"n {n}: gradient / forward {ratio(taken['gradient'], taken['f']):.2f}", flush=True)
    growth = peak(MANY, arguments.batch_size) - peak(FEW, arguments.batch_size)
    print(f"peak memory from n {FEW} to n {MANY}: {growth:+.0f} MB")


if __name__ == "__main__":
    main()
