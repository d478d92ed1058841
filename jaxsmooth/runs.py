"""Certify a whole data set so that a crash loses nothing: what is done is on the disk, and the same call resumes."""

import contextlib
import itertools
import json
import math
import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsmooth._checks import as_batch_size, as_n, as_noise
from jaxsmooth._claims import NO_TRUTH, NOT_IDENTIFIED, claim, input_digest, origin
from jaxsmooth._host_loop import (
    DECISION,
    Requests,
    Step,
    as_host_task,
    count_requests,
    key_data,
    make_step,
    scores_of_first,
)
from jaxsmooth._modes import Mode, Sampler, run
from jaxsmooth._resumption import Resumption
from jaxsmooth.anytime import Anytime
from jaxsmooth.arguments import as_alpha, as_flag, as_integer, as_key, refuse_uncallable, refuse_unpaired
from jaxsmooth.certificates import Fixed
from jaxsmooth.classifiers import refuse_faults
from jaxsmooth.datasets import Item, count_items, describe, item_at, labels_of, list_items
from jaxsmooth.devices import over_devices
from jaxsmooth.logs import HEADER, LogRow, format_row, planned_inputs, write_log
from jaxsmooth.noise_tests import NoiseReport, noise_report
from jaxsmooth.precision import Within
from jaxsmooth.predictions import prediction
from jaxsmooth.progress import progress_bar
from jaxsmooth.sequential import Grid
from jaxsmooth.share_files import (
    as_share,
    in_order,
    list_share_stores,
    list_stores,
    log_row,
    read_share,
    share_path,
    votes_path,
)
from jaxsmooth.stores import StoredRun, VoteHeader, VoteRow, VoteStore, stored_run, undecided
from jaxsmooth.types import Certificate, Classifier, Noise, RandomClassifier, Votes
from jaxsmooth.whole_files import write_whole

__all__ = ["certify_dataset", "count_dataset", "predict_dataset"]

_FIXED = Fixed()


def certify_dataset(
    f: Classifier,
    noise: Noise,
    key: jax.Array,
    data: Any,
    path: str | Path,
    *,
    mode: Fixed | Grid | Within | Anytime = _FIXED,
    alpha: float = 1e-3,
    batch_size: int = 256,
    group: int | None = None,
    skip: int = 1,
    most: int | None = None,
    compiled: bool = True,
    devices: Sequence[Any] | None = None,
    share: tuple[int, int] | None = None,
    check: bool = True,
    progress: bool = True,
) -> list[LogRow]:
    """Certify inputs of a data set into a log, and go on where an earlier call with the same arguments was ended.

    Input i gets the certificate of `certify(f, noise, key, x[i : i + 1], ids=[i])`, or of the function of another mode.
    Skipping, order, grouping, devices, processes and restarting change no certificate. The log has Cohen's columns and
    ours. Beside it `<path>.votes` keeps the votes (`read_votes`), group by group, for a run to resume from. See
    `merge_shares`, too.

    A run goes on with the same classifier, inputs and labels only. A classifier whose weights JAX or the bridges can
    see is told by them. Any other is called "not identified" in the file of votes. Each votes again on the finished
    inputs whose votes were closest; of other processes, also at the end, since they may have begun together.

    Args:
        f, noise, key, alpha, batch_size: as for `certify`.
        data: pairs (x, label): a torch `Dataset`, a list, or any iterable in fixed order; or two arrays. x is
            `f[*event]`.
        path: of the log.
        mode: what is fixed in advance: `Fixed(n0=100, n=100_000)`, `Grid(radii)`, `Within(precision)` or
            `Anytime(until)`.
        group: inputs that are certified together. By default one where n is large, more where it is small.
        skip, most: certify the inputs of index 0, skip, 2 skip, ... below most.
        compiled: run f inside a compiled step; if false call it, any function of a JAX array.
        devices: to run a compiled f on, each with a batch of its own; all of this process by default.
        share: which part of the inputs to certify, (index, count); by default that of this process among all of JAX's.
        check: first test f as `check_classifier` does, and the noise as `noise_report` does, into `<path>.noise`;
            a noise without a `cdf`, such as those of norm 0, is not tested.
        progress: show a bar if tqdm is installed (the extra `progress`), else a line every few seconds.

    Returns:
        The rows of the log for the inputs of this share, in the order of their indices.

    Raises:
        ValueError, TypeError: an argument is not as described; f or the noise fails a test; the files are those of
            another classifier, other data, labels or settings, and stay as they were. BlockingIOError: another process
            writes to this log. OSError: for example, the disk is full; what was written before stays.

    Example:
        >>> import jaxsmooth, tempfile
        >>> path, data = Path(tempfile.mkdtemp()) / "run.tsv", (np.eye(3, dtype=np.float32), np.arange(3))
        >>> rows = certify_dataset(lambda x: x, jaxsmooth.Gaussian(0.2), jax.random.key(0), data, path, progress=False)
        >>> [(row.label, row.predict) for row in rows]
        [(0, 0), (1, 1), (2, 2)]
    """
    if not isinstance(mode, (Fixed, Grid, Within, Anytime)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"mode must be Fixed(...), Grid(...), Within(...) or Anytime(...), got {mode!r}")
    if isinstance(mode, Anytime) and group not in (None, 1):
        raise ValueError(f"group must be 1 with Anytime, whose condition is about one input, got {group}")
    job = certify_job(f, noise, key, mode, as_alpha(alpha), batch_size, compiled, devices)
    inputs = as_run_inputs(data, skip, most, share)
    return do_job(job, inputs, path, group, check, progress)


def certify_job(
    f: Any, noise: Any, key: Any, mode: Mode, alpha: float, batch_size: Any, compiled: bool, devices: Any
) -> "Job":
    """Return what `certify_dataset` does with each group of inputs."""
    voter = _as_voter(f, noise, key, batch_size, compiled, devices, streams=DECISION)
    mode.refuse_noise(voter.noise)
    return Job(
        certify=lambda x, ids: run(mode, voter.sampler(x, ids), alpha),
        select=lambda x, ids: np.asarray(voter.sampler(x, ids).first(mode.n0, 0, mode.rule).selection),
        examine=partial(_examine, voter),
        settings={**voter.settings, **_settings_of(mode), "alpha": alpha},
        rule=mode.rule,
        selects=True,
        n=mode.n,
        group=_group_of(mode, voter.batch_size),
        is_settled=partial(_is_settled, mode) if isinstance(mode, Anytime) else None,
    )


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
    progress: bool = True,
) -> list[LogRow]:
    """Predict inputs of a data set into a log, and go on where an earlier call with the same arguments was ended.

    Input i gets the prediction of `predict(f, noise, key, x, n=n, alpha=alpha)` for the id i: a class, or an abstention
    at level alpha. Everything else is as in `certify_dataset`; the radius in the log is 0.

    Args:
        f, noise, key, n, alpha, batch_size: as for `predict`.
        data, path, group, skip, most, compiled, devices, share, check, progress: as for `certify_dataset`.

    Raises:
        ValueError, TypeError, OSError: as `certify_dataset`.

    Example:
        >>> import tempfile
        >>> from jaxsmooth import Gaussian
        >>> path, data = Path(tempfile.mkdtemp()) / "run.tsv", (np.eye(3, dtype=np.float32), np.arange(3))
        >>> rows = predict_dataset(lambda x: x, Gaussian(0.2), jax.random.key(0), data, path, progress=False)
        >>> [row.predict for row in rows]
        [0, 1, 2]
    """
    alpha = as_alpha(alpha)
    n = as_n(n)
    few = min(n, 100)
    voter = _as_voter(f, noise, key, batch_size, compiled, devices, streams=None)

    def first_votes(x: np.ndarray, ids: np.ndarray) -> np.ndarray:
        return voter.votes(x, ids, [(0, few)])[:, 0]

    def predict(x: np.ndarray, ids: np.ndarray) -> Certificate:
        # The first votes are kept by themselves, so that a resumed run can tell whether f is the same.
        first, rest = np.moveaxis(voter.votes(x, ids, [(0, few), (few, n - few)]), 1, 0)
        label = prediction(Votes(counts=first + rest, n=n), alpha=alpha).label
        none = np.zeros(label.shape, np.float32)
        return Certificate(label, none, none, Votes(counts=first + rest, n=n, selection=first), alpha=alpha)  # pyright: ignore

    job = Job(
        certify=predict,
        select=first_votes,
        examine=partial(_examine, voter),
        settings={**voter.settings, "mode": "prediction", "n": n, "alpha": alpha},
        rule="fixed",
        selects=False,
        n=n,
        group=_full_group(voter.batch_size, n),
    )
    inputs = as_run_inputs(data, skip, most, share)
    return do_job(job, inputs, path, group, check, progress)


def count_dataset(
    f: Classifier,
    noise: Noise,
    key: jax.Array,
    data: Any,
    path: str | Path,
    *,
    n0: int = 100,
    n: int = 100_000,
    batch_size: int = 256,
    group: int | None = None,
    skip: int = 1,
    most: int | None = None,
    compiled: bool = True,
    devices: Sequence[Any] | None = None,
    share: tuple[int, int] | None = None,
    check: bool = True,
    progress: bool = True,
) -> StoredRun:
    """Count votes on a data set into a file, decide nothing, and go on where an earlier call was ended.

    For decisions that `certify_dataset` has no mode for, and for classifiers with components: `components_certificate`,
    `top_k_certificate`, and `regression_interval` of votes of `AtMost(f, thresholds)` decide from the votes of the run.
    Input i gets the votes of `certify(f, noise, key, x[i : i + 1], n0=n0, n=n, ids=[i])`. Fix n0 and n, and what the
    decision asks for, before you look at any votes. What makes a run go on, or refuses it, is as in `certify_dataset`.

    Args:
        f, noise, key, n0, n, batch_size: as for `certify`; f may return scores `[B, *components, K]`.
        data: an array of inputs `[N, *event]`, or as for `certify_dataset`: the second part of each pair is ignored.
        path: of the file of votes, `<name>.votes`. An input takes 8 bytes for each of its components and classes.
        group, skip, most, compiled, devices, share, check, progress: as for `certify_dataset`.

    Returns:
        What `read_votes` returns for the file, or of a shared run for those of all shares: the inputs that were asked
        for, in order. Its certificate abstains, since nothing was decided.

    Raises:
        ValueError, TypeError, OSError: as `certify_dataset`.

    Example:
        >>> import jaxsmooth, tempfile
        >>> f = lambda x: jax.numpy.stack([x, -x], axis=-1)  # one component for each feature
        >>> path, noise = Path(tempfile.mkdtemp()) / "run.votes", jaxsmooth.Gaussian(0.5)
        >>> run = count_dataset(f, noise, jax.random.key(0), np.eye(3, dtype=np.float32), path, n=500, progress=False)
        >>> run.votes.counts.shape
        (3, 3, 2)
        >>> jaxsmooth.components_certificate(run.votes, noise, tau=0.75).label
        array([[ 0, -1, -1],
               [-1,  0, -1],
               [-1, -1,  0]], dtype=int32)
    """
    mode = Fixed(n0=n0, n=n)
    path = Path(path)
    if path.suffix != ".votes":
        raise ValueError(f"path must be that of a file of votes, <name>.votes, got {path}")
    voter = _as_voter(f, noise, key, batch_size, compiled, devices, streams=DECISION)

    def count(x: np.ndarray, ids: np.ndarray) -> Certificate:
        votes = voter.sampler(x, ids).first(mode.n0, mode.n, mode.rule)
        return undecided(votes)

    job = Job(
        certify=count,
        select=lambda x, ids: np.asarray(voter.sampler(x, ids).first(mode.n0, 0, mode.rule).selection),
        examine=partial(_examine, voter),
        settings={**voter.settings, "mode": "votes", "n0": mode.n0, "n": mode.n, "truth": NO_TRUTH},
        rule=mode.rule,
        selects=True,
        n=mode.n,
        group=_group_of(mode, voter.batch_size),
        has_truth=False,
        decides=False,
    )
    if getattr(data, "ndim", 0) > 1 and not hasattr(data, "iloc"):
        data = data, np.zeros(len(data), int)
    inputs = unlabelled(as_run_inputs(data, skip, most, share))
    log = path.with_suffix("")
    wanted = {row.idx for row in do_job(job, inputs, log, group, check, progress)}
    stores = list_stores(log)
    if not stores:
        raise ValueError("data must have at least one input, got none")
    return stored_run([row for row in _rows_of(log) if row.idx in wanted], VoteStore.read(stores[0])[0])


def _rows_of(log: Path) -> list[VoteRow]:
    """Return the rows of all files of votes of a run, in the order of the inputs."""
    rows = {row.idx: row for store in list_stores(log) for row in VoteStore.read(store)[1]}
    return [rows[idx] for idx in sorted(rows)]


class Job(NamedTuple):
    """What a run does with each group of inputs.

    Attributes:
        certify: from inputs `[N, *event]` and their ids to a `Certificate`.
        select: from the same to the votes by which a resumed run recognises its classifier.
        examine: from the same to a report on the noise; refuses a faulty classifier or noise.
        settings: what must not change within a run, in a form that JSON can hold.
        rule: how the votes are drawn: see `Votes.rule`.
        selects: whether selection votes choose the class.
        is_settled: whether a stored row needs no more votes; None where every row is like that.
        n: most votes of an input.
        group: how many inputs to certify together, by default.
        bar: what the bar says that it counts.
        has_truth: whether the labels of the data are classes of f.
        decides: whether there is a log of one class for each input. If not, there are votes only.
    """

    certify: Callable[[np.ndarray, np.ndarray], Certificate]
    select: Callable[[np.ndarray, np.ndarray], np.ndarray]
    examine: Callable[[np.ndarray, np.ndarray], NoiseReport | None]
    settings: dict[str, Any]
    rule: str
    selects: bool
    n: int
    group: int
    is_settled: Callable[[VoteRow], bool] | None = None
    bar: str = "inputs"
    has_truth: bool = True
    decides: bool = True


class _Voter(NamedTuple):
    """Where the votes of a run come from: everything but the inputs, checked."""

    step: Step
    noise: Noise
    keys: np.ndarray
    batch_size: int
    settings: dict[str, Any]

    def sampler(self, x: np.ndarray, ids: np.ndarray) -> Sampler:
        """Return the samples of some inputs."""
        return Sampler(self.step, as_host_task(self.noise, self.keys, x, ids), self.batch_size)

    def votes(self, x: np.ndarray, ids: np.ndarray, ranges: list[tuple[int, int]]) -> np.ndarray:
        """Return the votes of ranges (first, count) of samples of each input, `i32[N, ranges, *components, K]`."""
        row = np.repeat(np.arange(len(x)), len(ranges))
        first, count = np.tile(np.array(ranges), (len(x), 1)).T
        wanted = np.flatnonzero(count)
        requests = Requests(row[wanted], np.zeros_like(wanted), first[wanted], count[wanted])
        found = count_requests(self.step, self.sampler(x, ids).task, requests, self.batch_size)
        votes = np.zeros((len(row), *found.shape[1:]), np.int32)
        votes[wanted] = found
        return votes.reshape(len(x), len(ranges), *found.shape[1:])


def _as_voter(
    f: Any,
    noise: Any,
    key: Any,
    batch_size: Any,
    compiled: bool,
    devices: Sequence[Any] | None,
    *,
    streams: tuple[int, ...] | None,
) -> _Voter:
    """Check where the votes of a run come from."""
    refuse_uncallable(f)
    if isinstance(f, RandomClassifier) and f.of_batch:
        raise TypeError(
            "f must draw for each row of its own for a run over a data set, got a RandomClassifier with of_batch=True: "
            "after a restart other inputs would share a batch, and votes would be other ones"
        )
    noise = as_noise(noise)
    key = as_key(key)
    settings = origin(f, noise, key)
    f, batch_size = _spread(f, as_batch_size(batch_size), compiled, devices)
    return _Voter(make_step(f, compiled), noise, key_data(key, streams), batch_size, settings)


def _spread(f: Any, batch_size: int, compiled: bool, devices: Sequence[Any] | None) -> tuple[Any, int]:
    """Return the classifier on the devices that are to be used, and the rows of a batch for all of them."""
    if not compiled:
        if devices is not None:
            raise ValueError("devices must be None where compiled is false: f is called here, wherever it runs")
        return f, batch_size
    # Under a mesh of the caller's, work may be spread by that mesh only.
    is_meshed = not jax.sharding.get_abstract_mesh().empty
    count = 1 if is_meshed and devices is None else len(jax.local_devices() if devices is None else devices)
    return (f, batch_size) if devices is None and count == 1 else (over_devices(f, devices), count * batch_size)


def _settings_of(mode: Mode) -> dict[str, Any]:
    """Return what a mode fixes in advance, in a form that JSON can hold."""
    names = ("n0", "n", "bound", "radii", "beta", "looks", "precision", "votes")
    values = {name: getattr(mode, name) for name in names if hasattr(mode, name)}
    settings = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return {"mode": mode.name, **settings}


def _is_settled(mode: Anytime, row: VoteRow) -> bool:
    """Return whether the condition holds for a stored row, or it has all votes that there are."""
    if row.n >= mode.n or mode.until is None:
        return True
    lost = None if math.isnan(row.lost) else np.array([row.lost], np.float32)
    votes = Votes(selection=row.selection[None], counts=row.counts[None], n=row.n, lost=lost, rule=mode.rule)
    label = np.array([row.predict], np.int32)
    radius = np.array([row.radius], np.float32)
    return bool(mode.until(Certificate(label, radius, np.array([row.p_lower], np.float32), votes)))


def _group_of(mode: Mode, batch_size: int) -> int:
    """Return how many inputs to certify together: modes that stop early fill batches from many."""
    if isinstance(mode, Anytime):
        return 1
    return _full_group(batch_size, mode.n0 + mode.n) if isinstance(mode, Fixed) else 64


def _full_group(batch_size: int, votes: int) -> int:
    """Return the least number of inputs, up to 64, whose votes leave at most 0.5 % of the rows of batches unused.

    Example:
        >>> _full_group(256, 100_100), _full_group(64, 1100)
        (1, 4)
    """

    def is_full(inputs: int) -> bool:
        return inputs * votes >= 0.995 * batch_size * -(-inputs * votes // batch_size)

    return next((inputs for inputs in range(1, 64) if is_full(inputs)), 64)


def _examine(voter: _Voter, x: np.ndarray, ids: np.ndarray) -> NoiseReport | None:
    """Test the classifier and the noise on samples of the first input."""
    rows = voter.batch_size
    task = voter.sampler(x[:1], ids[:1]).task
    samples = np.arange(rows, dtype=np.uint32)
    places = np.arange(0, rows - 1, 2)
    # In the second batch every other sample is one place further on, among samples that the first batch does not have.
    moved = samples + np.uint32(rows)
    moved[places + 1] = samples[places]
    # Scores come from the run's own program, so that nothing is compiled for the test.
    refuse_faults(partial(scores_of_first, voter.step, task), samples, moved, rows, (places, places + 1))
    if not hasattr(voter.noise, "cdf"):
        return None
    report = noise_report(voter.noise, as_key(voter.keys[-1]), x[:1], ids=ids[:1])
    if report.failed:
        raise ValueError(f"noise must have the named distribution, but it failed the tests {', '.join(report.failed)}")
    return report


class RunInputs(NamedTuple):
    """The inputs of this process's share.

    Attributes:
        items: in order.
        total: how many they are; None where the data have no length.
        of_run: how many there are in all shares; None likewise.
        share: which part of the inputs they are: an index and a count.
        at: loads any input, also of another share, where the data are indexed; else None.
        labels: indices and labels of all inputs of the run, where they are known in advance.
        indices: of all inputs of the run, where the data have a length.
    """

    items: Iterator[Item]
    total: int | None
    of_run: int | None
    share: tuple[int, int]
    at: Callable[[int], Item] | None
    labels: tuple[np.ndarray, np.ndarray] | None = None
    indices: range | None = None


def as_run_inputs(data: Any, skip: Any, most: Any, share: Any) -> RunInputs:
    """Check which inputs a run is about."""
    skip = as_integer("skip", skip, 1)
    most = None if most is None else as_integer("most", most, 0)
    part = as_share(share)
    items = list_items(data, skip, most, part)
    total, of_run = (count_items(data, skip, most, share) for share in (part, (0, 1)))
    indices = range(0, of_run * skip, skip) if of_run is not None and hasattr(data, "__len__") else None
    return RunInputs(items, total, of_run, part, item_at(data), labels_of(data, skip, most), indices)


def unlabelled(inputs: RunInputs) -> RunInputs:
    """Return inputs whose label is 0: their truth is not known, or no class."""

    def without_label(item: Item) -> Item:
        return Item(item.idx, partial(_first_part, item))

    at = inputs.at
    wrapped: Callable[[int], Item] | None = None if at is None else lambda idx: without_label(at(idx))
    return inputs._replace(items=map(without_label, inputs.items), at=wrapped, labels=None)


def _first_part(item: Item) -> Any:
    pair = item.get()
    refuse_unpaired("data", pair, f"at index {item.idx}")
    return pair[0], 0


class _Request(NamedTuple):
    """What a run is asked for, checked.

    Attributes:
        inputs: of this process's share.
        path: of the log of the whole run.
        own: of the log of this share.
        group: inputs to certify together; None for the mode's own choice.
        check: whether to test the classifier and the noise first.
        progress: whether to show a bar.
    """

    inputs: RunInputs
    path: Path
    own: Path
    group: int | None
    check: bool
    progress: bool


def do_job(job: Job, inputs: RunInputs, path: str | Path, group: Any, check: bool, progress: bool) -> list[LogRow]:
    """Do a job over inputs, and return their rows of the log."""
    return _run(job, _as_request(inputs, path, group, check, progress))


def _as_request(inputs: RunInputs, path: str | Path, group: Any, check: bool, progress: bool) -> _Request:
    """Check what a run is asked for."""
    group = None if group is None else as_integer("group", group, 1)
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"path must be that of a log file, got the directory {path}")
    if path.suffix == ".votes":
        raise ValueError(f"path must be that of the log, got {path}: the votes go to <log>.votes")
    own = share_path(path, *inputs.share)
    # Not again where a run goes on, unless it began with check=False.
    check = as_flag("check", check) and not (votes_path(own).exists() and _report_path(own).exists())
    return _Request(inputs, path, own, group, check, as_flag("progress", progress))


class _Progress(NamedTuple):
    """What the bar shows: how many inputs are right so far, and how many votes they took."""

    done: int = 0
    correct: int = 0
    votes: int = 0

    def add(self, rows: list[VoteRow]) -> "_Progress":
        correct = sum(row.predict == row.label for row in rows)
        return _Progress(self.done + len(rows), self.correct + correct, self.votes + sum(row.n for row in rows))

    def notes(self, n: int) -> dict[str, str]:
        notes = {"accuracy": f"{self.correct / max(self.done, 1):.3f}"}
        saved = 1 - self.votes / (n * max(self.done, 1))
        return notes | {"votes_saved": f"{saved:.1%}"} if saved > 0 else notes


class _Log(NamedTuple):
    """The log of a run; none of a job that decides nothing.

    Attributes:
        path: of the log of this share.
        is_kept: whether there is one.
    """

    path: Path
    is_kept: bool

    def refuse_foreign(self, whole: Path) -> None:
        """Refuse a log of the whole run that no file of votes is beside."""
        if not self.is_kept or not whole.exists() or list_stores(whole):
            return
        if whole.read_text("utf-8", "replace").strip() not in ("", HEADER):
            raise ValueError(
                f"{whole} is there without a file of votes: it is no log to go on from, and is not overwritten"
            )

    def begin(self, store: VoteStore, words: str) -> None:
        """Write the log from the votes on the disk: a crash may have left lines out."""
        if not self.is_kept:
            return
        if store.rows:
            self.write([log_row(row, words) for row in store.rows])
        else:
            self.path.write_text(HEADER + "\n", encoding="utf-8")

    def add(self, rows: list[LogRow]) -> None:
        """Add lines at the end."""
        if self.is_kept:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(format_row(row) + "\n" for row in rows)

    @contextlib.contextmanager
    def kept_up(self, votes: Path, words: str) -> Generator[None]:
        """Write the log from the votes on the disk where a run ends early: an interrupt may come between the two."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError, ValueError):
                self.write([log_row(row, words) for row in VoteStore.read(votes)[1]])
            raise

    def write(self, rows: list[LogRow]) -> None:
        """Replace the log."""
        if self.is_kept:
            write_log(self.path, rows)


def _run(job: Job, request: _Request) -> list[LogRow]:
    """Do a job over the inputs that are asked for, and return their rows of the log."""
    path = request.path
    own = request.own
    items = request.inputs.items
    first = next(items, None)
    log = _Log(own, job.decides)
    if first is None:
        if not own.exists():
            log.write([])
        return []
    items = itertools.chain([first], items)
    x, _ = first.load()
    like = describe(x)
    settings = {**job.settings, **like}
    # Everything that can be refused is refused before a file is touched.
    log.refuse_foreign(path)
    report = job.examine(x[None], np.array([first.idx])) if request.check else None
    # The votes of the first input show how many classes there are, and whether f can be called at all.
    selection = job.select(x[None], np.array([first.idx]))[0]
    if selection.ndim > 1 and job.decides:
        raise ValueError(
            f"f must return scores [B, K], got components of shape {selection.shape[:-1]}: a log has one class for "
            "each input. count_dataset counts the votes of components"
        )
    classes = selection.shape[-1]
    # Not after hours, when that input's turn has come.
    _refuse_beyond(classes, *(request.inputs.labels or (np.zeros(0, int), np.zeros(0, int))))
    if settings["classifier"] == NOT_IDENTIFIED and request.inputs.share[1] > 1 and request.inputs.at is None:
        raise ValueError(
            "data must be indexed (a list, two arrays, a Dataset) where processes share the inputs and the classifier "
            "shows no weights: the votes of the others cannot be compared with it otherwise"
        )
    header = VoteHeader(settings, selection.shape, job.rule, job.selects)
    # What another process or an earlier call certified under the same settings is not certified again.
    files = [read_share(other, header) for other in list_stores(path)]
    done = {row.idx: row for rows in files for row in rows}
    planned = _planned(request.inputs, planned_inputs(own), done)
    words = claim({**settings, "inputs": planned or None})
    resumption = Resumption(files, job.select, job.is_settled, like)
    items = resumption.compared(items, request.inputs.at)
    progress = _Progress()
    wanted: list[VoteRow] = []
    own.parent.mkdir(parents=True, exist_ok=True)
    with VoteStore(votes_path(own), header) as store:
        done |= {row.idx: row for row in store.rows}  # another process may have written until the lock was taken
        log.begin(store, words)
        if report is not None:
            _write_report(_report_path(own), report)
        bar = progress_bar(job.bar, request.inputs.total, request.progress)
        with log.kept_up(votes_path(own), words), bar as advance:
            for batch in _batches(items, request.group or job.group):
                undone = [item for item in batch if item.idx not in done]
                if undone:
                    rows = _certified(job, undone, like, classes)
                    # The votes go to the disk first. What a crash leaves out of the log is written from them.
                    for row in rows:
                        store.append(row)
                        done[row.idx] = row
                    log.add([log_row(row, words) for row in rows])
                wanted += [done[item.idx] for item in batch]
                progress = progress.add(wanted[-len(batch) :])
                notes = progress.notes(job.n)
                advance(
                    progress.done, **{name: note for name, note in notes.items() if job.has_truth or name != "accuracy"}
                )
        if request.inputs.indices is None and request.inputs.share[1] == 1:  # now their number is known
            words = claim({**settings, "inputs": len(done)})
        # The log in the order of the inputs replaces the one in the order of their certificates.
        log.write(in_order(done.values() if own == path else store.rows, words))
    _compare_shares(job, request, header, like)
    # What is returned is all that was asked for, of this share.
    asked = len(wanted) if request.inputs.share[1] == 1 else request.inputs.of_run
    return in_order(wanted, claim({**settings, "inputs": asked}))


def _compare_shares(job: Job, request: _Request, header: VoteHeader, like: dict[str, Any]) -> None:
    """Refuse another classifier or other data of another process: those that began together saw no votes before."""
    others = [store for store in list_share_stores(request.path) if store != votes_path(request.own)]
    if others and request.inputs.at is not None:
        files = [read_share(store, header) for store in others]
        Resumption(files, job.select, job.is_settled, like).compared(iter(()), request.inputs.at)


def _planned(inputs: RunInputs, earlier: int, done: Collection[int]) -> int:
    """Return of how many inputs a log is: those there, and what is left of this call or, if more, of an earlier one."""
    if inputs.indices is None:
        return max(inputs.of_run or 0, earlier)
    left = sum(idx not in done for idx in inputs.indices)
    return len(done) + max(left, earlier - len(done))


def _refuse_beyond(classes: int, idx: np.ndarray, labels: np.ndarray) -> None:
    """Refuse labels that are no classes of f."""
    beyond = np.flatnonzero(labels >= classes)
    if len(beyond):
        first = beyond[0]
        raise ValueError(
            f"the label of input {idx[first]} must be a class below {classes}, which f has, got {labels[first]:g}"
        )


def _certified(job: Job, batch: list[Item], like: dict[str, Any], classes: int) -> list[VoteRow]:
    """Certify a group of inputs."""
    pairs = [item.load(like) for item in batch]
    for item, (x, truth) in zip(batch, pairs, strict=True):
        _refuse_beyond(classes, np.array([item.idx]), np.array([truth]))
        if not np.issubdtype(x.dtype, np.integer) and not np.isfinite(x).all():
            raise ValueError(f"x must be finite, got NaN or infinity in input {item.idx} of data")
    ids = np.array([item.idx for item in batch])
    began = time.perf_counter()
    found = job.certify(np.stack([x for x, _ in pairs]), ids)
    seconds = (time.perf_counter() - began) / len(ids)
    votes = found.votes
    decided = (np.asarray(values) for values in (found.label, found.radius, found.p_lower))
    # Of components nothing was decided, so all are alike.
    label, radius, p_lower = (values.reshape(len(ids), -1)[:, 0] for values in decided)
    n = np.broadcast_to(votes.n, len(ids))
    lost = np.full(len(ids), np.nan) if votes.lost is None else votes.lost
    return [
        VoteRow(
            idx=item.idx,
            label=truth,
            predict=int(label[i]),
            radius=float(radius[i]),
            p_lower=float(p_lower[i]),
            seconds=seconds,
            n=int(n[i]),
            lost=float(lost[i]),
            input=input_digest(x),
            selection=np.asarray(votes.selection[i]),
            counts=np.asarray(votes.counts[i]),
        )
        for i, (item, (x, truth)) in enumerate(zip(batch, pairs, strict=True))
    ]


def _report_path(log: Path) -> Path:
    """Return the file of what the tests of the noise found, beside a log."""
    return log.with_name(log.name + ".noise")


def _write_report(path: Path, report: NoiseReport) -> None:
    """Write what the tests of the noise found, as JSON."""
    tests = {name: {"value": value, "limit": limit} for name, value, limit in report.statistics}
    found = {**report._asdict(), "statistics": tests, "failed": report.failed}
    write_whole(path, json.dumps(found, indent=1) + "\n")


def _batches(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    while batch := list(itertools.islice(items, size)):
        yield batch
