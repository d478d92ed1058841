"""Progress bars of the host loops."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

from jaxsmooth.arguments import as_flag


@contextmanager
def progress_bar(unit: str, total: int | None, shown: bool) -> Generator[Callable[..., None]]:
    """Show a bar if `shown`, and give a function to call with how many of the total are done, and with notes by name.

    Raises:
        ImportError: it is asked for and tqdm is missing.

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
        raise ImportError("progress=True needs tqdm: pip install 'jaxsmooth[progress]'") from None
    with tqdm(total=total, desc=unit, unit=f" {unit}", unit_scale=True) as bar:

        def advance(done: int, **notes: str) -> None:
            bar.set_postfix(notes, refresh=False)
            bar.update(done - bar.n)

        yield advance
