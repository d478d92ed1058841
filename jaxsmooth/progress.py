"""Progress of the host loops: a bar where tqdm is installed, else a line every few seconds."""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from jaxsmooth.arguments import as_flag

_SECONDS = 5.0  # between two lines


@contextmanager
def progress_bar(unit: str, total: int | None, shown: bool) -> Generator[Callable[..., None]]:
    """Show progress on stderr if `shown`, and give a function to call with how many are done, and with notes by name.

    Example:
        >>> with progress_bar("votes", 100, shown=False) as advance:
        ...     advance(50)
    """
    if not as_flag("progress", shown):
        yield lambda *_, **__: None
        return
    try:
        from tqdm import tqdm
    except ImportError:
        yield _lines(unit, total)
        return
    with tqdm(total=total, desc=unit, unit=f" {unit}", unit_scale=total is None or total >= 10_000) as bar:

        def advance(done: int, **notes: str) -> None:
            bar.set_postfix(notes, refresh=False)
            bar.update(done - bar.n)

        yield advance


def _lines(unit: str, total: int | None) -> Callable[..., None]:
    """Return a function that prints a line every few seconds, and one when all is done."""
    began = time.monotonic()
    last = began

    def advance(done: int, **notes: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _SECONDS and done != total:
            return
        last = now
        of_all = "" if total is None else f" of {total:,}"
        said = "".join(f", {name} {note}" for name, note in notes.items())
        print(f"{unit}: {done:,}{of_all}, {now - began:.0f} s{said}", file=sys.stderr, flush=True)

    return advance
