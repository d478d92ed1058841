"""`jaxsmooth train`: a model under noise, by an objective of `jaxsmooth.losses`."""

import argparse
import functools
import inspect
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bridges.command import data, models, weights
from bridges.command.certifying import add_model
from jaxsmooth import losses
from jaxsmooth.progress import progress_bar

_OBJECTIVES = ("gaussian", "stability", "consistency", "smoothadv", "macer", "smoothmix")


def add_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    """Add what training takes."""
    del command
    add_model(parser)
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="path of the weights, without an ending")
    parser.add_argument("--sigma", "--scale", type=float, required=True, help="noise, in the units of the inputs")
    parser.add_argument("--objective", choices=_OBJECTIVES, default="gaussian", help="what is trained (gaussian)")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the objective, as m=4")
    parser.add_argument("--range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="of the inputs, for attacks")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the data (10)")
    parser.add_argument("--batch-size", "--batch", type=int, default=128, help="inputs in one step (128)")
    parser.add_argument("--optimizer", choices=("adam", "sgd"), default="adam", help="sgd has momentum 0.9 (adam)")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate at first (0.001)")
    parser.add_argument("--weight-decay", type=float, default=0.0, help="of the optimizer (0)")
    parser.add_argument("--schedule", choices=("constant", "cosine", "steps"), default="constant", help="of the rate")
    parser.add_argument("--step-epochs", type=int, default=50, help="epochs until 'steps' divides the rate by ten (50)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (0)")
    files = parser.add_mutually_exclusive_group()
    files.add_argument("--resume", action="store_true", help="go on with the epochs of OUTPUT that are left")
    files.add_argument("--overwrite", action="store_true", help="begin again where OUTPUT is there")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def train(arguments: argparse.Namespace) -> int:
    """Train a model of PyTorch, Keras or flax under noise, and save its weights for certify and predict.

    By default every batch gets fresh noise and the cross-entropy (Cohen et al. 2019). --objective chooses another
    objective of jaxsmooth.losses, whose settings --set gives by name. Training goes on from --weights, if given. The
    weights are saved after each epoch. After an interrupt --resume goes on with the epochs that are left, in other
    noise than that of the epochs before.
    """
    if not arguments.epochs >= 1:
        raise ValueError(f"--epochs must be at least 1, got {arguments.epochs}")
    _refuse_flags(arguments)
    objective = _as_objective(arguments)
    model = models.load_model(arguments.model)
    loaded = data.load_data(arguments.data, model.framework, arguments.size)
    x, y = data.as_arrays(loaded)
    told = {**_told(arguments), "data digest": weights.digest_of_arrays(x, y)}
    start = _first_epoch(arguments, told)
    of_units = weights.doubts(np.asarray(x), arguments.sigma, arguments.model, arguments.weights)
    for doubt in [*data.doubts_of_folders(loaded), *of_units]:
        print(f"jaxsmooth: note: {doubt}", file=sys.stderr)
    optimizer = models.Optimizer(arguments.optimizer, arguments.lr, arguments.weight_decay)
    bounds = None if arguments.range is None else tuple(arguments.range)
    classifier = models.trainable(model, np.asarray(x[0]), arguments.sigma, optimizer, arguments.seed + start, bounds)
    models.refuse_probabilities(model, np.asarray(x[:8]))
    before_it = arguments.output if start else arguments.weights
    if before_it is not None:
        classifier.load(before_it.name, before_it.parent)
    before = classifier.compute_loss(x, y, reduction="mean")
    done = start
    try:
        with progress_bar("epochs", arguments.epochs, not arguments.quiet) as advance:
            advance(done)
            for epoch in range(start, arguments.epochs):
                models.set_rate(classifier, rate_of(arguments, epoch))
                classifier.fit(x, y, batch_size=arguments.batch_size, nb_epochs=1, objective=objective)
                state = {**told, "done": epoch + 1, "values": weights.range_of(x)}
                weights.save_epoch(classifier, arguments.output, state)
                done = epoch + 1
                advance(done)
    except KeyboardInterrupt:
        if done == start:
            raise
        print(
            f"\njaxsmooth: ended: {done} of {arguments.epochs} epochs done, the same command with --resume goes on",
            file=sys.stderr,
        )
        return 130
    after = classifier.compute_loss(x, y, reduction="mean")
    if arguments.json:
        found = {"command": "train", "weights": str(arguments.output), "epochs": arguments.epochs}
        print(json.dumps({**found, "loss_before": float(before), "loss_after": float(after)}))
    else:
        print(f"loss without noise from {before:.3f} to {after:.3f}, weights in {arguments.output}.*")
    return 0


def _as_objective(arguments: argparse.Namespace) -> Any:
    """Return the objective of the flags, with its settings."""
    function = getattr(losses, arguments.objective)
    settings = settings_of(arguments.set)
    parameters = inspect.signature(function).parameters.values()
    # The last one is that of --range.
    known = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY and each.name != "clip_values"]
    unknown = [name for name in settings if name not in known]
    if unknown:
        has = f"which has {', '.join(known)}" if known else "which has none"
        raise ValueError(f"--set must be of settings of {arguments.objective}, {has}: got {', '.join(unknown)}")
    return functools.partial(function, **settings)


def _refuse_flags(arguments: argparse.Namespace) -> None:
    """Refuse numbers that no training can be done with."""
    for name in ("sigma", "lr"):
        value = getattr(arguments, name)
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"--{name} must be positive and finite, got {value:g}")
    for name in ("batch_size", "step_epochs"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(arguments, name)}")
    if not (arguments.weight_decay >= 0 and math.isfinite(arguments.weight_decay)):
        raise ValueError(f"--weight-decay must be at least 0 and finite, got {arguments.weight_decay:g}")
    if arguments.range is not None and not arguments.range[0] < arguments.range[1]:
        raise ValueError(f"--range must be LOW and then HIGH, got {arguments.range[0]:g} {arguments.range[1]:g}")


def _told(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what another command must have in common to go on."""
    names = ("model", "data", "size", "sigma", "objective", "set", "range", "optimizer", "lr", "weight_decay")
    return {
        name: getattr(arguments, name) for name in (*names, "schedule", "step_epochs", "batch_size", "seed", "epochs")
    }


def _first_epoch(arguments: argparse.Namespace, told: dict[str, Any]) -> int:
    """Return the epoch to begin with, after files of an earlier training were looked at."""
    output = arguments.output
    if not arguments.resume:
        made = weights.weight_files(output)
        if made and not arguments.overwrite:
            there = next(iter(made.values()))
            raise ValueError(f"OUTPUT is there, {there}: --resume goes on with it, --overwrite begins again")
        return 0
    if arguments.weights is not None:
        raise ValueError("--weights begins a training, and --resume goes on with one: give one of them")
    found = weights.read_state(output)
    if found is None:
        raise ValueError(f"--resume needs a training to go on with, and there is no {weights.state_path(output)}")
    # More epochs than were planned go on as if they had been, unless the rates depend on their number.
    more = arguments.schedule != "cosine" and arguments.epochs > found.get("epochs", arguments.epochs)
    changed = [name for name, value in told.items() if found.get(name) != value and not (more and name == "epochs")]
    if changed:
        said = ", ".join("other data" if name == "data digest" else f"{name} {found.get(name)}" for name in changed)
        raise ValueError(f"--resume needs the settings of {output}, which has {said}")
    if not weights.are_those_of(output, found):
        raise ValueError(f"--resume needs the weights of epoch {found['done']}, and {output}.* are others: --overwrite")
    if found["done"] >= arguments.epochs:
        raise ValueError(f"--resume has nothing to do: all {arguments.epochs} epochs of {output} are done")
    return int(found["done"])


def settings_of(words: list[str]) -> dict[str, Any]:
    """Return settings from words such as `m=4`, `epsilon=0.5` or `attack=ddn`.

    Example:
        >>> settings_of(["m=4", "epsilon=0.5", "attack=ddn"])
        {'m': 4, 'epsilon': 0.5, 'attack': 'ddn'}
    """
    settings: dict[str, Any] = {}
    for word in words:
        name, separator, text = word.partition("=")
        if not separator:
            raise ValueError(f"--set takes NAME=VALUE, got {word}")
        try:
            number = float(text)
        except ValueError:
            settings[name] = text
        else:
            settings[name] = int(number) if text.lstrip("-").isdigit() else number
    return settings


def rate_of(arguments: argparse.Namespace, epoch: int) -> float:
    """Return the learning rate of an epoch."""
    if arguments.schedule == "cosine":
        return arguments.lr * (1 + math.cos(math.pi * epoch / arguments.epochs)) / 2
    return arguments.lr * 0.1 ** (epoch // arguments.step_epochs) if arguments.schedule == "steps" else arguments.lr
