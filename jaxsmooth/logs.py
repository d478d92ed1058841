"""The log of certificates: tab-separated text in the columns that Cohen et al. (2019) published, followed by ours."""

import math
from collections.abc import Iterable
from datetime import timedelta
from decimal import ROUND_FLOOR, Decimal
from pathlib import Path
from typing import NamedTuple

from jaxsmooth.arguments import as_integer, as_numbers
from jaxsmooth.types import ABSTAIN

COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")
OWN_COLUMNS = ("votes", "claim")
HEADER = "\t".join(COLUMNS + OWN_COLUMNS)


class LogRow(NamedTuple):
    """One certified input.

    Attributes:
        idx: index of the input in its data set.
        label: true class.
        predict: certified class, or `ABSTAIN` (-1).
        radius: certified radius.
        seconds: time that the certificate took.
        votes: number of estimation samples, 0 where it is not known.
        claim: what the certificate claims and which settings it was made with, as `name=value` words.
    """

    idx: int
    label: int
    predict: int
    radius: float
    seconds: float
    votes: int = 0
    claim: str = ""

    @property
    def correct(self) -> bool:
        """Whether the certified class is the true one."""
        return self.predict == self.label

    @property
    def settings(self) -> dict[str, str]:
        """The claim, by name."""
        return dict(word.split("=", 1) for word in self.claim.split())


def write_log(path: str | Path, rows: Iterable[LogRow]) -> None:
    """Write rows as text, one line each under the header `idx label predict radius correct time votes claim`.

    Radii are rounded down to six decimals, never up. The file is replaced as a whole, once all rows are there.

    Raises:
        ValueError, TypeError: a radius or a time is negative or not finite, or a row is not as described. Nothing is
            written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "certificates.tsv")
        >>> write_log(path, [LogRow(3, 7, 7, radius=0.9999999, seconds=1.5, votes=100, claim="norm=2 alpha=0.001")])
        >>> print(path.read_text().expandtabs(9), end="")
        idx      label    predict  radius   correct  time     votes    claim
        3        7        7        0.999999 1        0:00:01.500000    100      norm=2 alpha=0.001
    """
    if not isinstance(rows, Iterable) or getattr(rows, "shape", None) == ():  # pyright: ignore
        raise TypeError(f"rows must be rows of a log, got {rows!r}")
    lines = [HEADER, *map(format_row, rows)]
    path = Path(path)
    # Replace the file as a whole: a reader never sees a part of it.
    draft = path.with_name(path.name + ".partial")
    draft.write_text("\n".join(lines) + "\n", encoding="utf-8")
    draft.replace(path)


def read_log(path: str | Path) -> list[LogRow]:
    """Read a log: ours, or one published by Cohen et al., which has only the first six columns.

    Raises:
        ValueError: the header begins otherwise, or a line is incomplete or malformed; the message names the line.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "certificates.tsv")
        >>> write_log(path, [LogRow(idx=3, label=7, predict=7, radius=0.5, seconds=1.5)])
        >>> read_log(path)
        [LogRow(idx=3, label=7, predict=7, radius=0.5, seconds=1.5, votes=0, claim='')]
    """
    text = Path(path).read_text(encoding="utf-8")
    lines = text.splitlines()
    columns = tuple(lines[0].split("\t")) if lines else ()
    if columns not in (COLUMNS, COLUMNS + OWN_COLUMNS):
        raise ValueError(f"{path} must begin with the columns {' '.join(COLUMNS)}, got {lines[:1]}")
    if not text.endswith("\n"):
        raise ValueError(f"{path}, line {len(lines)} is torn: it does not end")
    return [_parse(line, columns, f"{path}, line {number}") for number, line in enumerate(lines[1:], start=2)]


def format_row(row: LogRow) -> str:
    """Return the line of a row, without its end."""
    if not isinstance(row, LogRow):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"rows must hold rows of a log, got {row!r}")
    for name in ("idx", "label", "predict", "votes"):
        as_integer(f"{name} of a row", getattr(row, name), ABSTAIN, 2**63 - 1)
    for name, value in (("radius", row.radius), ("seconds", row.seconds)):
        if isinstance(value, (str, bytes)) or as_numbers(name, value, "a number").ndim != 0:
            raise TypeError(f"{name} must be a number, got {value!r} for idx {row.idx}")
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be finite and not negative, got {value} for idx {row.idx}")
    if not isinstance(row.claim, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"claim must be text, got {row.claim!r} for idx {row.idx}")
    words = row.claim.split(" ") if row.claim else []
    if any("=" not in word or word != "".join(word.split()) for word in words):
        raise ValueError(f"claim must be name=value words with one space between, got {row.claim!r} for idx {row.idx}")
    # Decimal rounds the exact value of the float, toward zero: no printed radius is larger than the certified one.
    radius = Decimal(float(row.radius)).quantize(Decimal("0.000001"), rounding=ROUND_FLOOR)
    time = timedelta(seconds=float(row.seconds))
    fields = (row.idx, row.label, row.predict, radius, int(row.correct), time, row.votes, row.claim)
    return "\t".join(map(str, fields))


def _parse(line: str, columns: tuple[str, ...], place: str) -> LogRow:
    try:
        idx, label, predict, radius, correct, time, *own = line.split("\t")
        if len(own) != len(columns) - len(COLUMNS):
            raise ValueError
        votes, claim = own or ("0", "")
        row = LogRow(int(idx), int(label), int(predict), float(radius), _seconds(time), int(votes), claim)
        if int(correct) != row.correct or not (math.isfinite(row.radius) and row.radius >= 0):
            raise ValueError
    except ValueError:
        raise ValueError(f"{place}: expected {' '.join(columns)} separated by tabs, got {line!r}") from None
    return row


def _seconds(time: str) -> float:
    """Return the seconds of "1 day, 0:01:02.5" or of "62.5": published logs have both."""
    if ":" not in time:
        return float(time)
    days, _, clock = time.rpartition(", ")
    hours, minutes, seconds = clock.split(":")
    return float(days.split()[0] if days else 0) * 86400 + int(hours) * 3600 + int(minutes) * 60 + float(seconds)
