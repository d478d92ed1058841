"""Write every benchmark table into the guide: `python -m tests.benchmarks.report`.

Each part is a command, run in a process of its own, and what it printed, with the machine, the date and the commit.
`--only NAME` measures some parts again and keeps the others. Nothing else should run on the machine.
"""

import argparse
import datetime
import re
import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks import growth

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "examples" / "guides" / "benchmarks.md"

HEAD = """# Benchmarks

Every table here was written by the command above it, through `python -m tests.benchmarks.report`, on the machine, the
day and the commit that it names. These are shared machines: ratios are medians over interleaved rounds, and still
differ by some hundredths from one process to the next.

- **ours/bare**: time over that of the bare network on as many ready-made inputs at its best batch size; for `fit`, of
  a plain training loop. What is left is the noise, and for small networks the fixed cost of a call.
- **loop/ours**: a loop over images in the style of Cohen et al.'s script, with the framework's own random numbers and
  no checks, over ours.
- **art/ours**: ART 1.20.1's class over ours.

No GPU was at hand since the code that these tables measure was written, so there is no GPU table.
"""

_SHORT_RUN = ["-m", "tests.benchmarks.dataset_run", "--processes", "2", "--rounds", "2"]

PARTS: dict[str, tuple[str, list[str]]] = {
    "frameworks": ("The classes beside the bare network, a plain loop and ART", ["-m", "tests.benchmarks"]),
    "first_call": ("The first call in a new process", ["-m", "tests.benchmarks.first_call"]),
    "first_attack": ("An attack in a new process", ["-m", "tests.benchmarks.first_attack"]),
    "dataset_run": ("A run over a data set beside counting its votes", _SHORT_RUN),
    "smooth_gradient": ("Gradients of the smoothed classifier", ["-m", "tests.benchmarks.smooth_gradient"]),
    "training": ("Training steps", ["-m", "tests.benchmarks.training"]),
    "imagenet": ("A ResNet-50 on images of ImageNet's size", ["-m", "tests.benchmarks.imagenet"]),
}


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure (all)")
    parser.add_argument("--processes", type=int, default=3, help="new processes of the first part (3)")
    options = parser.parse_args()
    parts = _parts_of(PAGE)
    place = _place()  # before the page is changed, which is in git, too
    for name in options.only:
        title, words = PARTS[name]
        if name == "frameworks" and options.processes > 1:
            words = [*words, "--processes", str(options.processes)]
        began = time.monotonic()
        done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{name} failed: {done.stderr}")
        minutes = (time.monotonic() - began) / 60
        said = f"`python {' '.join(words)}`, {minutes:.0f} min, {place}"
        shown = _without_processes(_last_lines(done.stdout))
        parts[name] = f"## {title}\n\n{said}:\n\n```text\n{shown}\n```\n"
        PAGE.write_text("\n".join([HEAD, *(parts[part] for part in PARTS if part in parts)]), encoding="utf-8")
        print(f"{name}: {minutes:.0f} minutes", flush=True)


def _place() -> str:
    """Return the machine, the date and the commit in words."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude", "*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    return f"{growth.machine()}, {datetime.date.today()}, commit {commit}"


def _last_lines(text: str) -> str:
    """Return what a terminal shows of a text: of a line that was written again and again, the last."""
    return "\n".join(line.rsplit("\r", 1)[-1].rstrip() for line in text.strip("\n").split("\n"))


def _without_processes(text: str) -> str:
    """Return a text without the tables of each process, where one of their medians follows."""
    first, *lines = text.split("\n")
    heads = [place for place, line in enumerate(lines) if line.split()[:1] == ["ours/bare"]]
    return "\n".join([first, *lines[heads[-1] :]]) if heads else text


def _parts_of(page: Path) -> dict[str, str]:
    """Return the parts of a page by name."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    titles = {title: name for name, (title, _) in PARTS.items()}
    pieces = re.split(r"^## (.+)$", text, flags=re.MULTILINE)[1:]
    found = zip(pieces[::2], pieces[1::2], strict=True)
    return {titles[title]: f"## {title}{body.rstrip()}\n" for title, body in found if title in titles}


if __name__ == "__main__":
    main()
