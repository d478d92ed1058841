"""Time to certify timm's ViT-tiny on 224 x 224 images: `python -m tests.benchmarks.vision_transformer`.

For 1,000 and 21,843 classes, in turn in one process: the class's `certify` over the bare network on as many ready-made
inputs, at its best batch size of three. Random weights. Medians of ratios within a round.
"""

import argparse
import time
import warnings

import numpy as np
import torch
from torch import nn

from bridges.pytorch import PyTorchRandomizedSmoothing
from tests.benchmarks.timing import ratio, times
from tests.bridges.architectures import with_torchvision

VOTES, SELECTION, BATCHES = 96, 32, (16, 32, 64)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (5)")
    rounds = parser.parse_args().rounds
    warnings.simplefilter("ignore")
    for classes in (1000, 21_843):
        network = with_torchvision(lambda k=classes: _vit(k)).eval()
        shape = (3, 224, 224)
        settings = {"scale": 0.25, "seed": 0, "sample_size": SELECTION}
        ours = PyTorchRandomizedSmoothing(network, nn.CrossEntropyLoss(), shape, classes, **settings)
        x = np.random.default_rng(0).uniform(size=(1, *shape)).astype(np.float32)

        def bare(rows: int, network: nn.Module = network) -> None:
            batch = torch.randn(rows, 3, 224, 224)
            with torch.inference_mode():
                for _ in range((VOTES + SELECTION) // rows):
                    network(batch)

        started = time.perf_counter()
        runs = {"ours": [lambda c=ours, x=x: c.certify(x, VOTES)], "bare": [lambda b=b: bare(b) for b in BATCHES]}
        taken = times(runs, rounds)
        medians = "  ".join(f"{name} {np.median(seconds):.2f} s" for name, seconds in taken.items())
        took = time.perf_counter() - started
        print(f"{classes:6,} classes: ours/bare {ratio(taken['ours'], taken['bare']):.2f}  {medians}  ({took:.0f} s)")


def _vit(classes: int) -> nn.Module:
    import timm

    return timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=classes)


if __name__ == "__main__":
    main()
