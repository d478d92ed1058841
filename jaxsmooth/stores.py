"""A file of votes that survives a crash: one header, then one record of fixed size for each input.

Header and records have checksums. A record is written by one call and synced to the disk before it counts. What a crash
left of a last record is cut off. A record that is damaged otherwise costs that record and those after it: what is whole
before it stays readable, and a run that goes on keeps a copy of the damaged file. One process writes at a time.
"""

import json
import os
import shutil
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, cast

import numpy as np

from jaxsmooth._claims import NO_TRUTH, claim, differences
from jaxsmooth.arguments import in_brief
from jaxsmooth.locks import FileLock
from jaxsmooth.logs import LogRow
from jaxsmooth.types import ABSTAIN, Certificate, Votes
from jaxsmooth.whole_files import write_whole

__all__ = ["OtherRunError", "StoredRun", "VoteHeader", "VoteRow", "VoteStore", "read_votes"]

_MAGIC = b"jaxsmooth votes 4\n"


class OtherRunError(ValueError):
    """Files of votes are those of another run: of other settings, inputs, labels or another classifier."""


class StoredRun(NamedTuple):
    """What `read_votes` finds in a file, for `N` inputs.

    Attributes:
        settings: what the run was made with, by name.
        idx: `i64[N]`, indices of the inputs in their data set.
        truth: `i64[N]`, true classes; -1 where the run knows none.
        seconds: `f64[N]`, time that each certificate took.
        certificate: what was certified, with the votes.
        inputs: `i64[N]`, 63 bits of a digest of each input.
    """

    settings: dict[str, Any]
    idx: np.ndarray
    truth: np.ndarray
    seconds: np.ndarray
    certificate: Certificate
    inputs: np.ndarray

    @property
    def votes(self) -> Votes:
        """The votes, which `certificate` or `prediction` read again where their rule allows it."""
        return self.certificate.votes

    def rows(self) -> list[LogRow]:
        """Return what was certified as rows of a log, which claim what the run claims.

        Raises:
            ValueError: nothing was decided, as in a run of `count_dataset`.
        """
        if self.settings.get("mode") == "votes":
            raise ValueError("the run has votes only: log_rows makes rows of what is decided from them")
        words = claim(self.settings)
        n = np.broadcast_to(np.asarray(self.votes.n), self.idx.shape)
        label, radius = self.certificate.label, self.certificate.radius
        columns = zip(self.idx, self.truth, label, radius, self.seconds, n, strict=True)
        return [LogRow(int(i), int(y), int(c), float(r), float(t), int(v), words) for i, y, c, r, t, v in columns]


class VoteHeader(NamedTuple):
    """What is the same for all records of a file.

    Attributes:
        settings: a mapping that JSON can hold.
        row: the shape of the votes of one input, `(*components, K)`.
        rule: how the votes were drawn: see `Votes.rule`.
        selects: whether the selection votes chose the class. If not, they are among the others, and only tell whether
            a classifier is the same.
    """

    settings: Mapping[str, Any]
    row: tuple[int, ...]
    rule: str = "fixed"
    selects: bool = True


class VoteRow(NamedTuple):
    """What is kept of one certified input.

    Attributes:
        idx: index of the input in its data set.
        label: true class.
        predict: certified class, or `ABSTAIN` (-1).
        radius: certified radius, rounded down.
        p_lower: lower bound on the probability of the selected class, rounded down.
        seconds: time that the certificate took.
        n: number of estimation samples.
        lost: what rounding the input took off the radius; NaN where the noise does not round.
        input: 63 bits of a digest of the input, so that another input is told from it.
        selection: `i32[*components, K]`, the selection votes.
        counts: `i32[*components, K]`, the estimation votes.
    """

    idx: int
    label: int
    predict: int
    radius: float
    p_lower: float
    seconds: float
    n: int
    lost: float
    input: int
    selection: np.ndarray
    counts: np.ndarray


class VoteStore:
    """An append-only file of `VoteRow`s, all made under the same settings.

    Args:
        path: of the file; made if it is not there.
        header: what must be the same for all records.

    Raises:
        ValueError: the file has another header, or is no such file. BlockingIOError: another process writes to it.

    Example:
        >>> import math, tempfile
        >>> path = Path(tempfile.mkdtemp()) / "run.votes"
        >>> votes = np.array([9, 1], np.int32)
        >>> with VoteStore(path, VoteHeader({"sigma": 0.5}, row=(2,))) as store:
        ...     store.append(VoteRow(0, 1, 0, 0.25, 0.6, 0.1, 10, math.nan, 0, votes, votes))
        >>> run = read_votes(path)
        >>> run.settings, run.votes.counts, run.votes.n
        ({'sigma': 0.5}, array([[9, 1]], dtype=int32), 10)
    """

    def __init__(self, path: str | Path, header: VoteHeader) -> None:
        self.path = Path(path)
        self._type = _record_type(header.row)
        self._lock = FileLock(self.path)
        try:
            self._open(header)
        except BaseException:
            self._lock.release()
            raise

    def _open(self, header: VoteHeader) -> None:
        data = _header_bytes(header)
        # A header that a crash tore is written again; any other header must be the same.
        if not self.path.exists() or is_torn(self.path, header):
            write_whole(self.path, data)
        found, self.rows, end, damage = _read(self.path)
        refuse_other(self.path, _as_header(found), _as_header(data))
        if damage:
            kept = self.path.with_name(self.path.name + ".damaged")
            shutil.copyfile(self.path, kept)
            warnings.warn(
                f"{damage}; it is kept as {kept.name}, and the run goes on from record {len(self.rows)}", stacklevel=5
            )
        # Opened last: until here the file is as it was.
        self._file = self.path.open("r+b", buffering=0)
        self._file.truncate(end)
        self._file.seek(end)
        self._end = end

    @staticmethod
    def read(path: str | Path) -> tuple[VoteHeader, list[VoteRow]]:
        """Return the header and the whole records of a file, which stays as it is.

        A damaged record, and those after it, are left out with a warning.

        Raises:
            ValueError: it is no such file.
        """
        header, rows, _, damage = _read(Path(path))
        if damage:
            warnings.warn(f"{damage}; those before it are whole", stacklevel=3)
        return _as_header(header), rows

    def append(self, row: VoteRow) -> None:
        """Write one record and sync it to the disk.

        Raises:
            OSError: for example, the disk is full. The file then ends with the record before.
        """
        # One write and one sync: a crash leaves either the whole record or a torn last one, which is cut off.
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
            # Take back what was written of the record, so that the file stays readable.
            self._file.truncate(self._end)
            self._file.seek(self._end)
            raise
        self._end += len(data)
        self.rows.append(row)

    def close(self) -> None:
        """Close the file, and let others write to it."""
        self._file.close()
        self._lock.release()

    def __enter__(self) -> "VoteStore":
        """Return the store, to be closed at the end of the block."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        """Close the file."""
        self.close()


def read_votes(path: str | Path) -> StoredRun:
    """Read a file of votes: what was certified, and votes that say how they were drawn. The file stays as it is.

    Votes of the rule "fixed" can be decided again, at another alpha or with another bound, without the model:
    `certificate(run.votes, noise, alpha=0.01)`. Votes whose sampling stopped because of the votes support only what
    was certified, which is in `run.certificate`.

    Args:
        path: of the file, `<log>.votes`.

    A damaged record, and those after it, are left out with a warning.

    Raises:
        ValueError: it is no such file.

    Example:
        >>> import jax, tempfile
        >>> import jaxsmooth
        >>> path, data = Path(tempfile.mkdtemp()) / "run.tsv", (np.eye(3, dtype=np.float32), np.arange(3))
        >>> noise = jaxsmooth.Gaussian(0.2)
        >>> rows = jaxsmooth.certify_dataset(lambda x: x, noise, jax.random.key(0), data, path, progress=False)
        >>> run = read_votes(f"{path}.votes")
        >>> bool((jaxsmooth.certificate(run.votes, noise, alpha=0.01).radius > run.certificate.radius).all())
        True
    """
    header, rows = VoteStore.read(path)
    return stored_run(rows, header)


def stored_run(rows: list[VoteRow], header: VoteHeader) -> StoredRun:
    """Return the run that rows of votes describe. They come from one file, or from several with the same header."""

    def column(name: str, dtype: Any) -> np.ndarray:
        return np.array([getattr(row, name) for row in rows], dtype)

    def counts(name: str) -> np.ndarray:
        return column(name, np.int32).reshape(-1, *header.row)

    lost = column("lost", np.float32)
    n: Any = column("n", np.int32)
    if header.rule == "fixed" and len(set(n.tolist())) == 1:
        n = int(n[0])  # as it was when these votes were decided
    votes = Votes(
        counts=counts("counts"),
        n=n,
        selection=counts("selection") if header.selects else None,
        lost=None if np.isnan(lost).all() else lost,
        rule=header.rule,
    )
    radius = column("radius", np.float64 if header.rule == "grid" else np.float32)
    decided = column("predict", np.int32), radius, column("p_lower", np.float32)
    idx = column("idx", np.int64)
    truth = column("label", np.int64)
    if header.settings.get("truth") == NO_TRUTH:
        truth[:] = -1
    seconds = column("seconds", np.float64)
    # Of components nothing was decided: see `count_dataset`.
    stated: dict[str, Any] = {name: header.settings.get(name) for name in ("alpha", "norm")}
    certificate = Certificate(*decided, votes, **stated) if len(header.row) == 1 else undecided(votes)  # pyright: ignore
    return StoredRun(dict(header.settings), idx, truth, seconds, certificate, column("input", np.int64))


def undecided(votes: Votes) -> Certificate:
    """Return votes as a certificate that abstains."""
    none = np.zeros(votes.counts.shape[:-1], np.float32)
    return Certificate(np.full(none.shape, ABSTAIN, np.int32), none, none, votes)


def _record_type(row: tuple[int, ...]) -> np.dtype[Any]:
    numbers = [("idx", "<i8"), ("label", "<i8"), ("predict", "<i8"), ("radius", "<f8"), ("p_lower", "<f4")]
    more = [("seconds", "<f8"), ("n", "<i8"), ("lost", "<f4"), ("input", "<i8")]
    votes = [("selection", "<i4", row), ("counts", "<i4", row), ("checksum", "<u4")]
    return np.dtype([*numbers, *more, *votes])


def _header_bytes(header: VoteHeader) -> bytes:
    body = json.dumps({**header._asdict(), "settings": dict(header.settings)}, sort_keys=True).encode()
    return _MAGIC + body + b" %08x\n" % zlib.crc32(body)


def _as_header(data: bytes) -> VoteHeader:
    """Return the header that these bytes are.

    Raises:
        ValueError, KeyError, TypeError: they are none.
    """
    body, checksum = data[len(_MAGIC) : -1].rsplit(b" ", 1)
    if checksum != b"%08x" % zlib.crc32(body):
        raise ValueError(f"its checksum is {checksum.decode(errors='replace')}, not {zlib.crc32(body):08x}")
    fields = json.loads(body)
    settings, row, rule, selects = (fields[name] for name in VoteHeader._fields)
    if not isinstance(settings, dict):
        raise ValueError(f"settings are {in_brief(settings)}")
    if not isinstance(row, list) or not row or not all(type(size) is int and size >= 1 for size in cast(Any, row)):
        raise ValueError(f"votes of shape {in_brief(row)}")
    if not isinstance(rule, str) or not isinstance(selects, bool):
        raise ValueError(f"the rule {in_brief(rule)}, selects {in_brief(selects)}")
    return VoteHeader(cast(Any, settings), tuple(cast(Any, row)), rule, selects)


def is_torn(path: Path, header: VoteHeader) -> bool:
    """Return whether a crash left the file with only a part of this header."""
    whole = _header_bytes(header)
    data = path.read_bytes() if path.stat().st_size < len(whole) else whole
    return whole.startswith(data) and len(data) < len(whole)


def refuse_other(path: Path, found: VoteHeader, wanted: VoteHeader) -> None:
    """Refuse a file that was made under other settings, and say which ones. Newer packages of some kinds are a warning.

    Votes cannot depend on NumPy or SciPy: XLA draws and counts. Bounds come from SciPy, and are decided in each run.
    """
    harmless, wrong = list[str](), list[str]()
    for name, words in differences(_flat(found), _flat(wanted)).items():
        (harmless if name in ("versions.numpy", "versions.scipy") else wrong).append(f"{name}: {words}")
    if wrong:
        raise OtherRunError(f"{path} was made under other settings: {'; '.join(wrong)}")
    if harmless:
        warnings.warn(f"{path}: {'; '.join(harmless)}. Votes do not depend on it", stacklevel=6)


def _flat(header: VoteHeader) -> dict[str, Any]:
    """Return all that must be the same, by name."""
    settings = dict(header.settings)
    versions = settings.pop("versions", {})
    rest = {"classes": list(header.row), "rule": header.rule, "selects": header.selects}
    return {**settings, **{f"versions.{name}": value for name, value in versions.items()}, **rest}


def _read(path: Path) -> tuple[bytes, list[VoteRow], int, str]:
    """Return the header, the whole records, where they end, and what is damaged after them."""
    if path.is_dir():
        raise ValueError(f"{path} is a directory: the votes of a log are beside it, in <log>.votes")
    data = path.read_bytes()
    end = data.find(b"\n", len(_MAGIC)) + 1
    if data.startswith(b"idx\t"):
        raise ValueError(f"{path} is a log: its votes are in {path.name}.votes")
    if not data.startswith(_MAGIC) or end == 0:
        raise ValueError(f"{path} is no file of votes of jaxsmooth, or one of another version")
    try:
        kind = _record_type(_as_header(data[:end]).row)
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError, MemoryError) as error:
        raise ValueError(f"{path} has a damaged header: {error}") from None
    records = np.frombuffer(data, kind, (len(data) - end) // kind.itemsize, end)
    rows: list[VoteRow] = []
    damage = ""
    for place, record in enumerate(records):
        if zlib.crc32(record.tobytes()[:-4]) != record["checksum"]:
            if place < len(records) - 1:  # the last one was torn by a crash, as is expected
                damage = f"{path} is damaged in record {place} of {len(records)}"
            break
        rows.append(_row(record))
    return data[:end], rows, end + len(rows) * kind.itemsize, damage


def _row(record: Any) -> VoteRow:
    values = {name: record[name].item() for name in VoteRow._fields if record[name].ndim == 0}
    return VoteRow(**values, selection=np.array(record["selection"]), counts=np.array(record["counts"]))
