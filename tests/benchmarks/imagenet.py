"""What certifying at the scale of ImageNet takes: `python -m tests.benchmarks.imagenet`.

A ResNet-50 of timm with random weights, on images `[3, 224, 224]`: samples a second of `count_votes`' host loop beside
those of the bare network, by batch size and dtype, and the hours for 500 images at n = 100,000 and at the mean votes of
a grid of radii. Peak memory is that of the process.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import jaxsmooth
from bridges.pytorch import as_jax
from tests.bridges.architectures import with_torchvision

GRID_VOTES = 2000  # mean votes an input of a grid of radii, of the order of those in the guide on modes


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    timm: Any = with_torchvision(lambda: __import__("timm"))
    print("ResNet-50, 3x224x224   samples/s   bare network   over it   500 x 100,000   500 x 2,000 votes   peak memory")
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        network = timm.create_model("resnet50", pretrained=False).eval().to(dtype)
        for batch_size in options.batch_sizes:
            ours, bare = _speed(network, dtype, batch_size, options.rounds)
            hours = 500 * 100_000 / ours / 3600
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            speed = f"{ours:9.1f}   {bare:12.1f}   {bare / ours:7.2f}"
            taken = f"{hours:11,.0f} h   {hours * GRID_VOTES / 100_000:15,.1f} h"
            print(f"{name:9} batch {batch_size:3}    {speed}   {taken}   {peak:8.1f} GB", flush=True)


def _speed(network: Any, dtype: Any, batch_size: int, rounds: int) -> tuple[float, float]:
    """Return samples a second of counting votes, and of the bare network on noise that is there already."""
    f = as_jax(_Cast(network, dtype))
    x = np.random.default_rng(0).uniform(size=(1, 3, 224, 224)).astype(np.float32)
    noise, key, n = jaxsmooth.Gaussian(0.5), jaxsmooth.key_of_seed(0), max(64, 2 * batch_size)
    ready = torch.randn(batch_size, 3, 224, 224).to(dtype)

    def bare() -> None:
        with torch.inference_mode():
            for _ in range(n // batch_size):
                network(ready)

    def ours() -> None:
        jaxsmooth.stream_votes(f, noise, key, x, n=n, batch_size=batch_size)

    taken: dict[Callable[[], None], list[float]] = {ours: [], bare: []}
    for _ in range(rounds + 1):
        for run, seconds in taken.items():
            began = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - began)
    of_ours, of_bare = (n / statistics.median(seconds[1:]) for seconds in taken.values())
    return of_ours, of_bare


class _Cast(torch.nn.Module):
    """A network whose inputs become its dtype."""

    def __init__(self, network: Any, dtype: Any) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x.to(self.dtype)).float()


if __name__ == "__main__":
    main()
