"""Which tests the core suite leaves out: `python -m tests.slow times.xml` writes `tests/slow.txt`.

`pytest -n 2 --junit-xml=times.xml` measures all tests on a machine with nothing else to do.
"""

import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

LIST = Path(__file__).with_name("slow.txt")
SECONDS = 1.0  # of one test: what is left of the core then takes under two minutes on two cores


def main() -> None:
    """Write the list: a line for each function one of whose cases takes longer."""
    longest = defaultdict[str, float](float)
    for case in ElementTree.parse(sys.argv[1]).iter("testcase"):
        name = function_of(f"{case.attrib['classname']}.{case.attrib['name']}")
        longest[name] = max(longest[name], float(case.attrib["time"]))
    names = sorted(name for name, seconds in longest.items() if seconds > SECONDS)
    LIST.write_text("\n".join(names) + "\n", encoding="utf-8")
    print(f"{len(names)} of {len(longest)} functions take over {SECONDS} s")


def function_of(name: str) -> str:
    """Return the name of a test function, with its module, without its parameters.

    Example:
        >>> function_of("tests.test_votes.test_votes_add_up[a-1]")
        'tests.test_votes.test_votes_add_up'
    """
    return name.partition("[")[0]


if __name__ == "__main__":
    main()
