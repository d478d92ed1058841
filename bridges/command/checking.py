"""`jaxsmooth check`: whether a model and a noise are what a certificate assumes, and how long a run will take."""

import argparse
import json
import statistics
import time
from typing import Any

import jax
import numpy as np

import jaxsmooth
from bridges.command import data
from bridges.command.certifying import add_model, add_noise, as_noise, load

_INPUTS = 64
_ROUNDS = 5


def add_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    """Add what checking takes."""
    del command
    add_model(parser)
    add_noise(parser)
    parser.add_argument("--n", "--N", type=int, default=100_000, metavar="N", help="votes of the run to plan (100,000)")
    parser.add_argument("--inputs", type=int, default=500, help="inputs of the run to plan (500)")
    parser.add_argument("--batch-size", "--batch", type=int, default=256, help="rows in one call of the model (256)")
    parser.add_argument("--picture", help="file for a look at four noisy inputs with their votes (needs matplotlib)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise that is looked at (0)")
    parser.add_argument("--json", action="store_true", help="print the findings as one JSON object")


def check(arguments: argparse.Namespace) -> int:
    """Check a model and a noise before a run: what a certificate assumes, and what the run will take.

    A certificate assumes that the scores of a row depend on that row alone (batch normalisation by the batch, dropout
    that is left on and hidden states break it), and that the noise has the named distribution. This tests both, shows
    the range of the data beside the noise, the accuracy on 64 inputs without and under noise, and the hours that a run
    takes at the speed measured here. It exits with status 1 where a test fails.
    """
    if arguments.inputs < 1 or arguments.n < 1:
        raise ValueError("--inputs and --n must be at least 1")
    noise = as_noise(arguments)
    f, compiled, loaded = load(arguments)
    if isinstance(f, jaxsmooth.RandomClassifier):
        raise ValueError("MODEL must be a function of its inputs to be checked, got a RandomClassifier")
    x, labels = data.some_inputs(loaded, _INPUTS)
    x = np.asarray(x)
    run = jax.jit(lambda rows: f(rows)) if compiled else f
    scores = np.asarray(run(jax.numpy.asarray(x)))
    classes = int(scores.shape[-1])
    if max(labels) >= classes:
        raise ValueError(f"DATA must have labels below {classes}, the number of MODEL's classes, got {max(labels)}")
    key = jaxsmooth.key_of_seed(arguments.seed)
    found: dict[str, Any] = {"command": "check", "shape": list(x.shape[1:]), "dtype": str(x.dtype)}
    found |= {"least": float(x.min()), "largest": float(x.max()), "scale": float(np.asarray(noise.scale))}
    try:
        jaxsmooth.check_classifier(f, x, noise=noise)
        found["classifier"] = "passed"
    except ValueError as error:
        found["classifier"] = str(error)
    report = jaxsmooth.noise_report(noise, key, x[:1])
    found["noise"] = "passed" if not report.failed else f"failed {', '.join(report.failed)}"
    found["classes"] = classes
    noisy = jaxsmooth.add_noise(noise, key, x)
    found["accuracy"] = _accuracy(scores, labels)
    found["accuracy_under_noise"] = _accuracy(np.asarray(run(noisy)), labels)
    found |= _speed(f, noise, key, x[:1], arguments.batch_size, compiled)
    found["hours"] = arguments.inputs * arguments.n / found["samples_per_second"] / 3600
    if arguments.picture:
        names = getattr(loaded, "classes", None)
        if names is not None and len(names) != found["classes"]:  # `load` has said so
            names = None
        shown = data.spread(len(x), 4)
        y = np.array(labels)[shown]
        jaxsmooth.draw_votes(f, noise, key, x[shown], arguments.picture, y=y, names=names, compiled=compiled)
    print(json.dumps(found) if arguments.json else _in_words(found, arguments, len(x)))
    return 0 if found["classifier"] == found["noise"] == "passed" else 1


def _accuracy(scores: np.ndarray, labels: list[int]) -> float:
    # Scores that are not finite are no vote.
    valid = np.isfinite(scores).all(axis=-1)
    return float((valid & (scores.argmax(axis=-1) == np.array(labels))).mean())


def _speed(f: Any, noise: Any, key: Any, x: np.ndarray, batch_size: int, compiled: bool) -> dict[str, float]:
    """Return samples per second of counting votes, the median of some rounds after one that compiles."""
    count: Any = jaxsmooth.count_votes if compiled else jaxsmooth.stream_votes
    n = 2 * batch_size
    seconds: list[float] = []
    for _ in range(_ROUNDS + 1):
        began = time.perf_counter()
        jax.block_until_ready(count(f, noise, key, x, n=n, batch_size=batch_size))
        seconds.append(time.perf_counter() - began)
    return {"batch_size": batch_size, "samples_per_second": n / statistics.median(seconds[1:])}


def _in_words(found: dict[str, Any], arguments: argparse.Namespace, inputs: int) -> str:
    span = found["largest"] - found["least"]
    hours = found["hours"]
    took = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
    return "\n".join(
        [
            f"inputs      {tuple(found['shape'])} {found['dtype']}, values from {found['least']:g} to "
            f"{found['largest']:g}",
            f"noise       scale {found['scale']:g}, {found['scale'] / span:.3g} of that range"
            if span
            else f"noise       scale {found['scale']:g}",
            f"classifier  {found['classes']} classes; rows depend on themselves alone: {found['classifier']}",
            f"noise test  {found['noise']}",
            f"accuracy    {found['accuracy']:.3f} of {inputs} inputs, {found['accuracy_under_noise']:.3f} under noise",
            f"speed       {found['samples_per_second']:,.0f} samples a second in batches of {found['batch_size']}: "
            f"{arguments.inputs:,} inputs of {arguments.n:,} votes take {took}",
        ]
    )
