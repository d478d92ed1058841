"""The log of certificates: tab-separated text in the columns that Cohen et al. (2019) published theirs in."""

import math
from collections.abc import Iterable
from datetime import timedelta
from decimal import ROUND_FLOOR, Decimal
from pathlib import Path
from typing import NamedTuple

COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")


class LogRow(NamedTuple):
    """One certified input.

    Attributes:
        idx: index of the input in its data set.
        label: true class.
        predict: certified class, or `ABSTAIN` (-1).
        radius: certified radius.
        seconds: time that the certificate took.
    """

    idx: int
    label: int
    predict: int
    radius: float
    seconds: float

    @property
    def correct(self) -> bool:
        """Whether the certified class is the true one."""
        return self.predict == self.label


def write_log(path: str | Path, rows: Iterable[LogRow]) -> None:
    """Write rows as text, one line each under the header `idx label predict radius correct time`.

    Radii are rounded down to six decimals, never up. The file is replaced as a whole, once all rows are there.

    Raises:
        ValueError: a radius or a time is negative or not finite. Nothing is written then.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "certificates.tsv")
        >>> write_log(path, [LogRow(idx=3, label=7, predict=7, radius=0.9999999, seconds=1.5)])
        >>> print(path.read_text().expandtabs(9), end="")
        idx      label    predict  radius   correct  time
        3        7        7        0.999999 1        0:00:01.500000
    """
    lines = ["\t".join(COLUMNS), *map(format_row, rows)]
    path = Path(path)
    draft = path.with_name(path.name + ".partial")
    draft.write_text("\n".join(lines) + "\n", encoding="utf-8")
    draft.replace(path)


def read_log(path: str | Path) -> list[LogRow]:
    """Read a log, ours or one published by Cohen et al.

    Raises:
        ValueError: the header is another, or a line is incomplete or malformed; the message names the line.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "certificates.tsv")
        >>> write_log(path, [LogRow(idx=3, label=7, predict=7, radius=0.5, seconds=1.5)])
        >>> read_log(path)
        [LogRow(idx=3, label=7, predict=7, radius=0.5, seconds=1.5)]
    """
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    if not lines or tuple(lines[0].split("\t")) != COLUMNS:
        raise ValueError(f"{path} must begin with the columns {' '.join(COLUMNS)}, got {lines[:1]}")
    return [_parse(line, f"{path}, line {number}") for number, line in enumerate(lines[1:], start=2)]


def format_row(row: LogRow) -> str:
    """Return the line of a row, without its end."""
    for name, value in (("radius", row.radius), ("seconds", row.seconds)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be finite and not negative, got {value} for idx {row.idx}")
    radius = Decimal(float(row.radius)).quantize(Decimal("0.000001"), rounding=ROUND_FLOOR)
    time = timedelta(seconds=float(row.seconds))
    return f"{row.idx}\t{row.label}\t{row.predict}\t{radius}\t{int(row.correct)}\t{time}"


def _parse(line: str, place: str) -> LogRow:
    try:
        idx, label, predict, radius, correct, time = line.split("\t")
        row = LogRow(int(idx), int(label), int(predict), float(radius), _seconds(time))
        if int(correct) != row.correct or not (math.isfinite(row.radius) and row.radius >= 0):
            raise ValueError
    except ValueError:
        raise ValueError(f"{place}: expected {' '.join(COLUMNS)} separated by tabs, got {line!r}") from None
    return row


def _seconds(time: str) -> float:
    days, _, clock = time.rpartition(", ")
    hours, minutes, seconds = clock.split(":")
    return float(days.split()[0] if days else 0) * 86400 + int(hours) * 3600 + int(minutes) * 60 + float(seconds)
