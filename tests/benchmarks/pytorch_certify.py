"""Time to certify with the PyTorch class: `python -m tests.benchmarks.pytorch_certify`.

For each network, interleaved in one process, medians over rounds, n = 1,000 votes on 4 inputs:

- bare: the network on as many ready-made noisy inputs, at its best batch size.
- ours: `certify` of the class.
- art: `certify` of ART's class, if ART is installed, at its best of three batch sizes.

And `predict` and `loss_gradient(sampling=True)` of both classes, at 32 copies of 128 images. `--keep-memory` runs all
of them after `bridges.memory.keep_freed_memory`. `--device gpu --votes 10000` runs them on a GPU.
"""

import argparse
import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from bridges.memory import keep_freed_memory
from bridges.pytorch import PyTorchRandomizedSmoothing
from tests.benchmarks.timing import Runs, milliseconds, ratio, times

INPUTS = 4


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, width, 3, stride, 1)
        self.second = nn.Conv2d(width, width, 3, 1, 1)
        self.shortcut = nn.Conv2d(before, width, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the block."""
        return functional.relu(self.shortcut(x) + self.second(functional.relu(self.first(x))))


def resnet20() -> nn.Module:
    """He et al. 2016 for CIFAR-10, batch normalisation folded away as at inference."""
    widths = [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2 + [(32, 64, 2)] + [(64, 64, 1)] * 2
    stem = (nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU())
    return nn.Sequential(*stem, *(Block(*w) for w in widths), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def cnn() -> nn.Module:
    """Two strided convolutions and two dense layers."""
    convolutions = (nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU())
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(1568, 64), nn.ReLU(), nn.Linear(64, 10))


def mlp() -> nn.Module:
    """Two hidden layers of 256."""
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...]]] = {
    "mlp 64": (mlp, (64,), (512, 1024, 2048)),
    "cnn 1x28x28": (cnn, (1, 28, 28), (128, 256, 512)),
    "resnet-20 3x32x32": (resnet20, (3, 32, 32), (32, 64, 128)),
}


def bare(network: nn.Module, noisy: torch.Tensor, votes: int) -> Callable[[], Any]:
    """Return the network's run over as many noisy inputs as certify needs, in batches like this one."""
    batches = -(-(votes + 32) * INPUTS // len(noisy))

    def run() -> None:
        with torch.inference_mode():
            for _ in range(batches):
                scores = network(noisy)
            scores.cpu()  # waits for a GPU

    return run


def runs(name: str, device: str, votes: int) -> Runs:
    """Return, by contender, its runs; the fastest counts."""
    build, shape, batch_sizes = NETWORKS[name]
    network = build().eval()
    x = np.random.default_rng(0).uniform(size=(INPUTS, *shape)).astype(np.float32)
    many = np.random.default_rng(1).uniform(size=(128, *shape)).astype(np.float32)
    labels = np.eye(10, dtype=np.float32)[np.arange(128) % 10]
    arguments: dict[str, Any] = {"loss": nn.CrossEntropyLoss(), "input_shape": shape, "nb_classes": 10, "scale": 0.25}
    arguments["device_type"] = device
    ours = PyTorchRandomizedSmoothing(network, seed=0, **arguments)
    if device == "gpu":
        batch_sizes = (1024, 4096, 8192)
    place = next(network.parameters()).device
    table = {
        "bare": [bare(network, torch.randn(b, *shape, device=place), votes) for b in batch_sizes],
        "ours": [lambda: ours.certify(x, votes)],
        "ours predict": [lambda: ours.predict(many)],
        "ours gradient": [lambda: ours.loss_gradient(many, labels, sampling=True)],
    }
    if importlib.util.find_spec("art") is not None:
        module = importlib.import_module("art.estimators.certification.randomized_smoothing")
        art = module.PyTorchRandomizedSmoothing(network, **arguments)
        table["art"] = [lambda b=b: art.certify(x, votes, batch_size=b) for b in (32, *batch_sizes[:2])]
        table["art predict"] = [lambda: art.predict(many)]
        table["art gradient"] = [lambda: art.loss_gradient(many, labels, sampling=True)]
    return table


def measure(name: str, device: str, votes: int, rounds: int) -> None:
    """Print the medians of one network and the ratios."""
    taken = times(runs(name, device, votes), rounds)
    print(f"{name:18} {milliseconds(taken)}  ours/bare {ratio(taken['ours'], taken['bare']):.2f}", end="")
    if "art" in taken:
        for task in ("", " predict", " gradient"):
            print(f"  art/ours{task} {ratio(taken[f'art{task}'], taken[f'ours{task}']):.2f}", end="")
    print(flush=True)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (5)")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="where the networks run (cpu)")
    parser.add_argument("--votes", type=int, default=1000, help="estimation votes for each input (1000)")
    parser.add_argument("--keep-memory", action="store_true", help="call keep_freed_memory first")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.keep_memory:
        keep_freed_memory()
    for name in NETWORKS:
        measure(name, arguments.device, arguments.votes, arguments.rounds)


if __name__ == "__main__":
    main()
