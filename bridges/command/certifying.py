"""`jaxsmooth certify` and `jaxsmooth predict`: a run over a data set."""

import argparse
import json
import re
import secrets
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxsmooth
from bridges.command import data, models
from bridges.command.records import summary_of, write_records

_NOISES = ("gaussian", "laplace", "uniform", "lattice")


def add_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    """Add what certifying and predicting take."""
    votes = 100_000 if command == "certify" else 1000
    add_model(parser)
    parser.add_argument("log", metavar="LOG", type=Path, help="file of the log; LOG.votes beside it keeps the votes")
    add_noise(parser)
    group = parser.add_argument_group("statistics")
    group.add_argument("--n", "--N", type=int, default=votes, metavar="N", help=f"votes for an input ({votes:,})")
    group.add_argument("--alpha", type=float, default=0.001, help="failure probability for each input (0.001)")
    if command == "certify":
        group.add_argument("--n0", "--N0", type=int, default=100, metavar="N", help="votes that select a class (100)")
        group.add_argument("--radii", type=float, nargs="+", help="certify these radii, with as few votes as it takes")
        group.add_argument("--precision", type=float, help="or to within this fraction of the radius of N votes: 0.05")
        group.add_argument(
            "--bound", choices=["cohen", "runner_up"], default="cohen", help="of the probabilities (cohen)"
        )
    group.add_argument("--seed", type=int, help="of the votes; that of the log to go on from, else drawn and shown")
    group = parser.add_argument_group("the run")
    group.add_argument("--batch-size", "--batch", type=int, default=256, help="rows in one call of the model (256)")
    group.add_argument("--skip", type=int, default=1, help="take every SKIP-th input (1)")
    group.add_argument("--max", type=int, default=-1, help="take inputs of an index below this; -1 for all (-1)")
    group.add_argument("--no-check", action="store_true", help="do not test the model and the noise first")
    files = group.add_mutually_exclusive_group()
    files.add_argument("--resume", action="store_true", help="go on from LOG, and refuse to begin a new one")
    files.add_argument("--overwrite", action="store_true", help="begin again where LOG is there")
    add_output(group)
    group = parser.add_argument_group("several processes", "each takes its share of the inputs; start them all alike")
    group.add_argument("--distributed", action="store_true", help="find the others by Slurm, Open MPI or the cloud")
    group.add_argument("--coordinator", help="or by address:port of the first process, with the two numbers below")
    group.add_argument("--processes", type=int, help="how many there are")
    group.add_argument("--process", type=int, help="which of them this is, from 0")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add a model and data."""
    parser.add_argument("model", metavar="MODEL", help=models.HELP)
    parser.add_argument("data", metavar="DATA", help=data.HELP)
    parser.add_argument("--weights", type=Path, help="what `jaxsmooth train` saved, its path without an ending")
    parser.add_argument("--size", type=int, help="cut images of a folder to squares of this size, after resizing")
    parser.add_argument(
        "--untraced", action="store_true", help="MODEL is a plain function that JAX cannot trace, such as one of NumPy"
    )


def add_noise(parser: Any) -> None:
    """Add a noise."""
    group = parser.add_argument_group("noise")
    group.add_argument(
        "--sigma", "--scale", type=float, required=True, help="its scale, in the units of the inputs: for pixels in "
        "[0, 1], 0.25 is a quarter of the range. Of uniform noise the half-width",
    )  # fmt: skip
    group.add_argument("--noise", choices=_NOISES, default="gaussian", help="certifies L2, L1, L1, L2 radii (gaussian)")
    group.add_argument("--step", type=float, help="of a lattice, 1/255 = 0.00392156862745098 for 8-bit images")


def add_output(group: Any) -> None:
    """Add what is printed, and how."""
    group.add_argument("--records", type=Path, help="file for one record of each input, .csv or .json, as for pandas")
    group.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    group.add_argument("--quiet", action="store_true", help="show no progress")


def certify(arguments: argparse.Namespace) -> int:
    """Certify a data set: for each input a class and a radius that no perturbation below it can change.

    The flags are those of Cohen et al.'s certify.py, and longer names for them. LOG has its columns, and two of ours;
    LOG.votes keeps the votes. The same command goes on where it was ended, or says what has changed. With --radii or
    --precision, inputs get as few votes as their certificates take, often 10 to 1,000 times fewer.
    """
    _refuse_records(arguments)
    if arguments.radii is not None and arguments.precision is not None:
        raise ValueError("--radii and --precision are different modes: give one of them")
    job = _prepare(arguments)
    mode = _as_mode(arguments)

    def run(key: jax.Array) -> list[jaxsmooth.LogRow]:
        return jaxsmooth.certify_dataset(job.f, job.noise, key, job.data, arguments.log, mode=mode, **job.settings)

    rows, seed = _run(arguments, job, run)
    if rows:
        radii = np.arange(7) * arguments.sigma / 2 if arguments.radii is None else arguments.radii
        name = arguments.log.stem
        if arguments.json:
            _print_json(arguments, "certify", seed, summary_of(rows, radii))
        else:
            print(jaxsmooth.report_table({name: rows}, radii))
        if arguments.records is not None:
            write_records(arguments.records, {name: rows})
    return 0


def predict(arguments: argparse.Namespace) -> int:
    """Predict a data set by the smoothed classifier: for each input the class with most votes, or none.

    It abstains, as -1 in LOG, where a two-sided binomial test of level alpha cannot tell the class from the next one.
    The flags are those of Cohen et al.'s predict.py, and longer names for them. The same command goes on where it was
    ended.
    """
    _refuse_records(arguments)
    job = _prepare(arguments)

    def run(key: jax.Array) -> list[jaxsmooth.LogRow]:
        return jaxsmooth.predict_dataset(job.f, job.noise, key, job.data, arguments.log, n=arguments.n, **job.settings)

    rows, seed = _run(arguments, job, run)
    if rows:
        right = sum(row.correct for row in rows) / len(rows)
        abstained = sum(row.predict == jaxsmooth.ABSTAIN for row in rows) / len(rows)
        shares = {"right": right, "wrong": 1 - right - abstained, "abstained": abstained}
        if arguments.json:
            _print_json(arguments, "predict", seed, {"inputs": len(rows), **shares})
        else:
            print(f"{len(rows)} inputs: " + ", ".join(f"{name} {share:.3f}" for name, share in shares.items()))
        if arguments.records is not None:
            write_records(arguments.records, {arguments.log.stem: rows})
    return 0


def _print_json(arguments: argparse.Namespace, command: str, seed: int | None, found: dict[str, Any]) -> None:
    print(json.dumps({"command": command, "log": str(arguments.log), "seed": seed, **found}))


class _Job(NamedTuple):
    """What a run is of, checked and loaded."""

    f: Any
    noise: Any
    data: Any
    settings: dict[str, Any]


def _refuse_records(arguments: argparse.Namespace) -> None:
    if arguments.records is not None and arguments.records.suffix not in (".csv", ".json"):
        raise ValueError(f"--records must end in .csv or .json, got {arguments.records}")


def _prepare(arguments: argparse.Namespace) -> _Job:
    """Return the classifier, the noise, the data, and the settings that certifying and predicting share."""
    if arguments.distributed or arguments.coordinator:
        if arguments.overwrite:
            raise ValueError("--overwrite is for one process: several would remove each other's files")
        jax.distributed.initialize(arguments.coordinator, arguments.processes, arguments.process)
    noise = as_noise(arguments)
    f, compiled, loaded = load(arguments)
    settings = {"alpha": arguments.alpha, "batch_size": arguments.batch_size, "compiled": compiled}
    settings |= {"skip": arguments.skip, "most": None if arguments.max < 0 else arguments.max}
    settings |= {"check": not arguments.no_check, "progress": not arguments.quiet}
    return _Job(f, noise, loaded, settings)


def load(arguments: argparse.Namespace) -> tuple[Any, bool, Any]:
    """Return the classifier, whether it is compiled, and the data."""
    model = models.load_model(arguments.model)
    if arguments.untraced and model.framework != "jax":
        raise ValueError(f"--untraced is for plain functions, got a model of {model.framework}")
    loaded = data.load_data(arguments.data, model.framework, arguments.size)
    if arguments.weights is not None:
        again = data.load_data(arguments.data, model.framework, arguments.size)
        model = models.with_weights(model, data.first_inputs(again, 1)[0][0], arguments.weights)
    f, compiled = models.as_function(model)
    return f, compiled and not arguments.untraced, loaded


def as_noise(arguments: argparse.Namespace) -> jaxsmooth.Noise:
    """Return the noise of the flags."""
    if not (arguments.sigma > 0 and np.isfinite(arguments.sigma)):
        raise ValueError(f"--sigma must be positive and finite, got {arguments.sigma:g}")
    if (arguments.step is not None) != (arguments.noise == "lattice"):
        raise ValueError("--step belongs to --noise lattice, and --noise lattice needs it: 1/255 for 8-bit images")
    if arguments.noise == "lattice":
        return jaxsmooth.LatticeGaussian(scale=arguments.sigma, step=arguments.step)
    kinds = {"gaussian": jaxsmooth.Gaussian, "laplace": jaxsmooth.Laplace, "uniform": jaxsmooth.Uniform}
    return kinds[arguments.noise](scale=arguments.sigma)


def _as_mode(arguments: argparse.Namespace) -> jaxsmooth.Fixed | jaxsmooth.Grid | jaxsmooth.Within:
    """Return what the flags fix in advance."""
    votes: dict[str, Any] = {"n0": arguments.n0, "n": arguments.n}
    if arguments.radii is not None:
        if arguments.bound != "cohen":
            raise ValueError("--bound must be cohen with --radii")
        return jaxsmooth.Grid(arguments.radii, **votes)
    if arguments.precision is not None:
        return jaxsmooth.Within(arguments.precision, bound=arguments.bound, **votes)
    return jaxsmooth.Fixed(bound=arguments.bound, **votes)


def share_stores(log: Path) -> list[Path]:
    """Return the files of votes that several processes wrote for a log."""
    name = re.compile(re.escape(log.stem) + r"\.\d+-of-\d+" + re.escape(log.suffix) + r"\.votes")
    return sorted(found for found in log.parent.glob("*.votes") if name.fullmatch(found.name))


def _stores(log: Path) -> list[Path]:
    """Return all files of votes of a log."""
    return [path for path in [Path(f"{log}.votes"), *share_stores(log)] if path.exists()]


def _as_seed(arguments: argparse.Namespace) -> tuple[jax.Array, int | None]:
    """Return the key of the votes: of the seed, else that of the log to go on from, else a new one; and its seed."""
    files = _stores(arguments.log)
    if arguments.resume and not files:
        raise ValueError(f"--resume needs a run to go on from, and there is no {arguments.log}.votes")
    if arguments.seed is None and files:
        words = jaxsmooth.read_votes(files[0]).settings["key"]
        print(f"goes on from {arguments.log}: {_done(arguments.log)} inputs are there", file=sys.stderr)
        return jaxsmooth.key_of_seed(np.array(words, np.uint32)), int(words[0]) * 2**32 + int(words[1])
    if arguments.seed is None and jax.process_count() > 1:
        raise ValueError("--seed must be given to several processes: each would draw its own")
    # A certificate does not hold against someone who knew the noise when choosing the input or the model.
    seed = secrets.randbits(64) if arguments.seed is None else arguments.seed
    key = jaxsmooth.key_of_seed(seed)
    print(f"seed of the votes: {seed}", file=sys.stderr)
    return key, seed


def _done(log: Path) -> int:
    """Return how many inputs the files of a log have."""
    return sum(len(jaxsmooth.read_votes(path).idx) for path in _stores(log))


def _run(
    arguments: argparse.Namespace, job: _Job, run: Callable[[jax.Array], list[jaxsmooth.LogRow]]
) -> tuple[list[jaxsmooth.LogRow], int | None]:
    """Run, and say at an interrupt how far it is."""
    with _set_aside(arguments.log) if arguments.overwrite else _nothing():
        key, seed = _as_seed(arguments)
        try:
            return run(key), seed
        except KeyboardInterrupt:
            done = _done(arguments.log)
            total = data.count_of(job.data, arguments.skip, job.settings["most"])
            of_all = "" if total is None else f" of {total}"
            again = "the same command with --resume for --overwrite" if arguments.overwrite else "the same command"
            print(f"\njaxsmooth: ended: {done}{of_all} done, {again} goes on", file=sys.stderr)
            raise SystemExit(130) from None


@contextmanager
def _nothing() -> Any:
    yield


@contextmanager
def _set_aside(log: Path) -> Any:
    """Move the files of a log away, and back again if a new run is refused before it has votes."""
    found = [log, Path(f"{log}.votes"), Path(f"{log}.noise")]
    found += [Path(str(store).removesuffix(".votes")) for store in share_stores(log)] + share_stores(log)
    moved: dict[Path, Path] = {}
    for path in found:
        if path.exists():
            if path.is_dir():
                raise ValueError(f"LOG must be a file, got the folder {path}")
            aside = path.with_name(f"{path.name}.{time.time_ns()}")
            path.rename(aside)
            moved[path] = aside
    try:
        yield
    except BaseException:
        if not _stores(log):
            for path, aside in moved.items():
                aside.replace(path)
            raise
        _remove(moved)
        raise
    _remove(moved)


def _remove(moved: dict[Path, Path]) -> None:
    for aside in moved.values():
        aside.unlink(missing_ok=True)
