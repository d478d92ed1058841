"""The files of a run that several processes share: one log and one store of votes for each, merged to one log."""

from pathlib import Path

from jaxsmooth._claims import claim
from jaxsmooth.logs import LogRow, planned_inputs, read_log, write_log
from jaxsmooth.share_files import in_order, list_stores
from jaxsmooth.stores import VoteRow, VoteStore, refuse_other

__all__ = ["merge_shares"]


def merge_shares(path: str | Path) -> list[LogRow]:
    """Write one log of the files that the processes of a run wrote, and return its rows.

    Where JAX runs in several processes (`jax.distributed`), process i of c takes inputs i, i + c, i + 2c, ... and
    writes files of its own, `<stem>.<index>-of-<count><suffix>`. A process that dies leaves only its share undone. Any
    later call of `certify_dataset`, with the same number of processes or another, goes on from the files of all.

    Args:
        path: of the log, as it was given to `certify_dataset` in each process.

    Raises:
        ValueError: there are no such files, they are of different settings, or two of them certify an input
            differently. The log stays as it was.

    Example:
        >>> import tempfile
        >>> import jax
        >>> import numpy as np
        >>> from jaxsmooth import Fixed, Gaussian, certify_dataset
        >>> data = np.eye(4, dtype=np.float32), np.arange(4)
        >>> path, f = Path(tempfile.mkdtemp()) / "run.tsv", lambda x: x
        >>> for index in range(2):
        ...     rows = certify_dataset(
        ...         f, Gaussian(0.2), jax.random.key(0), data, path, mode=Fixed(n=100), share=(index, 2), progress=False
        ...     )
        >>> [(row.idx, row.predict) for row in merge_shares(path)]
        [(0, 0), (1, 1), (2, 2), (3, 3)]
    """
    path = Path(path)
    merged = read_shares(path)
    write_log(path, merged)
    return merged


def read_shares(path: Path) -> list[LogRow]:
    """Return the rows of the log that `merge_shares` writes, and write nothing.

    Raises:
        ValueError: as `merge_shares`.
    """
    found = {store: VoteStore.read(store) for store in list_stores(path)}
    if not found and list_stores(path.with_name(f"{path.stem}.selector{path.suffix}")):
        raise ValueError(f"{path} is a run at levels of noise: certify_levels_dataset without share= writes its log")
    if not found:
        raise ValueError(f"there is no file of votes of {path}: expected {path.name}.votes or those of its shares")
    first = next(iter(found))
    if found[first][0].settings.get("mode") == "votes":
        raise ValueError(f"{path} has votes only, of which there is no log: count_dataset without share= returns all")
    done: dict[int, VoteRow] = {}
    for store, (header, rows) in found.items():
        refuse_other(store, header, found[first][0])
        for row in rows:
            # Two processes may have certified the same input, after a crash. They must agree.
            other = done.setdefault(row.idx, row)
            if (other.predict, other.radius, other.input, other.label) != (
                row.predict,
                row.radius,
                row.input,
                row.label,
            ):
                raise ValueError(f"{store} certifies input {row.idx} otherwise than another file of {path}")
    # How many inputs the run has stands in the logs of the shares.
    logs = [store.with_suffix("") for store in found]
    settings = {**found[first][0].settings, "inputs": max(map(planned_inputs, logs)) or None}
    lost = _inputs_of(path) - set(done)
    if lost:
        raise ValueError(f"{path} has {len(lost)} inputs that no file of votes has: those of a share are missing")
    return in_order(done.values(), claim(settings))


def _inputs_of(log: Path) -> set[int]:
    """Return the inputs of a log; none where it is not there, or damaged."""
    try:
        return {row.idx for row in read_log(log)} if log.exists() else set()
    except ValueError:
        return set()
