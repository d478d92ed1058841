"""Certify a whole data set, so that a crash loses nothing: what is done is on the disk, and the same call goes on."""

import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxsmooth.anytime import AnytimeCertificate
from jaxsmooth.checks import check_integer
from jaxsmooth.datasets import Item, count_items, describe, list_items
from jaxsmooth.logs import HEADER, LogRow, format_row, write_log
from jaxsmooth.noise_report import NoiseReport
from jaxsmooth.progress import progress_bar
from jaxsmooth.rules import Rule, claim, make_prediction_rule, make_rule
from jaxsmooth.shares import check_share, in_order, list_stores, log_row, read_share, share_path
from jaxsmooth.stores import StoredVotes, VoteStore
from jaxsmooth.types import Classifier, Noise


def certify_dataset(
    f: Classifier,
    noise: Noise,
    key: jax.Array,
    data: Any,
    path: str | Path,
    *,
    radii: Sequence[float] | None = None,
    precision: float | None = None,
    until: Callable[[AnytimeCertificate], bool] | None = None,
    n0: int = 100,
    n: int = 100_000,
    alpha: float = 1e-3,
    bound: Literal["cohen", "runner_up"] = "cohen",
    batch_size: int = 256,
    group: int | None = None,
    skip: int = 1,
    most: int | None = None,
    compiled: bool = True,
    devices: Sequence[Any] | None = None,
    share: tuple[int, int] | None = None,
    check: bool = True,
    verbose: bool = True,
) -> list[LogRow]:
    """Certify inputs of a data set into a log, and go on where an earlier call with the same arguments was ended.

    Input i is certified as by `certify(f, noise, key, x[i : i + 1], ids=[i])`, or `certify_radii` with radii,
    `certify_within` with a precision, `certify_anytime` until a condition holds or n votes are cast: skipping, order,
    grouping, devices, processes and restarting change no certificate. The log has Cohen's columns and ours; beside it
    `<path>.votes` keeps the votes (`read_votes`), group by group, for a run to resume from. See `merge_shares`, too.

    Args:
        f, noise, key, n0, n, alpha, bound, batch_size: as for `certify`; see `certify_radii` and `certify_within`.
        data: pairs (x, label): a torch `Dataset`, say, or any iterable in fixed order; or two arrays. x is `f[*event]`.
        path: of the log.
        radii, precision, until: at most one of them, to certify with as few votes as it takes.
        group: inputs that are certified together. By default one where n is large, more where it is small.
        skip, most: certify the inputs of index 0, skip, 2 skip, ... below most.
        compiled: run f within a compiled step; if false call it, any function of a JAX array.
        devices: to run a compiled f on, each with a batch of its own; all of this process by default.
        share: which part of the inputs to certify, (index, count); by default that of this process among all of JAX's.
        check: first test f as `check_classifier` does, and the noise as `noise_report` does, into `<path>.noise`.
        verbose: show a bar (needs tqdm, the extra `progress`).

    Returns:
        The rows of the log for the inputs of this share, in the order of their indices.

    Raises:
        ValueError, TypeError: an argument is not as described; f or the noise fails a test; the files are damaged, or
            another run's, and stay as they were. OSError: the disk is full, say; what was written before stays.

    Example:
        >>> import jaxsmooth, tempfile
        >>> path, data = Path(tempfile.mkdtemp()) / "run.tsv", (np.eye(3, dtype=np.float32), np.arange(3))
        >>> rows = certify_dataset(lambda x: x, jaxsmooth.Gaussian(0.2), jax.random.key(0), data, path, verbose=False)
        >>> [(row.label, row.predict) for row in rows]
        [(0, 0), (1, 1), (2, 2)]
    """
    rule = make_rule(f, noise, key, radii, precision, until, n0, n, alpha, bound, batch_size, compiled, devices)
    return _start(rule, data, path, group, skip, most, share, check, verbose)


def predict_dataset(
    f: Classifier,
    noise: Noise,
    key: jax.Array,
    data: Any,
    path: str | Path,
    *,
    n: int = 1000,
    alpha: float = 1e-3,
    batch_size: int = 256,
    group: int | None = None,
    skip: int = 1,
    most: int | None = None,
    compiled: bool = True,
    devices: Sequence[Any] | None = None,
    share: tuple[int, int] | None = None,
    check: bool = True,
    verbose: bool = True,
) -> list[LogRow]:
    """Predict inputs of a data set into a log, and go on where an earlier call with the same arguments was ended.

    Input i gets the prediction of `predict(f, noise, key, x, n=n, alpha=alpha)` for the id i: a class, or an abstention
    at level alpha. All else is as in `certify_dataset`; the radius in the log is 0.

    Args:
        f, noise, key, n, alpha, batch_size: as for `predict`.
        data, path, group, skip, most, compiled, devices, share, check, verbose: as for `certify_dataset`.

    Raises:
        ValueError, TypeError, OSError: as `certify_dataset`.

    Example:
        >>> import tempfile
        >>> from jaxsmooth import Gaussian
        >>> path, data = Path(tempfile.mkdtemp()) / "run.tsv", (np.eye(3, dtype=np.float32), np.arange(3))
        >>> rows = predict_dataset(lambda x: x, Gaussian(0.2), jax.random.key(0), data, path, verbose=False)
        >>> [row.predict for row in rows]
        [0, 1, 2]
    """
    rule = make_prediction_rule(f, noise, key, n, alpha, batch_size, compiled, devices)
    return _start(rule, data, path, group, skip, most, share, check, verbose)


def _start(
    rule: Rule,
    data: Any,
    path: str | Path,
    group: int | None,
    skip: int,
    most: int | None,
    share: tuple[int, int] | None,
    check: bool,
    verbose: bool,
) -> list[LogRow]:
    """Run a rule over this process's share of the data."""
    size = rule.group if group is None else check_integer("group", group, 1)
    skip, most = check_integer("skip", skip, 1), None if most is None else check_integer("most", most, 0)
    part = check_share(share)
    items, total = list_items(data, skip, most, part), count_items(data, skip, most, part)
    own = share_path(Path(path), *part)
    return _certify(rule, items, total, own, Path(path), size, check and not own.exists(), verbose)


class _Progress(NamedTuple):
    """What the bar shows: how many inputs are right so far, and how many votes they took."""

    done: int = 0
    correct: int = 0
    votes: int = 0

    def add(self, rows: list[StoredVotes]) -> "_Progress":
        correct = sum(row.predict == row.label for row in rows)
        return _Progress(self.done + len(rows), self.correct + correct, self.votes + sum(row.votes for row in rows))

    def notes(self, n: int) -> dict[str, str]:
        shown, saved = {"accuracy": f"{self.correct / max(self.done, 1):.3f}"}, 1 - self.votes / (n * max(self.done, 1))
        return shown | {"votes_saved": f"{saved:.1%}"} if saved > 0 else shown


def _certify(
    rule: Rule, items: Iterator[Item], total: int | None, own: Path, path: Path, size: int, check: bool, verbose: bool
) -> list[LogRow]:
    first = next(items, None)
    if first is None:
        if not own.exists():
            write_log(own, [])
        return []
    x, _ = first.load()
    like, progress, wanted = describe(x), _Progress(), list[StoredVotes]()
    settings = {**rule.settings, **like}
    words = claim(settings)
    if path.exists() and not list_stores(path):
        raise ValueError(f"{path} is there without a file of votes: it is no log to go on from, and is not overwritten")
    report = rule.examine(x[None], np.array([first.idx])) if check else None
    with _open(rule, settings, own, first.idx, x) as store, progress_bar("inputs", total, verbose) as advance:
        if report is not None:
            _write_report(own.with_name(own.name + ".noise"), report)
        done = {row.idx: row for other in list_stores(path) for row in read_share(other, settings)}
        for batch in _batches(itertools.chain([first], items), size):
            undone = [item for item in batch if item.idx not in done]
            if undone:
                rows = _certified(rule, undone, like)
                for row in rows:
                    store.append(row)
                    done[row.idx] = row
                with own.open("a", encoding="utf-8") as log:
                    log.writelines(format_row(log_row(row, words)) + "\n" for row in rows)
            wanted += [done[item.idx] for item in batch]
            progress = progress.add(wanted[-len(batch) :])
            advance(progress.done, **progress.notes(rule.settings["n"]))
        write_log(own, in_order(done.values() if own == path else store.rows, words))
    return in_order(wanted, words)


def _certified(rule: Rule, batch: list[Item], like: dict[str, Any]) -> list[StoredVotes]:
    """Certify a group of inputs."""
    pairs = [item.load(like) for item in batch]
    ids, began = np.array([item.idx for item in batch]), time.perf_counter()
    columns = map(np.asarray, rule.certify(np.stack([x for x, _ in pairs]), ids))
    results = list(zip(*columns, strict=True))
    seconds = (time.perf_counter() - began) / len(ids)
    return [
        StoredVotes(item.idx, label, int(predict), float(radius), seconds, int(votes), selection, counts)
        for item, (_, label), (predict, radius, votes, selection, counts) in zip(batch, pairs, results, strict=True)
    ]


def _open(rule: Rule, settings: dict[str, Any], path: Path, idx: int, x: np.ndarray) -> VoteStore:
    """Open the store, once the first input gives the same selection votes as it did, and write the log anew from it."""
    selection = rule.select(x[None], np.array([idx]))[0]
    votes = path.with_name(path.name + ".votes")
    path.parent.mkdir(parents=True, exist_ok=True)
    store = VoteStore(votes, settings, len(selection))
    before = next((row for row in store.rows if row.idx == idx), None)
    if before is not None and not np.array_equal(before.selection, selection):
        store.close()
        raise ValueError(
            f"{votes} is of another classifier, data set or machine: input {idx} got selection votes "
            f"{before.selection.tolist()}, and now {selection.tolist()}"
        )
    if store.rows:
        write_log(path, [log_row(row, claim(settings)) for row in store.rows])
    else:
        path.write_text(HEADER + "\n", encoding="utf-8")
    return store


def _write_report(path: Path, report: NoiseReport) -> None:
    """Write what the tests of the noise found, as JSON."""
    tests = {name: {"value": value, "limit": limit} for name, value, limit in report.statistics}
    found = {**report._asdict(), "statistics": tests, "failed": report.failed}
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _batches(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    while batch := list(itertools.islice(items, size)):
        yield batch
