"""Compare the smoothing classes with the bare network, a plain loop and ART: `python -m tests.benchmarks`.

For each framework, network and task, interleaved in one process, medians over rounds and the spread between quartiles.
Ratios come first. They are medians of ratios within a round, since the machine may be faster in one than in the next:
ours/bare is what smoothing costs over the network on as many inputs, at its best batch size; loop/ours and art/ours are
how many times longer a loop in the style of Cohen et al.'s script, and ART's class, take. Then how time and memory grow
with votes, inputs, classes and the size of an input, and the mean votes of sequential tests beside a fixed number.
`--json FILE` keeps all of it.
"""

import argparse
import json
import platform
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks import growth, sequential_votes
from tests.benchmarks.frameworks import FRAMEWORKS, Contenders
from tests.benchmarks.timing import Runs, ratio, times

VOTES, SELECTION, IMAGES, BATCHES = 1000, 32, 4, (32, 128, 512, 2048)
COPIES, PREDICTED, EXPLAINED, TRAINED = 32, 128, 16, 512
SECONDS = 6.0  # of interleaved rounds for each row
LARGE = 4  # a ResNet-20 gets this many times fewer votes, images to predict and images to train on
TASKS = ("certify", "predict", "gradient", "fit")


def tasks(it: Contenders, parts: int) -> dict[str, Runs]:
    """Return, for each task, the runs of each contender; the fastest counts. A part of the votes and images is used."""
    votes, predicted = VOTES // parts, PREDICTED // parts
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(TRAINED // parts, *it.shape)).astype(np.float32)
    y = rng.integers(0, 10, len(x))
    rows = [b for b in BATCHES if b * int(np.prod(it.shape)) <= 2**20]

    def bare(run: Callable[[int, int], None], total: int) -> list[Callable[[], Any]]:
        return [lambda b=b: run(b, -(-total // b)) for b in rows if b <= total]

    def loop(images: int, n: int) -> list[Callable[[], Any]]:
        return [lambda b=b: [it.count(image, n, b) for image in x[:images]] for b in rows[:2]]

    found: dict[str, Runs] = {
        "certify": {
            "ours": [lambda: it.ours.certify(x[:IMAGES], votes)],
            "bare": bare(it.forward, (votes + SELECTION) * IMAGES),
            "loop": loop(IMAGES, votes + SELECTION),
        },
        "predict": {
            "ours": [lambda: it.ours.predict(x[:predicted])],
            "bare": bare(it.forward, COPIES * predicted),
            "loop": loop(predicted, COPIES),
        },
        "gradient": {
            "ours": [lambda: it.ours.loss_gradient(x[:EXPLAINED], y[:EXPLAINED], sampling=True)],
            "bare": bare(it.step, COPIES * EXPLAINED),
        },
        "fit": {
            "ours": [lambda: (it.ours.fit(x, y, batch_size=128, nb_epochs=1), it.wait())],
            "bare": [lambda: it.epoch(x, y, 128)],
        },
    }
    if it.art is not None:
        onehot = np.eye(10, dtype=np.float32)[y]
        found["certify"]["art"] = [lambda b=b: it.art.certify(x[:IMAGES], votes, batch_size=b) for b in rows[:2]]
        found["predict"]["art"] = [lambda: it.art.predict(x[:predicted])]
        labels = onehot if "PyTorch" in type(it.art).__name__ else y
        found["gradient"]["art"] = [lambda: it.art.loss_gradient(x[:EXPLAINED], onehot[:EXPLAINED], sampling=True)]
        found["fit"]["art"] = [lambda: it.art.fit(x, labels, batch_size=128, nb_epochs=1)]
    return found


def measure(framework: str, network: str, wanted: str, rounds: int) -> list[dict[str, Any]]:
    """Print and return one row for each task of a network."""
    table: list[dict[str, Any]] = []
    parts = LARGE if "resnet" in network else 1
    if not any(wanted in f"{framework} {network} {task}" for task in TASKS):
        return []
    for task, runs in tasks(FRAMEWORKS[framework][0](network), parts).items():
        name = f"{framework} {network} {task}"
        if wanted not in name:
            continue
        taken = times(runs, rounds, SECONDS)
        row: dict[str, Any] = {"framework": framework, "network": network, "task": task}
        row |= {who: _summary(seconds) for who, seconds in taken.items()}
        row["ours/bare"] = ratio(taken["ours"], taken["bare"])
        row |= {f"{who}/ours": ratio(taken[who], taken["ours"]) for who in ("loop", "art") if who in taken}
        names = ("ours/bare", "loop/ours", "art/ours")
        ratios = "".join(f"{row[name]:10.2f}" if name in row else f"{'-':>10}" for name in names)
        took = f"{row['ours']['seconds'] * 1000:9.0f} ± {row['ours']['spread'] * 1000:.0f} ms"
        print(f"{framework:11} {network:18} {task:9}{ratios} {took}", flush=True)
        table.append(row)
    return table


def _summary(seconds: np.ndarray) -> dict[str, float]:
    low, middle, high = np.quantile(seconds, (0.25, 0.5, 0.75))
    return {"seconds": float(middle), "spread": float(high - low), "rounds": len(seconds)}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds, at least (9)")
    parser.add_argument("--only", default="", help="rows whose name has this in it, such as 'torch mlp'")
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    machine = growth.machine()
    print(f"{machine}, Python {platform.python_version()}, at least {options.rounds} rounds")
    print(f"{'':40}{'ours/bare':>10}{'loop/ours':>10}{'art/ours':>10} {'ours':>9}")
    found: dict[str, Any] = {"machine": machine, "rows": []}
    for framework, (_, networks) in FRAMEWORKS.items():
        for network in networks:
            found["rows"] += measure(framework, network, options.only, options.rounds)
    if options.only in "growth":
        found["growth"] = growth.measure(options.rounds)
    if options.only in "sequential votes":
        found["sequential votes"] = sequential_votes.measure()
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
