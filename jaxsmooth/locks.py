"""One writer at a time: a lock that ends with its process, also on network disks."""

import os
import socket
import threading
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_held: set[Path] = set()
_guard = threading.Lock()


class FileLock:
    """The right to write to a file, held until `release` or the end of the process.

    It is a lock of the operating system on `<name>.lock` beside the file, so that a process that dies does not keep it.
    The file stays: to remove it could let two processes hold locks on two files of one name.

    Args:
        path: of the file that is to be written.

    Raises:
        BlockingIOError: someone else writes to it.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "run.votes"
        >>> lock = FileLock(path)
        >>> FileLock(path)
        Traceback (most recent call last):
        ...
        BlockingIOError: ...run.votes is being written by process ... on ...: two runs cannot share a file...
        >>> lock.release()
    """

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()
        own = f"process {os.getpid()} on {socket.gethostname()}"
        with _guard:
            # Locks of the system are between processes: within this one, a set keeps account. It is asked first,
            # because a process that closes any handle of a file loses its lock on it.
            if self._path in _held:
                raise _refusal(path, own)
            self._file = open(self._path.with_name(self._path.name + ".lock"), "a+", encoding="utf-8")  # noqa: SIM115
            if not self._take():
                self._file.seek(0)
                owner = self._file.read() or "another process"
                self._file.close()
                raise _refusal(path, owner)
            _held.add(self._path)
        self._file.truncate(0)
        self._file.write(own)
        self._file.flush()

    def _take(self) -> bool:
        """Take the lock of the system, if it is free."""
        if fcntl is None:
            import msvcrt

            try:
                self._file.seek(2**20)  # beyond the text, which others read
                msvcrt.locking(self._file.fileno(), msvcrt.LK_NBLCK, 1)  # pyright: ignore
            except OSError:
                return False
            return True
        try:
            # lockf, not flock: it holds on network disks, too.
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def release(self) -> None:
        """Let others write."""
        with _guard:
            _held.discard(self._path)
            self._file.close()


def _refusal(path: Path, owner: str) -> BlockingIOError:
    return BlockingIOError(
        f"{path} is being written by {owner}: two runs cannot share a file. Wait, or give another path"
    )
