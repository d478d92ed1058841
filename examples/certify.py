"""Certify a data set under Gaussian noise, with the flags of Cohen et al.'s certify.py, for a model of any framework.

The log is written as it goes, beside a file of votes. The same command goes on where it was ended, or says what has
changed. Several processes share the inputs; `report.py` merges and shows what they wrote.

Try it: python examples/train.py models:mnist_torch models:mnist_training weights --sigma 0.5
        python examples/certify.py models:mnist_torch models:mnist_test run.tsv --weights weights --sigma 0.5 --max 50
        python examples/report.py run.tsv
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import numpy as np
from loading import (
    DATA_HELP,
    MODEL_HELP,
    as_function,
    first_input,
    load_data,
    load_model,
    seed_of,
    share_files,
    with_weights,
)

import jaxsmooth


def make_parser(description: str | None, votes: int) -> argparse.ArgumentParser:
    """Return the flags that certifying and predicting share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("data", help=DATA_HELP)
    parser.add_argument("output", type=Path, help="path of the log")
    parser.add_argument("--weights", type=Path, help="what train.py saved, its path without an ending")
    parser.add_argument("--sigma", type=float, required=True, help="noise level, in the units of the inputs")
    parser.add_argument("--N", type=int, default=votes, help=f"votes for an input ({votes})")
    parser.add_argument("--alpha", type=float, default=0.001, help="failure probability for each input (0.001)")
    parser.add_argument("--batch", type=int, default=256, help="noisy inputs in one call of the model (256)")
    parser.add_argument("--skip", type=int, default=1, help="take every skip-th input (1)")
    parser.add_argument("--max", type=int, default=-1, help="take inputs of an index below this; -1 for all (-1)")
    parser.add_argument("--seed", type=int, help="of the votes (that of the log to go on from, else drawn)")
    parser.add_argument("--no-check", action="store_true", help="do not test the model and the noise first")
    parser.add_argument("--quiet", action="store_true", help="show no progress bar")
    group = parser.add_argument_group("several processes", "each takes its share of the inputs; start them all alike")
    group.add_argument("--distributed", action="store_true", help="find the others by Slurm, Open MPI or the cloud")
    group.add_argument("--coordinator", help="or by address:port of the first process, with the two numbers below")
    group.add_argument("--processes", type=int, help="how many there are")
    group.add_argument("--process", type=int, help="which of them this is, from 0")
    return parser


def prepare(arguments: argparse.Namespace) -> tuple[Any, Any, dict[str, Any]]:
    """Return the classifier, the data, and the settings that certifying and predicting share."""
    if arguments.distributed or arguments.coordinator:
        jax.distributed.initialize(arguments.coordinator, arguments.processes, arguments.process)
    model, data = load_model(arguments.model), load_data(arguments.data)
    if arguments.weights is not None:
        model = with_weights(model, first_input(load_data(arguments.data)), arguments.weights)
    f, compiled = as_function(model)
    settings = {"alpha": arguments.alpha, "batch_size": arguments.batch, "compiled": compiled}
    settings |= {"skip": arguments.skip, "most": None if arguments.max < 0 else arguments.max}
    return f, data, {**settings, "check": not arguments.no_check, "verbose": not arguments.quiet}


def as_key(arguments: argparse.Namespace) -> jax.Array:
    """Return the key of the votes: of the seed, else that of the log to go on from, else a new one."""
    files = [path for path in [Path(f"{arguments.output}.votes"), *share_files(arguments.output)] if path.exists()]
    if arguments.seed is None and files:
        return jaxsmooth.key_of_seed(np.array(jaxsmooth.read_votes(files[0]).settings["key"], np.uint32))
    if arguments.seed is None and jax.process_count() > 1:
        raise ValueError("--seed must be given to several processes: each would draw its own")
    return jaxsmooth.key_of_seed(seed_of(arguments.seed))


def as_mode(arguments: argparse.Namespace) -> jaxsmooth.Fixed | jaxsmooth.Grid | jaxsmooth.Within:
    """Return what the flags fix in advance."""
    if arguments.radii is not None and arguments.precision is not None:
        raise ValueError("--radii and --precision are different modes: give one of them")
    votes: dict[str, Any] = {"n0": arguments.N0, "n": arguments.N}
    if arguments.radii is not None:
        if arguments.bound != "cohen":
            raise ValueError("--bound must be cohen with --radii")
        return jaxsmooth.Grid(arguments.radii, **votes)
    if arguments.precision is not None:
        return jaxsmooth.Within(arguments.precision, bound=arguments.bound, **votes)
    return jaxsmooth.Fixed(bound=arguments.bound, **votes)


def main(argv: list[str] | None = None) -> None:
    """Run the script."""
    parser = make_parser(__doc__, votes=100_000)
    parser.add_argument("--N0", type=int, default=100, help="votes that select the class of an input (100)")
    parser.add_argument("--radii", type=float, nargs="+", help="certify these radii, with as few votes as it takes")
    parser.add_argument("--precision", type=float, help="or to within this fraction of the radius of N votes, say 0.05")
    parser.add_argument("--bound", choices=["cohen", "runner_up"], default="cohen", help="of the probabilities (cohen)")
    arguments = parser.parse_args(argv)
    noise = jaxsmooth.Gaussian(arguments.sigma)
    try:
        f, data, settings = prepare(arguments)
        key = as_key(arguments)
        rows = jaxsmooth.certify_dataset(f, noise, key, data, arguments.output, mode=as_mode(arguments), **settings)
    except (ValueError, TypeError, OSError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: ended; what is done is kept, and the same command goes on from there\n")
    if rows:
        radii = np.arange(7) * arguments.sigma / 2 if arguments.radii is None else arguments.radii
        print(jaxsmooth.report_table({arguments.output.stem: rows}, radii))


if __name__ == "__main__":
    main()
