"""`jaxsmooth certify` and `jaxsmooth predict`: a run over a data set."""

import argparse
import json
import secrets
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxsmooth
from bridges.command import data, models
from bridges.command.records import refuse_records, summary_of, write_records
from bridges.command.reporting import name_of, radii_of_noise
from bridges.command.weights import doubts
from jaxsmooth.datasets import count_items
from jaxsmooth.locks import FileLock
from jaxsmooth.logs import COLUMNS
from jaxsmooth.share_files import list_share_stores, list_stores
from jaxsmooth.stores import OtherRunError

_COLUMNS = "\t".join(COLUMNS).encode()
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
        group.add_argument(
            "--precision",
            type=float,
            help="certify a radius within this fraction, say 0.05, of that of N votes",
        )
        group.add_argument(
            "--bound", choices=["cohen", "runner_up"], default="cohen", help="how probabilities are bounded (cohen)"
        )
    group.add_argument("--seed", type=int, help="of the votes; that of the log to go on from, else drawn and shown")
    group = parser.add_argument_group("the run")
    group.add_argument("--batch-size", "--batch", type=int, default=256, help="rows in one call of the model (256)")
    group.add_argument("--skip", type=int, default=1, help="take every SKIP-th input (1)")
    group.add_argument(
        "--max",
        type=int,
        default=-1,
        help="take inputs of an index below this; -1 for all (-1); of sorted data take every SKIP-th",
    )
    group.add_argument("--no-check", action="store_true", help="do not test the model and the noise first")
    files = group.add_mutually_exclusive_group()
    files.add_argument("--resume", action="store_true", help="go on from LOG, and refuse to begin a new one")
    files.add_argument("--overwrite", action="store_true", help="a new run takes the place of LOG, once it is finished")
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
    group.add_argument(
        "--noise",
        choices=_NOISES,
        default="gaussian",
        help="laplace and uniform certify L1 radii, the others L2 (gaussian)",
    )
    group.add_argument("--step", type=as_number, help="of a lattice, 1/255 for 8-bit images")


def add_output(group: Any) -> None:
    """Add what is printed, and how."""
    group.add_argument("--records", type=Path, help="file for one record of each input, .csv or .json, as for pandas")
    group.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    group.add_argument("--quiet", action="store_true", help="show no progress")


def certify(arguments: argparse.Namespace) -> int:
    """Certify a data set: each input gets a class and a radius within which the smoothed classifier keeps it.

    That holds for each input with probability at least 1 - alpha over the noise. The flags are those of Cohen et al.'s
    certify.py, and longer names for them. LOG has its columns, and two of ours; LOG.votes keeps the votes. The same
    command goes on where it was ended, or says what has changed. With --radii or --precision, inputs get as few votes
    as their certificates take, often 10 to 1,500 times fewer than 100,000.
    """
    _refuse_files(arguments)
    if arguments.radii is not None and arguments.precision is not None:
        raise ValueError("--radii and --precision are different modes: give one of them")
    job = _prepare(arguments)
    mode = _as_mode(arguments)

    def run(key: jax.Array, log: Path) -> list[jaxsmooth.LogRow]:
        return jaxsmooth.certify_dataset(job.f, job.noise, key, job.data, log, mode=mode, **job.settings)

    rows, seed = _run(arguments, job, run)
    if rows:
        radii = radii_of_noise(arguments.sigma) if arguments.radii is None else arguments.radii
        name = name_of(arguments.log)
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
    _refuse_files(arguments)
    job = _prepare(arguments)

    def run(key: jax.Array, log: Path) -> list[jaxsmooth.LogRow]:
        return jaxsmooth.predict_dataset(job.f, job.noise, key, job.data, log, n=arguments.n, **job.settings)

    rows, seed = _run(arguments, job, run)
    if rows:
        right = sum(row.correct for row in rows)
        abstained = sum(row.predict == jaxsmooth.ABSTAIN for row in rows)
        counts = {"right": right, "wrong": len(rows) - right - abstained, "abstained": abstained}
        shares = {name: count / len(rows) for name, count in counts.items()}
        if arguments.json:
            _print_json(arguments, "predict", seed, {"inputs": len(rows), **shares})
        else:
            print(f"{len(rows)} inputs: " + ", ".join(f"{name} {share:.3f}" for name, share in shares.items()))
        if arguments.records is not None:
            write_records(arguments.records, {name_of(arguments.log): rows})
    return 0


def _print_json(arguments: argparse.Namespace, command: str, seed: int | None, found: dict[str, Any]) -> None:
    print(json.dumps({"command": command, "log": str(arguments.log), "seed": seed, **found}))


class _Job(NamedTuple):
    """What a run is of, checked and loaded."""

    f: Any
    noise: Any
    data: Any
    settings: dict[str, Any]


def _refuse_files(arguments: argparse.Namespace) -> None:
    """Refuse a log or records that would replace what the command reads."""
    read = [arguments.model, arguments.data, *([] if arguments.weights is None else [arguments.weights])]
    refuse_records(arguments.records, [*read, arguments.log])
    if any(Path(name).resolve() == arguments.log.resolve() for name in read):
        raise ValueError(f"LOG must be a file of its own, got {arguments.log}")


def _prepare(arguments: argparse.Namespace) -> _Job:
    """Return the classifier, the noise, the data, and the settings that certifying and predicting share."""
    if arguments.max < -1:
        raise ValueError(f"--max must be at least 0, or -1 for all inputs, got {arguments.max}")
    if not arguments.coordinator and (arguments.processes is not None or arguments.process is not None):
        raise ValueError("--processes and --process need --coordinator: without it this process would take all inputs")
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
    shown = loaded
    if data.is_read_once(loaded):
        shown = data.load_data(arguments.data, model.framework, arguments.size)
        if shown is loaded and hasattr(loaded, "__next__"):
            raise ValueError("DATA must be new each time that its factory is called, got the same iterator twice")
        # `loaded` itself is not looked at: nothing gives back what is taken from it.
        shown = data.refuse_others(shown, data.load_data(arguments.data, model.framework, arguments.size))
    x, _ = data.some_inputs(shown, 8)
    models.refuse_integers(x)
    of_units = doubts(x, arguments.sigma, arguments.model, arguments.weights)
    for doubt in [*data.doubts_of_folders(loaded), *of_units]:
        print(f"jaxsmooth: note: {doubt}", file=sys.stderr)
    if arguments.weights is not None:
        model = models.with_weights(model, x[0], arguments.weights)
    f, compiled = models.as_function(model)
    compiled = compiled and not arguments.untraced
    if not isinstance(f, jaxsmooth.RandomClassifier):
        classes = models.scores_shape(f, compiled, x[:1])[-1]
        folders = len(getattr(loaded, "classes", range(classes)))
        if folders != classes:  # their order gives the labels
            print(f"jaxsmooth: note: DATA has {folders} folders, and MODEL {classes} classes", file=sys.stderr)
    return f, compiled, loaded


def as_number(text: str) -> float:
    """Return a number, which may be a fraction such as 1/255."""
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise argparse.ArgumentTypeError(f"must be a number or a fraction such as 1/255, got {text}") from None


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


def _as_seed(arguments: argparse.Namespace, log: Path) -> tuple[jax.Array, int | None]:
    """Return the key of the votes: of the seed, else that of the log to go on from, else a new one; and its seed."""
    files = list_stores(log)
    if arguments.resume and not files:
        raise ValueError(f"--resume needs a run to go on from, and there is no {log}.votes")
    if arguments.seed is None and files:
        words = jaxsmooth.read_votes(files[0]).settings["key"]
        print(f"{log} has {_done(log)} inputs already", file=sys.stderr)
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
    return len({int(idx) for path in list_stores(log) for idx in jaxsmooth.read_votes(path).idx})


def _run(
    arguments: argparse.Namespace, job: _Job, run: Callable[[jax.Array, Path], list[jaxsmooth.LogRow]]
) -> tuple[list[jaxsmooth.LogRow], int | None]:
    """Run, and say at an interrupt how far it is.

    What is to be overwritten stays until the new run is finished. The new one is beside it until then.
    """
    log: Path = arguments.log
    if arguments.overwrite:
        log = log.resolve().with_name(f"{log.name}.overwriting")
        _refuse_other_file(arguments.log)
    key, seed = _as_seed(arguments, log)
    try:
        rows = run(key, log)
    except OtherRunError as error:
        if not arguments.overwrite:
            raise
        # What an earlier --overwrite left. The data may be read already, so another call begins again.
        lock = FileLock(Path(f"{log}.votes"))
        for ending in ("", ".noise", ".votes"):
            Path(f"{log}{ending}").unlink(missing_ok=True)
        lock.release()
        raise ValueError(f"what an ended --overwrite of another run left is removed: call again ({error})") from None
    except KeyboardInterrupt:
        total = count_items(job.data, arguments.skip, job.settings["most"], (0, 1))
        of_all = "" if total is None else f" of {total}"
        print(f"\njaxsmooth: ended: {_done(log)}{of_all} done, the same command goes on", file=sys.stderr)
        raise SystemExit(130) from None
    if arguments.overwrite:
        _replace(arguments.log.resolve(), log, rows)
    if not rows:
        print("no input was asked for", file=sys.stderr)
    return rows, seed


def _refuse_other_file(log: Path) -> None:
    """Refuse to overwrite what is no log."""
    if log.is_symlink():  # its votes may be beside the link, or beside the file
        raise ValueError(f"LOG must be no link to be overwritten: give the file that {log} leads to, {log.resolve()}")
    if not log.exists():
        return
    first = b""
    if log.is_file():
        with log.open("rb") as file:
            first = file.read(len(_COLUMNS))
    if first != _COLUMNS:
        raise ValueError(f"LOG must be a log to be overwritten, got {log}")


def _replace(old: Path, new: Path, rows: list[jaxsmooth.LogRow]) -> None:
    """Put a finished run in the place of another, while nobody writes to either."""
    if not rows:
        raise ValueError(f"DATA must have at least one input for {old} to be overwritten")
    locks = [FileLock(Path(f"{path}.votes")) for path in (old, new)]
    try:
        for store in list_share_stores(old):
            store.unlink()
            store.with_suffix("").unlink(missing_ok=True)
        # The votes first: a log without its votes would look like another run's.
        for ending in (".votes", ".noise", ""):
            if Path(f"{new}{ending}").exists():
                Path(f"{new}{ending}").replace(f"{old}{ending}")
            else:  # no noise was tested
                Path(f"{old}{ending}").unlink(missing_ok=True)
    finally:
        for lock in locks:
            lock.release()
    Path(f"{new}.votes.lock").unlink(missing_ok=True)
