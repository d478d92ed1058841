"""Files that are replaced as a whole: a reader never sees a part of one."""

import os
from pathlib import Path


def write_whole(path: Path, data: str | bytes) -> None:
    """Write a file so that it is there as a whole or not at all. The old one stays until the new one is complete.

    A link stays a link: the file that it leads to is replaced.
    """
    path = path.resolve()
    draft = path.with_name(path.name + ".partial")
    with draft.open("wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
