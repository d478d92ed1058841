"""Speed of lattice noise against Gaussian noise: `python -m tests.benchmarks.lattice_noise`.

Noise by itself on 256 inputs of 3x32x32, and `count_votes` with a ResNet-20, interleaved in one process, medians.
"""

import argparse

import jax
import jax.numpy as jnp

from jaxsmooth import Gaussian, LatticeGaussian, count_votes
from tests.benchmarks.models import build
from tests.benchmarks.timing import milliseconds, ratio, times

NOISES = {"gaussian": Gaussian(0.25), "lattice": LatticeGaussian(0.25, 1 / 255)}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (9)")
    rounds = parser.parse_args().rounds
    key, (f, event, _) = jax.random.key(0), build("resnet-20 32x32x3")
    draw = jax.jit(lambda noise, key: noise.sample(key, (256, *event)))
    x = jnp.zeros((2, *event))

    def alone(noise):
        return [lambda: [draw(noise, key).block_until_ready() for _ in range(8)]]

    def network(noise):
        return [lambda: count_votes(f, noise, key, x, n=256, batch_size=64).block_until_ready()]

    for name, kind in (("noise alone", alone), ("with a ResNet-20", network)):
        taken = times({noise: kind(value) for noise, value in NOISES.items()}, rounds)
        speed = ratio(taken["gaussian"], taken["lattice"])
        print(f"{name:18} {milliseconds(taken)}  lattice runs at {speed:.2f} of the speed", flush=True)


if __name__ == "__main__":
    main()
