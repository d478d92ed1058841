"""Certify a whole data set, so that a crash loses nothing: what is done is on the disk, and the same call goes on."""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import jax
import numpy as np

from jaxsmooth.callables import split_callable
from jaxsmooth.certify import certificate, check_bound
from jaxsmooth.checks import check_alpha, check_classifier, check_integer, check_key, check_noise
from jaxsmooth.logs import COLUMNS, LogRow, format_row, write_log
from jaxsmooth.precision import certify_within
from jaxsmooth.progress import progress_bar
from jaxsmooth.sequential import certify_radii
from jaxsmooth.stores import StoredVotes, VoteStore
from jaxsmooth.types import Classifier, Noise
from jaxsmooth.votes import count_votes, decision_keys, stream_votes

Rule = Callable[[np.ndarray, np.ndarray], list[tuple[int, float, int, np.ndarray, np.ndarray]]]
"""Returns class, radius, number of votes, selection and estimation votes of each input, from inputs and ids."""


class _Run(NamedTuple):
    """What a run needs beside the data: the rule, what its header says, and how to count selection votes again."""

    rule: Rule
    settings: dict[str, Any]
    selection: Callable[[np.ndarray, np.ndarray], np.ndarray]


def certify_dataset(
    f: Classifier,
    noise: Noise,
    key: jax.Array,
    data: Any,
    path: str | Path,
    *,
    radii: Sequence[float] | None = None,
    precision: float | None = None,
    n0: int = 100,
    n: int = 100_000,
    alpha: float = 1e-3,
    bound: Literal["cohen", "runner_up"] = "cohen",
    batch_size: int = 256,
    group: int = 16,
    skip: int = 1,
    most: int | None = None,
    compiled: bool = True,
    verbose: bool = True,
) -> list[LogRow]:
    """Certify inputs of a data set into a log, and go on where an earlier call with the same arguments was ended.

    Input i is certified as `certify(f, noise, key, x[i : i + 1], ids=[i])` certifies it, or `certify_radii` with radii,
    or `certify_within` with a precision: skipping, order, grouping and restarting change no certificate. Two files
    are written: `<path>`, the log in Cohen's columns, and `<path>.votes`, which keeps the votes (`read_votes`) and is
    what a run resumes from. A group is on the disk before the next one begins.

    Args:
        f, noise, key, n0, n, alpha, bound, batch_size: as for `certify`; see `certify_radii` and `certify_within`.
        data: pairs (x, label): anything with a length and an index, such as a torch `Dataset`, or an iterable in a
            fixed order. x is a floating-point array `[*event]`.
        path: of the log.
        radii, precision: at most one of them, to certify with as few votes as it takes.
        group: inputs that are certified together, at least 1.
        skip: certify every skip-th input, those of index 0, skip, 2 skip, ...
        most: certify inputs of an index below this alone.
        compiled: run f within a compiled step; if false call it, any function of a JAX array.
        verbose: show a bar (needs tqdm, the extra `progress`).

    Returns:
        The rows of the log, in the order of their indices.

    Raises:
        ValueError, TypeError: an argument is not as described; the files are of other settings, of another classifier,
            or damaged. They are left as they were.

    Example:
        >>> import tempfile
        >>> from jaxsmooth import Gaussian
        >>> data = [(np.full(3, value, np.float32), int(value < 0)) for value in (-1.0, 0.5, 2.0)]
        >>> f = lambda x: jax.numpy.stack([x[:, 0], -x[:, 0]], -1)
        >>> path = Path(tempfile.mkdtemp()) / "run.tsv"
        >>> rows = certify_dataset(f, Gaussian(0.5), jax.random.key(0), data, path, n=1000, verbose=False)
        >>> [(row.label, row.predict) for row in rows]
        [(1, 1), (0, 0), (0, 0)]
    """
    run = _prepare(f, noise, key, radii, precision, n0, n, alpha, bound, batch_size, compiled)
    group, skip = check_integer("group", group, 1), check_integer("skip", skip, 1)
    pairs = _pairs(data, skip, most)
    return _certify(run, pairs, _length(data, skip, most), Path(path), group, verbose)


def _prepare(
    f: Classifier,
    noise: Noise,
    key: jax.Array,
    radii: Sequence[float] | None,
    precision: float | None,
    n0: int,
    n: int,
    alpha: float,
    bound: Any,
    batch_size: int,
    compiled: bool,
) -> _Run:
    check_classifier(f)
    noise, key, alpha = check_noise(noise), check_key(key), check_alpha(alpha)
    n0, n, batch_size = (check_integer(k, v, 1, 2**30) for k, v in (("n0", n0), ("n", n), ("batch_size", batch_size)))
    check_bound(bound, noise)
    if radii is not None and precision is not None:
        raise ValueError("radii and precision are two modes: give one of them")
    if radii is not None and bound != "cohen":
        raise ValueError("bound must be 'cohen' with radii")
    selection_key, estimation_key = decision_keys(key)
    count = count_votes if compiled else stream_votes
    common: Any = {"n0": n0, "n": n, "alpha": alpha, "batch_size": batch_size}

    def selection(x: np.ndarray, ids: np.ndarray) -> np.ndarray:
        return np.asarray(count(f, noise, selection_key, x, n=n0, batch_size=batch_size, ids=ids))

    def fixed(x: np.ndarray, ids: np.ndarray) -> Any:
        chosen = selection(x, ids)
        counts = count(f, noise, estimation_key, x, n=n, batch_size=batch_size, ids=ids)
        result = certificate(chosen, counts, noise, n=n, alpha=alpha, bound=bound)
        return _columns(result.label, result.radius, np.full(len(x), n), chosen, counts)

    def on_grid(x: np.ndarray, ids: np.ndarray) -> Any:
        grid = cast(Sequence[float], radii)
        result = certify_radii(f, noise, key, x, grid, ids=ids, compiled=compiled, **common)
        chosen = selection(x, ids)
        counts = np.zeros_like(chosen)
        counts[np.arange(len(x)), np.asarray(result.state.label)] = result.state.hits
        return _columns(result.label, result.radius, result.votes, chosen, counts)

    def within(x: np.ndarray, ids: np.ndarray) -> Any:
        share = cast(float, precision)
        result = certify_within(f, noise, key, x, share, ids=ids, bound=bound, compiled=compiled, **common)
        return _columns(result.label, result.radius, result.votes, result.selection, result.counts)

    rule = on_grid if radii is not None else within if precision is not None else fixed
    settings: dict[str, Any] = {"radii": None if radii is None else [float(radius) for radius in radii]}
    settings |= {"precision": precision, "n0": n0, "n": n, "alpha": alpha, "bound": bound}
    return _Run(rule, {**settings, **_origin(f, noise, key)}, selection)


def _origin(f: Classifier, noise: Noise, key: jax.Array) -> dict[str, Any]:
    """Return what the votes of a run come from, in a form for its header."""
    return {
        "noise": type(noise).__name__,
        "norm": noise.norm,
        "scale": [float(np.asarray(leaf, np.float32)) for leaf in jax.tree.leaves(noise)],
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "classifier": _digest(f),
        "versions": {name: version(name) for name in ("jaxsmooth", "jax", "jaxlib", "numpy", "scipy")},
    }


def _certify(run: _Run, pairs: Iterator[Any], total: int, path: Path, group: int, verbose: bool) -> list[LogRow]:
    store: VoteStore | None = None
    done: dict[int, StoredVotes] = {}
    try:
        with progress_bar("inputs", total, verbose) as advance:
            for batch in _groups(pairs, group):
                ids, x, labels = (np.array(column) for column in zip(*batch, strict=True))
                if store is None:
                    store = _open(run, path, x[:1], ids[:1])
                    done = {row.idx: row for row in store.rows}
                open_ = np.array([idx not in done for idx in ids.tolist()])
                if open_.any():
                    rows = _certified(run.rule, ids[open_], x[open_], labels[open_])
                    for row in rows:
                        store.append(row)
                        done[row.idx] = row
                    with path.open("a", encoding="utf-8") as log:
                        log.writelines(format_row(_log_row(row)) + "\n" for row in rows)
                advance(len(done))
        ordered = [_log_row(done[idx]) for idx in sorted(done)]
        write_log(path, ordered)
        return ordered
    finally:
        if store is not None:
            store.close()


def _certified(rule: Rule, ids: np.ndarray, x: np.ndarray, labels: np.ndarray) -> list[StoredVotes]:
    began = time.perf_counter()
    results = rule(x, ids)
    seconds = (time.perf_counter() - began) / len(ids)
    return [
        StoredVotes(int(idx), int(label), int(predict), float(radius), seconds, int(votes), selection, counts)
        for idx, label, (predict, radius, votes, selection, counts) in zip(ids, labels, results, strict=True)
    ]


def _open(run: _Run, path: Path, x: np.ndarray, ids: np.ndarray) -> VoteStore:
    """Open the store, once the first input gives the same selection votes as it did, and write the log anew from it."""
    selection = run.selection(x, ids)
    settings = {**run.settings, "dtype": x.dtype.name, "shape": list(x.shape[1:])}
    votes = path.with_name(path.name + ".votes")
    if path.exists() and not votes.exists():
        raise ValueError(f"{path} is there without {votes}: it is no log to go on from, and is not overwritten")
    path.parent.mkdir(parents=True, exist_ok=True)
    store = VoteStore(votes, settings, selection.shape[1])
    first = next((row for row in store.rows if row.idx == ids[0]), None)
    if first is not None and not np.array_equal(first.selection, selection[0]):
        store.close()
        raise ValueError(
            f"{votes} is of another classifier, data set or machine: input {ids[0]} got selection votes "
            f"{first.selection.tolist()}, and now {selection[0].tolist()}"
        )
    if store.rows:
        write_log(path, [_log_row(row) for row in store.rows])
    else:
        path.write_text("\t".join(COLUMNS) + "\n", encoding="utf-8")
    return store


def _columns(*columns: Any) -> Any:
    return list(zip(*map(np.asarray, columns), strict=True))


def _log_row(row: StoredVotes) -> LogRow:
    return LogRow(row.idx, row.label, row.predict, row.radius, row.seconds)


def _digest(f: Any) -> str:
    """Return a digest of the arrays in a callable pytree."""
    digest = hashlib.sha256()
    for array in split_callable(f)[0]:
        digest.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _pairs(data: Any, skip: int, most: int | None) -> Iterator[tuple[int, np.ndarray, int]]:
    """Yield index, input and label of the inputs that are wanted."""
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        wanted = range(0, len(data) if most is None else min(most, len(data)), skip)
        items: Iterable[tuple[int, Any]] = ((idx, data[idx]) for idx in wanted)
    else:
        items = ((idx, pair) for idx, pair in enumerate(data) if idx % skip == 0)
    for idx, (x, label) in items:
        if most is not None and idx >= most:
            return
        yield idx, np.asarray(x), int(label)


def _length(data: Any, skip: int, most: int | None) -> int:
    number = len(data) if hasattr(data, "__len__") else most or 0
    return -(-min(number, number if most is None else most) // skip)


def _groups(pairs: Iterator[Any], size: int) -> Iterator[list[Any]]:
    group: list[Any] = []
    for pair in pairs:
        group.append(pair)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
