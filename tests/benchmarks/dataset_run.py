"""What a run over a data set adds to counting its votes: `python -m tests.benchmarks.dataset_run`.

64 inputs of 32x32x3 for a ResNet-20 with 100 selection and 1,000 estimation votes each, interleaved in one process:

- counted: the same votes by two calls of `count_votes`.
- run: `certify_dataset`, log and store of votes included, its files new each time.
"""

import argparse
import tempfile
from pathlib import Path

import jax
import numpy as np

import jaxsmooth
from tests.benchmarks.models import build
from tests.benchmarks.timing import milliseconds, ratio, times

INPUTS, N0, N, BATCH = 64, 100, 1000, 64


def main() -> None:
    """Print the medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="resnet-20 32x32x3")
    rounds, (f, event, _) = parser.parse_args().rounds, build(parser.parse_args().model)
    x = np.random.default_rng(0).uniform(size=(INPUTS, *event)).astype(np.float32)
    data, noise, key = (x, np.zeros(INPUTS, int)), jaxsmooth.Gaussian(0.25), jax.random.key(0)
    selection_key, estimation_key = jaxsmooth.decision_keys(key)

    def counted():
        for stream, n in ((selection_key, N0), (estimation_key, N)):
            jax.block_until_ready(jaxsmooth.count_votes(f, noise, stream, x, n=n, batch_size=BATCH))

    def run():
        path = Path(tempfile.mkdtemp()) / "run.tsv"
        jaxsmooth.certify_dataset(f, noise, key, data, path, n0=N0, n=N, batch_size=BATCH, verbose=False)

    taken = times({"counted": [counted], "run": [run]}, rounds)
    print(f"{milliseconds(taken)}, run over counted {ratio(taken['run'], taken['counted']):.3f}")


if __name__ == "__main__":
    main()
