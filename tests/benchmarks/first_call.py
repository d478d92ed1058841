"""How long the first calls take in a process that did nothing before: `python -m tests.benchmarks.first_call`.

`certify` with 1,000 votes on 4 images of 28x28 and `predict` of them, with the small CNN of PyTorch, each twice: the
first call compiles whatever is compiled, the second is what any later one takes. Our class and ART's, each in processes
of its own that take turns; medians.
"""

import argparse
import contextlib
import importlib
import io
import json
import subprocess
import sys
import time
import warnings
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.benchmarks.pytorch_certify import NETWORKS

VOTES, IMAGES = 1000, 4
CALLS = ("certify", "predict")


def first_calls(who: str, method: str) -> list[float]:
    """Return the seconds of the first and of the second call of a method."""
    build, shape, _ = NETWORKS["cnn 1x28x28"]
    torch.manual_seed(0)
    settings: dict[str, Any] = {"loss": nn.CrossEntropyLoss(), "input_shape": shape, "nb_classes": 10, "scale": 0.25}
    module = "bridges.pytorch" if who == "ours" else "art.estimators.certification.randomized_smoothing"
    classifier = importlib.import_module(module).PyTorchRandomizedSmoothing(build().eval(), **settings)
    x = np.random.default_rng(0).uniform(size=(IMAGES, *shape)).astype(np.float32)
    arguments = (VOTES,) if method == "certify" else ()
    taken = list[float]()
    for _ in range(2):
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            getattr(classifier, method)(x, *arguments)
        taken.append(time.perf_counter() - start)
    return taken


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="processes for each class and method (3)")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.one:
        print(json.dumps(first_calls(*options.one)))
        return
    found = {(method, who): list[list[float]]() for method in CALLS for who in ("ours", "art")}
    for _ in range(options.rounds):
        for (method, who), results in found.items():
            command = [sys.executable, "-m", "tests.benchmarks.first_call", "--one", who, method]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
    for (method, who), results in found.items():
        first, second = np.median(results, axis=0)
        print(f"{method:8} {who:5} first {first:6.3f} s, second {second:6.3f} s")


if __name__ == "__main__":
    main()
