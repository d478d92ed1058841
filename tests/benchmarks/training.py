"""Time to train with the PyTorch class by an objective: `python -m tests.benchmarks.training`.

On the small CNN of MNIST and on ResNet-20 at 32 x 32, batch 128, interleaved in one process, medians of ratios within a
round:

- gaussian: `fit(objective=losses.gaussian)` over a plain loop of PyTorch with its own noise and cross-entropy. Beside
  it stands what no class can go below: the same plain loop with the noise of a JAX key, which is what makes a run
  repeatable, and with the formula and its derivative from JAX, where it is written once for all frameworks.
- macer: with 16 copies, over a plain transcription of its formula, the authors' loop.

Epochs are of 10 steps (5 of MACER, 2 of ResNet-20).
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

import jaxsmooth
from bridges.pytorch import PyTorchRandomizedSmoothing
from jaxsmooth import losses
from tests import authors
from tests.benchmarks import pytorch_certify
from tests.benchmarks.timing import milliseconds, ratio, times

SIGMA, BATCH = 0.25, 128


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="interleaved rounds (20)")
    rounds = parser.parse_args().rounds
    for name in ("cnn", "resnet20"):
        compare(name, rounds)


def compare(network_name: str, rounds: int) -> None:
    """Compare the objectives on one network."""
    network = getattr(pytorch_certify, network_name)()
    shape = (1, 28, 28) if network_name == "cnn" else (3, 32, 32)
    optimizer = torch.optim.SGD(network.parameters(), 1e-4)
    settings = {"optimizer": optimizer, "scale": SIGMA, "seed": 0, "clip_values": (0, 1)}
    ours = PyTorchRandomizedSmoothing(network, nn.CrossEntropyLoss(), shape, 10, **settings)
    generator = np.random.default_rng(0)
    small = network_name == "cnn"
    key = jaxsmooth.key_of_seed(0)
    for name, steps, objective in (("gaussian", 10 if small else 2, losses.gaussian), ("macer", 5, losses.macer)):
        if name == "macer" and not small:
            continue  # half a minute a step
        x = generator.uniform(size=(steps * BATCH, *shape)).astype(np.float32)
        y = generator.integers(0, 10, len(x))

        def by_hand(name: str = name, x: np.ndarray = x, y: np.ndarray = y) -> None:
            network.train()
            for rows in generator.permutation(len(x)).reshape(-1, BATCH):
                images, labels = torch.tensor(x[rows]), torch.tensor(y[rows])
                optimizer.zero_grad()
                if name == "gaussian":
                    noisy = images + SIGMA * torch.randn_like(images)
                    loss = nn.functional.cross_entropy(network(noisy), labels)
                else:
                    loss = _macer(network, images, labels)
                loss.backward()
                optimizer.step()

        def fit(x: np.ndarray = x, y: np.ndarray = y, objective: object = objective) -> None:
            ours.fit(x, y, batch_size=BATCH, nb_epochs=1, objective=objective)

        def by_parts(x: np.ndarray = x, y: np.ndarray = y) -> None:
            network.train()
            for rows in generator.permutation(len(x)).reshape(-1, BATCH):
                noisy = jaxsmooth.add_noise(jaxsmooth.Gaussian(SIGMA), key, x[rows])
                optimizer.zero_grad()
                scores = network(torch.from_dlpack(noisy))
                value, weights = cross_entropy(scores.detach().numpy(), y[rows])
                float(value)
                scores.backward(torch.from_numpy(np.array(weights)))
                optimizer.step()

        contenders = {"ours": [fit], "plain": [by_hand]} | ({"parts": [by_parts]} if name == "gaussian" else {})
        taken = times(contenders, rounds)
        compared = "  ".join(
            f"{one}/plain {ratio(taken[one], taken['plain']):.2f}" for one in contenders if one != "plain"
        )
        print(f"{network_name:10} {name:10} {compared}  {milliseconds(taken)}", flush=True)


@jax.jit
@jax.value_and_grad
def cross_entropy(scores: jax.Array, y: jax.Array) -> jax.Array:
    """Return the mean cross-entropy."""
    return -jnp.take_along_axis(jax.nn.log_softmax(scores), y[:, None], axis=1).mean()


def _macer(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return MACER's loss as the authors compute it: all copies in one batch."""
    noise = SIGMA * torch.randn(16, *x.shape)

    class Copies(nn.Module):
        """Gives the transcription the scores of one call, copy by copy."""

        def __init__(self) -> None:
            super().__init__()
            self.scores = iter(network((x[None] + noise).flatten(0, 1)).unflatten(0, (16, -1)))

        def forward(self, noisy: torch.Tensor) -> torch.Tensor:
            """Return the scores of the next copy."""
            del noisy
            return next(self.scores)

    return authors.macer(Copies(), x, y, noise, SIGMA)


if __name__ == "__main__":
    main()
