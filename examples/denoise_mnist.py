"""Certify a pretrained PyTorch network that was never trained on noise, by itself and behind a small denoiser.

The network is the CNN that the package digit-recognizer-py ships, which nobody here trained:
`pip install --no-deps digit-recognizer-py==0.1.0`. The denoiser is trained on 4,000 MNIST images, first to restore
them, then to let the network keep its class (Salman et al. 2020, arXiv:2003.01908). The images that are certified are
others. Writes `<output>.png`; nothing is downloaded. It takes about two minutes on two cores.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from seeds import seed_of
from torch import nn
from torch_mnist import load_images, load_network

import jaxsmooth
from bridges.pytorch import Denoised, WithPreprocessing, as_jax

RADII = [0.5, 0.75, 1.0, 1.25]
TRAINED = 4000
BATCH = 128


def make_denoiser() -> nn.Module:
    """Return convolutions at half the resolution, from noisy images to clean ones: 21,000 parameters."""
    return nn.Sequential(
        nn.PixelUnshuffle(2),
        nn.Conv2d(4, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 4, 3, padding=1),
        nn.PixelShuffle(2),
    )


def train(denoiser: nn.Module, network: nn.Module, x: np.ndarray, sigma: float, seconds: float, seed: int) -> None:
    """Train the denoiser for some seconds."""
    torch.manual_seed(seed)
    images = torch.tensor(x)
    network = network.eval().requires_grad_(False)
    with torch.no_grad():
        labels = network(images).argmax(dim=1)
    optimizer = torch.optim.Adam(denoiser.parameters(), 2e-3)
    errors: list[float] = []
    began = time.monotonic()
    while (spent := (time.monotonic() - began) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - spent) + 1e-5
        rows = torch.randint(len(images), (BATCH,))
        clean = images[rows]
        restored = denoiser(clean + sigma * torch.randn_like(clean))
        loss = error = nn.functional.mse_loss(restored, clean)
        if spent > 0.6:  # the second part of the time, for the class too
            loss = loss + 0.05 * nn.functional.cross_entropy(network(restored), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(error.item())
    print(f"trained the denoiser for {len(errors)} steps in {seconds:.0f} s; squared error {np.mean(errors[-50:]):.4f}")


def main(argv: list[str] | None = None) -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--sigma", type=float, default=0.5, help="noise level, for pixel values in [0, 1]")
    parser.add_argument("--n", type=int, default=2000, help="most votes of an image")
    parser.add_argument("--count", type=int, default=100, help="images to certify")
    parser.add_argument("--seconds", type=float, default=40.0, help="to train the denoiser for")
    parser.add_argument("--seed", type=int, help="of the votes and the training; drawn if not given")
    parser.add_argument("--output", type=Path, default=Path("denoised_mnist"), help="path of the picture, no suffix")
    arguments = parser.parse_args(argv)

    seed = seed_of(arguments.seed)
    x, y = load_images(TRAINED + arguments.count)
    network = WithPreprocessing(load_network(), mean=0.1307, std=0.3081)
    denoiser = make_denoiser()
    train(denoiser, network, x[:TRAINED], arguments.sigma, arguments.seconds, seed % 2**32)
    x, y = x[TRAINED:], y[TRAINED:]

    noise = jaxsmooth.Gaussian(arguments.sigma)
    runs: dict[str, list[jaxsmooth.LogRow]] = {}
    for name, module in (("network alone", network), ("behind the denoiser", Denoised(network, denoiser))):
        began = time.monotonic()
        # Another key for another classifier: the noise of a certificate is drawn after the classifier is chosen.
        key = jaxsmooth.stream_key(jaxsmooth.key_of_seed(seed), 100 + len(runs))
        result = jaxsmooth.certify_radii(as_jax(module), noise, key, x, RADII, n=arguments.n)
        settings: dict[str, Any] = {"mode": "grid", "radii": RADII, "n0": 100, "n": arguments.n}
        runs[name] = jaxsmooth.log_rows(result, y, noise=noise, alpha=0.001, **settings)
        print(f"certified {name}: {int(result.votes.n.sum()):,} votes in {time.monotonic() - began:.0f} s")
    print(jaxsmooth.report_table(runs, [0.0, *RADII]))
    picture = arguments.output.with_suffix(".png")
    jaxsmooth.draw_curves(runs, picture, title="A network that was never trained on noise")
    print(f"picture in {picture}")


if __name__ == "__main__":
    main()
