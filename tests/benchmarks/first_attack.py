"""How long an attack takes in a process that did nothing before: `python -m tests.benchmarks.first_attack`.

ART's HopSkipJump with 20 iterations on one image of 28x28 and the small CNN of PyTorch, on our class and on ART's, each
in processes of its own that take turns; medians. It asks for predictions of some twenty numbers of inputs. First the
attack that compiles whatever is compiled, then the same once more.
"""

import argparse
import contextlib
import io
import json
import subprocess
import sys
import time
import warnings

import numpy as np
import torch

SEED = 0  # of weights for which the attack finds images of another class to start from


def attack(who: str) -> list[float]:
    """Return the seconds of the first and of a second attack, and how many inputs they asked about."""
    from art.attacks.evasion import HopSkipJump

    from tests.benchmarks.frameworks import pytorch

    torch.manual_seed(SEED)
    it = pytorch("cnn 1x28x28")
    classifier, asked, taken = getattr(it, who), 0, list[float]()
    predict = classifier.predict

    def counted(x, *args, **kwargs):
        nonlocal asked
        asked += len(x)
        return predict(x, *args, **kwargs)

    classifier.predict = counted
    x = np.random.default_rng(0).uniform(size=(1, *it.shape)).astype(np.float32)
    for _ in range(2):
        np.random.seed(0)  # noqa: NPY002, the attack draws from it
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            HopSkipJump(classifier, max_iter=20, verbose=False).generate(x)
        taken.append(time.perf_counter() - start)
    return [*taken, asked]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="processes for each class (3)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.one:
        print(json.dumps(attack(options.one)))
        return
    found = {"ours": list[list[float]](), "art": list[list[float]]()}
    for _ in range(options.rounds):
        for who, results in found.items():
            command = [sys.executable, "-m", "tests.benchmarks.first_attack", "--one", who]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
    for who, results in found.items():
        first, second, asked = np.median(results, axis=0)
        print(f"{who:5} first {first:5.1f} s, second {second:5.1f} s, {asked:,.0f} inputs asked about in both")


if __name__ == "__main__":
    main()
