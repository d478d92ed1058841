"""The files of a run: its log, its votes, and those of its shares where several processes took part."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from jaxsmooth.arguments import as_integer
from jaxsmooth.logs import LogRow
from jaxsmooth.stores import VoteHeader, VoteRow, VoteStore, is_torn, refuse_other


def as_share(share: Any) -> tuple[int, int]:
    """Return which part of the inputs is meant: an index and a count."""
    if share is None:
        return jax.process_index(), jax.process_count()
    if not isinstance(share, tuple) or len(share) != 2:
        raise TypeError(f"share must be a tuple (index, count), got {share!r}")
    count = as_integer("share's count", share[1], 1)
    return as_integer("share's index", share[0], 0, count - 1), count


def share_path(path: Path, index: int, count: int) -> Path:
    """Return the log of one share of a run: the run's own where there is one share."""
    return path if count == 1 else path.with_name(f"{path.stem}.{index}-of-{count}{path.suffix}")


def votes_path(path: Path) -> Path:
    """Return the file of votes beside a log."""
    return path.with_name(path.name + ".votes")


def list_stores(path: Path) -> list[Path]:
    """Return the files of votes of a run, whole or of a share."""
    name = re.compile(re.escape(path.stem) + r"(\.\d+-of-\d+)?" + re.escape(path.suffix) + r"\.votes")
    return sorted(found for found in path.parent.glob("*.votes") if name.fullmatch(found.name))


def list_share_stores(path: Path) -> list[Path]:
    """Return the files of votes that the processes of a run wrote, each for its share."""
    return [store for store in list_stores(path) if store != votes_path(path)]


def read_share(path: Path, header: VoteHeader) -> list[VoteRow]:
    """Return what another process has certified under the same settings."""
    if is_torn(path, header):
        return []
    found, rows = VoteStore.read(path)
    refuse_other(path, found, header)
    return rows


def in_order(rows: Iterable[VoteRow], words: str) -> list[LogRow]:
    """Return the lines of a log, in the order of the inputs."""
    return [log_row(row, words) for row in sorted(rows, key=lambda row: row.idx)]


def log_row(row: VoteRow, words: str) -> LogRow:
    """Return the line of the log for an input, with what it claims."""
    return LogRow(row.idx, row.label, row.predict, row.radius, row.seconds, row.n, words)
