"""What reports take: runs by name, as rows of logs or as certificates with their true classes, and what they share."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike

from jaxsmooth._claims import NO_TRUTH
from jaxsmooth.arguments import as_alpha
from jaxsmooth.curves import certified_accuracy, certified_accuracy_bound, true_class_bounds
from jaxsmooth.logs import LogRow, unclaimed_rows
from jaxsmooth.stores import StoredRun
from jaxsmooth.types import Certificate, Prediction

Run = Sequence[LogRow] | tuple[Certificate, ArrayLike] | StoredRun
"""Rows of a log; a certificate with the true classes; or what `read_votes` returns."""

TITLE = ("noise", "scale", "norm", "mode", "levels", "k", "n0", "n", "alpha", "m", "dtype")

PICTURE_TITLE = ("noise", "scale", "levels", "k", "n", "alpha", "m")
"""What a reader of a paper asks about curves; the norm stands at the axis."""

_EXPECTED = (
    "a mapping of at least one name to rows of a log, to a pair (what certify returns, the true classes), or to what "
    "read_votes returns"
)


def as_runs(runs: Any) -> dict[str, list[LogRow]]:
    """Return the rows of each run, each of one claim, and all of one norm."""
    if not isinstance(runs, Mapping) or not runs:
        raise TypeError(f"runs must be {_EXPECTED}, got {type(runs).__name__}")
    made = {" ".join(str(name).split()): _as_rows(name, run) for name, run in cast(Mapping[Any, Any], runs).items()}
    if len(made) < len(cast(Mapping[Any, Any], runs)):
        raise ValueError(f"runs must have names that differ, got {', '.join(map(repr, cast(Iterable[Any], runs)))}")
    for name, rows in made.items():
        _refuse_mixed(name, rows)
    # A log that does not say its norm, as those of Cohen et al., is of Gaussian noise.
    norms = {row.settings.get("norm", "2") for rows in made.values() for row in rows}
    if len(norms) > 1:
        names = " and ".join(f"L{norm}" for norm in sorted(norms))
        raise ValueError(f"runs must be of one norm, got {names}: radii in different norms do not compare")
    return made


def _as_rows(name: Any, run: Any) -> list[LogRow]:
    if isinstance(run, StoredRun):
        return run.rows()
    if isinstance(run, tuple) and run and isinstance(run[0], Certificate):
        if len(cast(Any, run)) != 2:
            raise TypeError(f"runs must be {_EXPECTED}, got a tuple of {len(cast(Any, run))} for run {name!r}")
        unknown = [word for word in ("alpha", "norm") if getattr(run[0], word) is None]
        if unknown:
            raise ValueError(
                f"run {name!r} must be of a certificate that says its {' and its '.join(unknown)}, as those of certify "
                "do: dataclasses.replace(result, alpha=..., norm=...) makes one of another"
            )
        try:
            return unclaimed_rows(*cast(Any, run))
        except (TypeError, ValueError) as error:
            raise type(error)(f"run {name!r}: {error}") from None
    if isinstance(run, Prediction) or (isinstance(run, tuple) and run and isinstance(run[0], Prediction)):
        raise TypeError(f"runs must be of certificates, got a Prediction for run {name!r}, which certifies no radius")
    if isinstance(run, Certificate):
        raise TypeError(f"runs must be {_EXPECTED}, got a Certificate alone for run {name!r}: give (result, truth)")
    if not isinstance(run, Sequence) or not all(isinstance(row, LogRow) for row in cast(Sequence[Any], run)):
        raise TypeError(f"runs must be {_EXPECTED}, got {type(run).__name__} for run {name!r}")
    return list(cast(Sequence[LogRow], run))


def _refuse_mixed(name: str, rows: list[LogRow]) -> None:
    """Refuse rows that claim different things, or whose true classes are not known."""
    if any(row.settings.get("truth") == NO_TRUTH for row in rows):
        raise ValueError(
            f"run {name!r} must be of known classes, got one whose true classes are not known, as of a selector"
        )
    if any(row.settings.get("mode") == "prediction" for row in rows):
        raise ValueError(f"run {name!r} must be of certificates, got predictions, which certify no radius")
    # The key of splitting noise is a part of the smoothed classifier.
    is_split = any(row.settings.get("mode") == "splitting" for row in rows)
    for word in ("alpha", "noise", "norm", "mode", "k", "levels", *(("key",) if is_split else ())):
        said = {row.settings.get(word) for row in rows}
        if len(said) > 1:
            raise ValueError(f"run {name!r} must be of one {word}, got {sorted(map(str, said))}")
    if len({row.idx for row in rows}) < len(rows):
        raise ValueError(f"run {name!r} must have each input once: bounds assume that certificates are independent")


def columns_of(name: str, rows: Sequence[LogRow]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return classes, radii and true classes."""
    if not rows:
        raise ValueError(f"run {name!r} must have at least one input")
    return tuple(np.array([getattr(row, field) for row in rows]) for field in ("predict", "radius", "label"))  # pyright: ignore


def alpha_of(name: str, rows: Sequence[LogRow], default: float) -> float:
    """Return the failure probability that the rows claim, one for all."""
    claimed = {row.settings.get("alpha") for row in rows}
    if len(claimed) > 1:
        raise ValueError(f"run {name!r} must be of one alpha, got {sorted(map(str, claimed))}")
    said = claimed.pop()
    level = default if said is None else float(said)
    if said is not None and level == 0:  # nothing was left to chance
        return 0.0
    return as_alpha(level)


def bound_of(
    columns: tuple[np.ndarray, np.ndarray, np.ndarray], radii: np.ndarray, alpha: float, delta: float
) -> np.ndarray:
    """Return the certified accuracy less the inputs that may be falsely certified."""
    return (
        certified_accuracy_bound(*columns, radii, alpha=alpha, delta=delta)
        if alpha
        else certified_accuracy(*columns, radii)
    )


def inputs_of(rows: Sequence[LogRow]) -> str:
    """Return how many inputs a run has, of how many where it is not finished."""
    planned = planned_of(rows)
    return f"{len(rows)} of {planned}" if planned is not None and planned > len(rows) else str(len(rows))


def planned_of(rows: Sequence[LogRow]) -> int | None:
    """Return how many inputs a run is to have, as its rows say; None if they do not."""
    said = {row.settings.get("inputs", "") for row in rows}
    return max((int(words) for words in said if words.isdecimal()), default=None)


def common_settings(runs: Mapping[str, Sequence[LogRow]], names: Sequence[str]) -> dict[str, str]:
    """Return the settings that all rows of all runs share."""
    settings = [row.settings for rows in runs.values() for row in rows]
    shared = {name: settings[0].get(name) for name in names} if settings else {}
    return {k: v for k, v in shared.items() if v is not None and all(s.get(k) == v for s in settings)}


def in_words(settings: Mapping[str, str]) -> str:
    """Return settings as one text."""
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def stored_bounds(runs: Any, alpha: float) -> dict[str, np.ndarray]:
    """Return the bounds on the probability of the true class of each stored run."""
    expected = "a mapping of at least one name to what read_votes returns"
    if not isinstance(runs, Mapping) or not runs:
        raise TypeError(f"runs must be {expected}, got {runs!r}")
    for name, run in cast(Mapping[Any, Any], runs).items():
        if not isinstance(run, StoredRun):
            raise TypeError(f"runs must be {expected}, got {type(run).__name__} for run {name!r}")
        if len(run.idx) == 0:
            raise ValueError(f"run {name!r} must have at least one input")
        if run.settings.get("truth") == NO_TRUTH:
            raise ValueError(
                f"run {name!r} must be of known classes, got one whose true classes are not known, as of a selector"
            )
    return {name: true_class_bounds(run.votes, run.truth, alpha=alpha) for name, run in runs.items()}


def stored_rows(runs: Mapping[str, StoredRun], alpha: float) -> dict[str, list[LogRow]]:
    """Return the rows of each stored run, which claim this level."""

    def claim_at(row: LogRow) -> str:
        return " ".join(f"{name}={value}" for name, value in {**row.settings, "alpha": alpha}.items())

    return {name: [row._replace(claim=claim_at(row)) for row in run.rows()] for name, run in runs.items()}
