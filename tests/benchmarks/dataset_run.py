"""What a run over a data set adds to counting its votes: `python -m tests.benchmarks.dataset_run`.

16 inputs of 32x32x3 for a ResNet-20 with 100 selection and 1,000 estimation votes each, interleaved, in several
processes in turn:

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
from tests.benchmarks.timing import in_processes, milliseconds, ratio, times

INPUTS, N0, N, BATCH = 16, 100, 1000, 64


def main() -> None:
    """Print the medians and the ratio of each process, and the median and the range of the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="in each process (3)")
    parser.add_argument("--processes", type=int, default=5, help="new processes, one after the other (5)")
    parser.add_argument("--model", default="resnet-20 32x32x3")
    options = parser.parse_args()
    found = in_processes(options.processes, measure, options.model, options.rounds)
    print(f"run over counted {np.median(found):.3f}, {min(found):.3f} to {max(found):.3f} in {len(found)} processes")


def measure(model: str, rounds: int) -> float:
    """Print the medians of one process and return their ratio."""
    f, event, _ = build(model)
    x = np.random.default_rng(0).uniform(size=(INPUTS, *event)).astype(np.float32)
    data, noise, key = (x, np.zeros(INPUTS, int)), jaxsmooth.Gaussian(0.25), jax.random.key(0)
    selection_key, estimation_key = jaxsmooth.decision_keys(key)

    def counted():
        for stream, n in ((selection_key, N0), (estimation_key, N)):
            jax.block_until_ready(jaxsmooth.count_votes(f, noise, stream, x, n=n, batch_size=BATCH))

    def run():
        path = Path(tempfile.mkdtemp()) / "run.tsv"
        mode = jaxsmooth.Fixed(n0=N0, n=N)
        jaxsmooth.certify_dataset(f, noise, key, data, path, mode=mode, batch_size=BATCH, progress=False)

    taken = times({"counted": [counted], "run": [run]}, rounds)
    found = ratio(taken["run"], taken["counted"])
    print(f"{milliseconds(taken)}, run over counted {found:.3f}", flush=True)
    return found


if __name__ == "__main__":
    main()
