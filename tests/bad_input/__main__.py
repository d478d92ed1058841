"""Run many cases of bad input and report how they ended.

python -m tests.bad_input --cases 20000
"""

import argparse
import time
import warnings
from collections import Counter

from tests.bad_input.cases import run_cases
from tests.bad_input.subjects import classes, core


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--only", default="", help="subjects whose name has this in it")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    subjects = [subject for subject in core() + classes() if options.only in subject.name]
    number, began, total = -(-options.cases // len(subjects)), time.perf_counter(), Counter[str]()
    for subject in subjects:
        found = run_cases(subject, number, derandomize=False)
        total += found
        print(f"{subject.name:45} {dict(found)}", flush=True)
    print(f"{total.total():,} cases, none a crash: {dict(total)}, in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
