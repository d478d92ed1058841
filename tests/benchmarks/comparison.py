"""Our classes against the bare network, a plain loop and ART, row by row."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.benchmarks.frameworks import FRAMEWORKS, Contenders
from tests.benchmarks.timing import Runs, ratio, times

VOTES, SELECTION, IMAGES, BATCHES = 1000, 32, 4, (32, 128, 512, 2048)
COPIES, PREDICTED, EXPLAINED, TRAINED = 32, 128, 16, 512
SECONDS = 6.0  # of interleaved rounds for each row
LARGE = 4  # a ResNet-20 gets this many times fewer votes, images to predict and images to train on
TASKS = ("certify", "predict", "gradient", "fit")
RATIOS = ("ours/bare", "loop/ours", "art/ours")


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


def compare(wanted: str, rounds: int) -> list[dict[str, Any]]:
    """Print and return the rows whose name has this in it."""
    _print_heading(10)
    return [
        row
        for framework, (_, networks) in FRAMEWORKS.items()
        for network in networks
        for row in measure(framework, network, wanted, rounds)
    ]


def ranges(tables: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the rows of several processes as one: medians of the ratios and of our seconds, the least and the most."""
    rows = list[dict[str, Any]]()
    for measured in zip(*tables, strict=True):
        row: dict[str, Any] = {name: measured[0][name] for name in ("framework", "network", "task")}
        row["ours"] = _range([one["ours"]["seconds"] for one in measured])
        row |= {name: _range([one[name] for one in measured]) for name in RATIOS if name in measured[0]}
        rows.append(row)
    return rows


def _range(figures: list[float]) -> dict[str, float]:
    return {"median": float(np.median(figures)), "least": min(figures), "most": max(figures)}


def print_ranges(rows: list[dict[str, Any]]) -> None:
    """Print what `ranges` returns."""
    _print_heading(18)
    for row in rows:
        cells = [_label(row)]
        for name in RATIOS:
            if name in row:
                cells.append("{median:7.2f} {least:5.2f}-{most:.2f}".format(**row[name]).rjust(18))
            else:
                cells.append(f"{'-':>18}")
        print("".join(cells), f"{row['ours']['median'] * 1000:6.0f} ms", flush=True)


def _print_heading(width: int) -> None:
    print("".join([" " * 40, *(f"{name:>{width}}" for name in RATIOS), f"{'ours':>10}"]), flush=True)


def _label(row: dict[str, Any]) -> str:
    return f"{row['framework']:11} {row['network']:18} {row['task']:9}"


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
        ratios = "".join(f"{row[name]:10.2f}" if name in row else f"{'-':>10}" for name in RATIOS)
        took = f"{row['ours']['seconds'] * 1000:9.0f} ± {row['ours']['spread'] * 1000:.0f} ms"
        print(f"{_label(row)}{ratios} {took}", flush=True)
        table.append(row)
    return table


def _summary(seconds: np.ndarray) -> dict[str, float]:
    low, middle, high = np.quantile(seconds, (0.25, 0.5, 0.75))
    return {"seconds": float(middle), "spread": float(high - low), "rounds": len(seconds)}
