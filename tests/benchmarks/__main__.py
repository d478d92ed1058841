"""Compare the smoothing classes with the bare network, a plain loop and ART: `python -m tests.benchmarks`.

For each framework, network and task, interleaved in one process, medians over rounds and the spread between quartiles.
Ratios come first. They are medians of ratios within a round, since the machine may be faster in one than in the next:
ours/bare is what smoothing costs over the network on as many inputs, at its best batch size; loop/ours and art/ours are
how many times longer a loop in the style of Cohen et al.'s script, and ART's class, take. `--processes P` does this in
P new processes in turn, and ends with a table of the medians and ranges of their ratios. Then how time and memory grow
with votes, inputs, classes and the size of an input, and the mean votes of sequential tests beside a fixed number.
`--json FILE` keeps all of it.
"""

import argparse
import json
import platform
import warnings
from pathlib import Path
from typing import Any

from tests.benchmarks import growth, sequential_votes
from tests.benchmarks.comparison import compare, print_ranges, ranges
from tests.benchmarks.timing import in_processes


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds, at least (9)")
    parser.add_argument("--processes", type=int, default=1, help="new processes that measure each row (1: this one)")
    parser.add_argument("--only", default="", help="rows whose name has this in it, such as 'torch mlp'")
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args()
    if options.processes < 1:
        parser.error("--processes must be at least 1")
    warnings.simplefilter("ignore")
    machine = growth.machine()
    print(f"{machine}, Python {platform.python_version()}, at least {options.rounds} rounds", flush=True)
    found: dict[str, Any] = {"machine": machine}
    if options.processes == 1:
        found["rows"] = compare(options.only, options.rounds)
    else:
        found["processes"] = in_processes(options.processes, compare, options.only, options.rounds)
        found["rows"] = ranges(found["processes"])
        print_ranges(found["rows"])
    if options.only in "growth":
        found["growth"] = growth.measure(options.rounds)
    if options.only in "sequential votes":
        found["sequential votes"] = sequential_votes.measure()
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
