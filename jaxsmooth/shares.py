"""The files of a run that several processes share: one log and one store of votes for each, merged to one log."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxsmooth.checks import check_integer
from jaxsmooth.logs import LogRow, write_log
from jaxsmooth.rules import claim
from jaxsmooth.stores import StoredVotes, read_votes


def merge_shares(path: str | Path) -> list[LogRow]:
    """Write one log of the files that the processes of a run wrote, and return its rows.

    Where JAX runs in several processes (`jax.distributed`), each takes every so-many-th input and writes files of its
    own, `<stem>.<index>-of-<count><suffix>`. A process that dies leaves only its share undone, and any later call of
    `certify_dataset`, of as many processes or of others, goes on from the files of all.

    Args:
        path: of the log, as it was given to `certify_dataset` in each process.

    Raises:
        ValueError: there are no such files, they are of different settings, or two of them certify an input
            differently. The log stays as it was.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from jaxsmooth import Gaussian, certify_dataset
        >>> data = np.eye(4, dtype=np.float32), np.arange(4)
        >>> path, f = Path(tempfile.mkdtemp()) / "run.tsv", lambda x: x
        >>> for index in range(2):
        ...     rows = certify_dataset(
        ...         f, Gaussian(0.2), jax.random.key(0), data, path, n=100, share=(index, 2), verbose=False
        ...     )
        >>> [(row.idx, row.predict) for row in merge_shares(path)]
        [(0, 0), (1, 1), (2, 2), (3, 3)]
    """
    path = Path(path)
    found = {store: read_votes(store) for store in list_stores(path)}
    if not found:
        raise ValueError(f"there is no file of votes of {path}: expected {path.name}.votes or those of its shares")
    first = next(iter(found))
    done: dict[int, StoredVotes] = {}
    for store, (settings, rows) in found.items():
        if settings != found[first][0]:
            raise ValueError(f"{store} was made under other settings than {first}: {settings}, {found[first][0]}")
        for row in rows:
            other = done.setdefault(row.idx, row)
            if (other.predict, other.radius) != (row.predict, row.radius):
                raise ValueError(f"{store} certifies input {row.idx} otherwise than another file of {path}")
    merged = in_order(done.values(), claim(found[first][0]))
    write_log(path, merged)
    return merged


def check_share(share: Any) -> tuple[int, int]:
    """Return which part of the inputs is meant: an index and a count."""
    if share is None:
        return jax.process_index(), jax.process_count()
    if not isinstance(share, tuple) or len(share) != 2:
        raise TypeError(f"share must be a tuple (index, count), got {share!r}")
    count = check_integer("share's count", share[1], 1)
    return check_integer("share's index", share[0], 0, count - 1), count


def share_path(path: Path, index: int, count: int) -> Path:
    """Return the log of one share of a run: the run's own where there is one share."""
    return path if count == 1 else path.with_name(f"{path.stem}.{index}-of-{count}{path.suffix}")


def list_stores(path: Path) -> list[Path]:
    """Return the files of votes of a run, whole or of a share."""
    name = re.compile(re.escape(path.stem) + r"(\.\d+-of-\d+)?" + re.escape(path.suffix) + r"\.votes")
    return sorted(found for found in path.parent.glob("*.votes") if name.fullmatch(found.name))


def read_share(path: Path, settings: Mapping[str, Any]) -> list[StoredVotes]:
    """Return what another process has certified under the same settings."""
    found, rows = read_votes(path)
    if found != settings:
        raise ValueError(f"{path} was made under other settings: expected {settings}, found {found}")
    return rows


def in_order(rows: Iterable[StoredVotes], words: str) -> list[LogRow]:
    """Return the lines of a log, in the order of the inputs."""
    return [log_row(row, words) for row in sorted(rows, key=lambda row: row.idx)]


def log_row(row: StoredVotes, words: str) -> LogRow:
    """Return the line of the log for an input, with what it claims."""
    return LogRow(row.idx, row.label, row.predict, row.radius, row.seconds, row.votes, words)
