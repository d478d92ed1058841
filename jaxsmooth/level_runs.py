"""Certify a data set at a level of noise for each input, so that a crash loses nothing."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxsmooth._claims import NO_TRUTH, claim, level_words
from jaxsmooth.arguments import as_key, in_brief
from jaxsmooth.certificates import Fixed
from jaxsmooth.datasets import Item
from jaxsmooth.levels import Level, as_levels, as_modes, as_shares, one_shape, refuse_other_levels
from jaxsmooth.logs import LogRow, read_log, write_log
from jaxsmooth.precision import Within
from jaxsmooth.runs import Job, RunInputs, as_run_inputs, certify_job, do_job, unlabelled
from jaxsmooth.sequential import Grid
from jaxsmooth.share_files import list_stores, share_path
from jaxsmooth.stores import VoteStore
from jaxsmooth.stream import Stream, stream_key
from jaxsmooth.types import ABSTAIN, Classifier, Noise

__all__ = ["certify_levels_dataset"]

_FIXED = Fixed()


def certify_levels_dataset(
    selector: Classifier,
    levels: Sequence[Level | tuple[Classifier, Noise]],
    noise: Noise,
    key: jax.Array,
    data: Any,
    path: str | Path,
    *,
    mode: Fixed | Grid | Within = _FIXED,
    selector_mode: Fixed | Grid | Within | None = None,
    alpha: float = 1e-3,
    alpha_selector: float | None = None,
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
    """Certify inputs of a data set as `certify_levels` does, and go on where an earlier call was ended.

    The run is made of runs of `certify_dataset`: one of the selector, in `<name>.selector<suffix>` beside the log, and
    one of each level over the inputs that are at it, in `<name>.level-<index><suffix>`. Each has its log and its votes.
    The log at `path` is written at the end, from theirs. Its radius is the smaller one of selector and class, its votes
    are those of both. The votes themselves are in the files of the parts, each under one noise. Shares of several
    processes end with logs of their own: one more call, without `share`, certifies nothing again and writes the log of
    all.

    Args:
        selector, levels, noise, key, mode, selector_mode, alpha, alpha_selector: as for `certify_levels`.
        data: as for `certify_dataset`; not an iterator, since it is gone through for the selector and for each level.
        path, batch_size, group, skip, most, compiled, devices, share, check, progress: as for `certify_dataset`.

    Raises:
        ValueError, TypeError, OSError: as `certify_dataset` and `certify_levels`.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp, numpy as np
        >>> from jaxsmooth import Gaussian
        >>> f = lambda x: jnp.stack([x[:, 0], -x[:, 0]], -1)
        >>> far = lambda x: jnp.stack([jnp.ones(len(x)), jnp.abs(x[:, 0])], -1)  # level 1 where |x| is above 1
        >>> levels = [Level(f, Gaussian(0.25)), Level(f, Gaussian(1.0))]
        >>> data = np.array([[0.3, 0.0], [3.0, 0.0]], np.float32), np.array([0, 0])
        >>> path = Path(tempfile.mkdtemp()) / "run.tsv"
        >>> rows = certify_levels_dataset(
        ...     far, levels, Gaussian(0.5), jax.random.key(0), data, path, mode=Fixed(n=2000), progress=False
        ... )
        >>> [(row.predict, round(row.radius, 1)) for row in rows]
        [(0, 0.3), (0, 1.3)]
    """
    alpha, alpha_selector = as_shares(alpha, alpha_selector)
    mode, of_selector = as_modes(mode, selector_mode)
    noise, levels = as_levels(levels, noise)
    key = as_key(key)
    path = Path(path)
    if hasattr(data, "__next__"):
        raise TypeError(f"data must not be an iterator, which is gone through only once, got {in_brief(data)}")
    selector_path = path.with_name(f"{path.stem}.selector{path.suffix}")
    inputs = as_run_inputs(data, skip, most, share)
    own = share_path(path, *inputs.share)
    if list_stores(path) or (own.exists() and not list_stores(selector_path)):
        raise ValueError(f"{path} is a log of another run, without a selector: it is not overwritten")
    select = certify_job(
        selector, noise, stream_key(key, Stream.LEVELS), of_selector, alpha_selector, batch_size, compiled, devices
    )
    select = select._replace(settings={**select.settings, "truth": NO_TRUTH}, bar="inputs (selector)", has_truth=False)
    jobs = [
        certify_job(f, own_noise, key, mode, alpha - alpha_selector, batch_size, compiled, devices)._replace(
            bar=f"inputs (level {index})"
        )
        for index, (f, own_noise) in enumerate(levels)
    ]
    classes = _refuse_other_classes(select, jobs, inputs.items)
    settings = {"check": check, "progress": progress}
    inputs = as_run_inputs(data, skip, most, share)
    chosen = {row.idx: row for row in do_job(select, unlabelled(inputs), selector_path, group, **settings)}
    seen = _digests(selector_path)
    found: dict[int, LogRow] = {}
    for index, job in enumerate(jobs):
        at_level = {idx for idx, row in chosen.items() if row.predict == index}
        if at_level:
            inputs = _only(as_run_inputs(data, skip, most, share), at_level)
            level_path = path.with_name(f"{path.stem}.level-{index}{path.suffix}")
            found |= {row.idx: row for row in do_job(job, inputs, level_path, group, **settings)}
            again = _digests(level_path)
            other = [idx for idx in at_level if again[idx] != seen[idx]]
            if other:
                raise ValueError(
                    f"data must be the same each time that they are gone through: input {min(other)} was another one "
                    "for its level than for the selector"
                )
    words = _claim_of(levels, select, jobs[0], alpha, chosen)
    inputs = as_run_inputs(data, skip, most, share)
    rows = [_joined(item, chosen[item.idx], found.get(item.idx), classes, words) for item in inputs.items]
    # A call for fewer inputs than an earlier one leaves the log as long as it was.
    before = read_log(own) if own.exists() else []
    longer = {row.idx: row for row in before if _same_but_size(row.claim, words)} | {row.idx: row for row in rows}
    write_log(own, [longer[idx]._replace(claim=words) for idx in sorted(longer)])
    return rows


def _digests(path: Path) -> dict[int, int]:
    """Return the digest of each input that the shares of a run certified."""
    return {row.idx: row.input for store in list_stores(path) for row in VoteStore.read(store)[1]}


def _same_but_size(claim: str, words: str) -> bool:
    """Return whether two claims are the same but for the number of inputs."""
    one, other = ([word for word in text.split() if not word.startswith("inputs=")] for text in (claim, words))
    return one == other


def _refuse_other_classes(select: Job, jobs: list[Job], items: Iterator[Item]) -> int:
    """Refuse a selector of other levels, and classifiers of different classes. Return how many classes there are."""
    first = next(items, None)
    if first is None:
        return 0
    # Selection votes of one input show it.
    x, _ = first.load()
    (shape, *shapes) = [job.select(x[None], np.array([first.idx])).shape[1:] for job in (select, *jobs)]
    refuse_other_levels(shape, len(jobs))
    return one_shape(set(shapes))[-1]


def _joined(item: Item, chosen: LogRow, found: LogRow | None, classes: int, words: str) -> LogRow:
    """Return the row of an input from that of the selector and that at its level."""
    if found is None:
        _, truth = item.load()
        if truth >= classes:
            raise ValueError(f"the label of input {item.idx} must be a class below {classes}, got {truth}")
        return LogRow(item.idx, truth, ABSTAIN, 0.0, chosen.seconds, chosen.votes, words)
    radius = min(found.radius, chosen.radius) if found.predict != ABSTAIN else 0.0
    seconds = found.seconds + chosen.seconds
    return LogRow(item.idx, found.label, found.predict, radius, seconds, found.votes + chosen.votes, words)


def _claim_of(levels: list[Level], select: Job, job: Job, alpha: float, chosen: dict[int, LogRow]) -> str:
    """Return what the certificates claim.

    Args:
        levels: with their noises.
        select: of the selector.
        job: of a level: the settings of its mode are those of all.
        alpha: of both together.
        chosen: rows of the selector.
    """
    said = next((row.settings for row in chosen.values()), {})
    own = {name: value for name, value in select.settings.items() if name not in ("norm", "key", "truth", "versions")}
    words = {**job.settings, "noise": level_words(levels), "mode": f"levels-{job.settings['mode']}", "alpha": alpha}
    words["selector"] = ";".join(claim(own).split())
    return claim(words | {name: said[name] for name in ("dtype", "inputs") if name in said})


def _only(inputs: RunInputs, indices: set[int]) -> RunInputs:
    """Return the inputs of these indices. How many all shares have is not known."""
    items = (item for item in inputs.items if item.idx in indices)
    return inputs._replace(items=items, total=len(indices), of_run=None)
