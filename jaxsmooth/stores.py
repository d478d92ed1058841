"""A file of votes that survives a crash: one header, then one record of fixed size for each input.

Header and records have checksums. A record is written by one call and synced to the disk before it counts. What a crash
left of a last record is cut off; anything else that is not as it was written is an error, and the file is left alone.
"""

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

_MAGIC = b"jaxsmooth votes 2\n"


class StoredVotes(NamedTuple):
    """What is kept of one certified input.

    Attributes:
        idx: index of the input in its data set.
        label: true class.
        predict: certified class, or `ABSTAIN` (-1).
        radius: certified radius, rounded down.
        seconds: time that the certificate took.
        votes: number of estimation samples.
        selection: `i32[K]`, the selection votes.
        counts: `i32[K]`, the estimation votes, as far as the mode keeps them.
    """

    idx: int
    label: int
    predict: int
    radius: float
    seconds: float
    votes: int
    selection: np.ndarray
    counts: np.ndarray


class VoteStore:
    """An append-only file of `StoredVotes`, all made under the same settings.

    Args:
        path: of the file; made if it is not there.
        settings: what must be the same for all records: a mapping that JSON can hold.
        classes: number of classes.

    Raises:
        ValueError: the file is of other settings or another number of classes, is no such file, or is damaged
            elsewhere than at its end.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "run.votes"
        >>> votes = np.array([9, 1], np.int32)
        >>> with VoteStore(path, {"sigma": 0.5}, classes=2) as store:
        ...     store.append(StoredVotes(0, 1, 0, 0.25, 0.1, 10, votes, votes))
        >>> settings, rows = read_votes(path)
        >>> settings, rows[0].radius
        ({'sigma': 0.5}, 0.25)
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], classes: int) -> None:
        self.path = Path(path)
        self._type = _record_type(classes)
        header = _header(settings, classes)
        if not self.path.exists() or _is_torn_header(self.path, header):
            _write_whole(self.path, header)
        found, self.rows, end = _read(self.path)
        if found != header:
            raise ValueError(
                f"{self.path} was made under other settings: expected {_settings(header)}, found {_settings(found)}"
            )
        # Opened last: until here the file is as it was.
        self._file = self.path.open("r+b", buffering=0)
        self._file.truncate(end)
        self._file.seek(end)
        self._end = end

    def append(self, row: StoredVotes) -> None:
        """Write one record and sync it to the disk.

        Raises:
            OSError: the disk is full, say. The file then ends with the record before.
        """
        record = np.zeros((), self._type)
        for name, value in row._asdict().items():
            record[name] = value
        body = record.tobytes()[:-4]
        data = body + np.uint32(zlib.crc32(body)).tobytes()
        try:
            if self._file.write(data) != len(data):
                raise OSError(f"{self.path}: the disk took only part of a record")
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(self._end)
            self._file.seek(self._end)
            raise
        self._end += len(data)
        self.rows.append(row)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "VoteStore":
        """Return the store, to be closed at the end of the block."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        """Close the file."""
        self.close()


def read_votes(path: str | Path) -> tuple[dict[str, Any], list[StoredVotes]]:
    """Return the settings of a file of votes and its whole records. The file stays as it is.

    Raises:
        ValueError: as `VoteStore`.
    """
    header, rows, _ = _read(Path(path))
    return _settings(header), rows


def _record_type(classes: int) -> np.dtype[Any]:
    fields = [("idx", "<i8"), ("label", "<i8"), ("predict", "<i8"), ("radius", "<f4"), ("seconds", "<f8")]
    votes = [("votes", "<i8"), ("selection", "<i4", (classes,)), ("counts", "<i4", (classes,)), ("checksum", "<u4")]
    return np.dtype([*fields, *votes])


def _header(settings: Mapping[str, Any], classes: int) -> bytes:
    body = json.dumps({"classes": classes, "settings": dict(settings)}, sort_keys=True).encode()
    return _MAGIC + body + b" %08x\n" % zlib.crc32(body)


def _settings(header: bytes) -> dict[str, Any]:
    return json.loads(_body(header))["settings"]


def _body(header: bytes) -> bytes:
    """Return the JSON of a header without its checksum."""
    body, checksum = header[len(_MAGIC) : -1].rsplit(b" ", 1)
    if checksum != b"%08x" % zlib.crc32(body):
        raise ValueError(f"its checksum is {checksum.decode(errors='replace')}, not {zlib.crc32(body):08x}")
    return body


def _is_torn_header(path: Path, header: bytes) -> bool:
    """Return whether a crash left the file with a part of the header alone."""
    data = path.read_bytes() if path.stat().st_size < len(header) else header
    return header.startswith(data) and len(data) < len(header)


def _write_whole(path: Path, data: bytes) -> None:
    """Write a new file so that it is there as a whole or not at all."""
    draft = path.with_name(path.name + ".partial")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _read(path: Path) -> tuple[bytes, list[StoredVotes], int]:
    """Return the header, the whole records and where they end."""
    data = path.read_bytes()
    end = data.find(b"\n", len(_MAGIC)) + 1
    if not data.startswith(_MAGIC) or end == 0:
        raise ValueError(f"{path} is no file of votes of jaxsmooth")
    try:
        kind = _record_type(int(json.loads(_body(data[:end]))["classes"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} has a damaged header: {error}") from None
    number = (len(data) - end) // kind.itemsize
    records = np.frombuffer(data, kind, number, end)
    rows: list[StoredVotes] = []
    for place, record in enumerate(records):
        if zlib.crc32(record.tobytes()[:-4]) != record["checksum"]:
            if place == number - 1:
                return data[:end], rows, end + place * kind.itemsize
            raise ValueError(f"{path} is damaged in record {place} of {number}: nothing was changed")
        rows.append(_row(record))
    return data[:end], rows, end + number * kind.itemsize


def _row(record: Any) -> StoredVotes:
    idx, label, predict, radius, seconds, votes, selection, counts, _ = record.item()
    return StoredVotes(idx, label, predict, radius, seconds, votes, np.array(selection), np.array(counts))
