"""Tables and pictures of runs: certified accuracy at radii, a lower bound on it, mean radius, abstentions."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from jaxsmooth._claims import NO_TRUTH
from jaxsmooth.arguments import as_alpha, as_numbers, in_brief, refuse_unknown
from jaxsmooth.curves import (
    abstention_rate,
    average_certified_radius,
    certified_accuracy,
    certified_accuracy_bound,
    true_class_bounds,
)
from jaxsmooth.logs import LogRow
from jaxsmooth.stores import StoredRun

_STYLES = ("text", "markdown", "latex")
_TITLE = ("noise", "scale", "norm", "mode", "levels", "k", "n0", "n", "alpha", "m", "dtype")
_SHOWN = (*_TITLE, "bound", "radii", "precision", "selector", "jaxsmooth", "jax")


def report_table(
    runs: Mapping[str, Sequence[LogRow]],
    radii: ArrayLike,
    *,
    style: Literal["text", "markdown", "latex"] = "text",
    alpha: float = 1e-3,
    delta: float = 1e-3,
) -> str:
    """Return a table of runs: for each a row of certified accuracy, and a row of a lower bound on it.

    The second row holds, for all radii together, with probability at least 1 - delta over the noise of the run
    (`certified_accuracy_bound`). Abstentions and errors are in the denominators. A run that is not finished shows
    "120 of 500" inputs. Below the table are the claims and settings from the logs: first those that all runs share,
    then those of each run.

    Args:
        runs: rows of logs by the name of their run, as `certify_dataset`, `merge_shares` or `read_log` return them.
        radii: increasing, in the units of the inputs.
        style: "text", "markdown" or "latex" (booktabs).
        alpha: failure probability of a certificate, where a log does not say it.
        delta: failure probability of the second row.

    Raises:
        ValueError: an argument is not as described; a run is empty, or its rows claim different things.

    Example:
        >>> rows = [LogRow(idx, 1, 1, radius=0.6, seconds=1.0) for idx in range(50)]
        >>> print(report_table({"mine": rows}, [0.0, 1.0]))
        run        inputs    0.00   1.00    ACR  abstained  votes/input
        mine           50   1.000  0.000  0.600      0.000            -
          at least            0.960  0.000
    """
    refuse_unknown("style", style, _STYLES)
    _check_runs(runs)
    radii = _check_radii(radii)
    head = ["run", "inputs", *(f"{radius:.2f}" for radius in radii), "ACR", "abstained", "votes/input"]
    lines = [head]
    for name, rows in runs.items():
        columns = _columns(name, rows)
        bound = _bound(columns, radii, _alpha(name, rows, alpha), delta)
        votes = sum(row.votes for row in rows) / len(rows)
        tail = [f"{average_certified_radius(*columns):.3f}", f"{abstention_rate(columns[0]):.3f}"]
        accuracy = [f"{value:.3f}" for value in certified_accuracy(*columns, radii)]
        lines.append([name, _inputs(rows), *accuracy, *tail, f"{votes:,.0f}" if votes else "-"])
        lines.append(["  at least", "", *(f"{np.floor(value * 1000) / 1000:.3f}" for value in bound), "", "", ""])
    return {"text": _text, "markdown": _markdown, "latex": _latex}[style](lines, _claims(runs))


def draw_curves(
    runs: Mapping[str, Sequence[LogRow]], path: str | Path, *, alpha: float = 1e-3, delta: float = 1e-3, title: str = ""
) -> None:
    """Draw the certified accuracy of runs against the radius, with its lower bound as a band below each curve.

    Args:
        runs, alpha, delta: as for `report_table`.
        path: of the picture, in any format that matplotlib writes (the extra `plots`).
        title: over the picture; by default what the runs have in common.

    Raises:
        ValueError: as `report_table`. ImportError: matplotlib is missing.
    """
    _check_runs(runs)
    columns = {name: _columns(name, rows) for name, rows in runs.items()}
    alphas = {name: _alpha(name, rows, alpha) for name, rows in runs.items()}
    figure, axes = _make_figure("draw_curves")
    longest = max(float(np.max(radius)) for _, radius, _ in columns.values()) or 1.0
    grid = np.linspace(0, 1.05 * longest, 501)
    for name, run in columns.items():
        accuracy = certified_accuracy(*run, grid)
        (line,) = axes.step(grid, accuracy, where="post", label=name)
        bound = _bound(run, grid, alphas[name], delta)
        axes.fill_between(grid, bound, accuracy, step="post", color=line.get_color(), alpha=0.25, linewidth=0)
    norms = {rows[0].settings.get("norm", "2") for rows in runs.values()}
    norm = norms.pop()
    label = "number of changed features" if norm == "0" else f"L{norm} radius"
    axes.xaxis.get_major_locator().set_params(integer=norm == "0")
    axes.set(xlabel=label, ylabel="certified accuracy", ylim=(0, 1), xlim=(0, grid[-1]))
    axes.set_title(_wrapped(title or _in_words(_common(runs, _TITLE))), fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, title=f"band: certain with probability {1 - delta:g}", title_fontsize=8)
    figure.savefig(path, dpi=150)


def probability_table(
    runs: Mapping[str, StoredRun],
    probabilities: ArrayLike = (0.5, 0.75, 0.9, 0.99, 0.999),
    *,
    style: Literal["text", "markdown", "latex"] = "text",
    alpha: float = 1e-3,
) -> str:
    """Return a table of the share of inputs whose true class is more probable than p under the noise, for each p.

    It counts lower bounds (`true_class_bounds`), each of which holds with probability at least 1 - alpha. Unlike an
    average certified radius, which few very certain inputs can raise, it shows all inputs (Sun et al. 2024,
    arXiv:2410.06895).

    Args:
        runs: what `read_votes` returns, by the name of the run. Their votes are of the rule "fixed".
        probabilities: in [0, 1].
        style: "text", "markdown" or "latex" (booktabs).
        alpha: failure probability of a bound.

    Raises:
        ValueError, TypeError: an argument is not as described.

    Example:
        >>> import jax, tempfile
        >>> import jaxsmooth
        >>> path, data = Path(tempfile.mkdtemp()) / "run.tsv", (np.eye(3, dtype=np.float32), np.arange(3))
        >>> noise, key = jaxsmooth.Gaussian(0.2), jax.random.key(0)
        >>> rows = jaxsmooth.certify_dataset(lambda x: x, noise, key, data, path, progress=False)
        >>> print(probability_table({"mine": jaxsmooth.read_votes(f"{path}.votes")}, [0.5, 0.9999]))
        run         inputs     p > 0.5  p > 0.9999
        mine             3       1.000       0.000
        noise Gaussian(sigma=0.2), norm 2, mode fixed, n0 100, n 100000, alpha 0.001, dtype float32, ...
    """
    refuse_unknown("style", style, _STYLES)
    bounds = _true_class_bounds(runs, as_alpha(alpha))
    levels = as_numbers("probabilities", probabilities, "a list of numbers in [0, 1]")
    if levels.ndim != 1 or levels.size == 0 or not ((levels >= 0) & (levels <= 1)).all():
        raise ValueError(f"probabilities must be a list of numbers in [0, 1], got {in_brief(probabilities)}")
    lines = [["run", "inputs", *(f"p > {level:g}" for level in levels)]]
    for name, values in bounds.items():
        lines.append(
            [name, str(len(values)), *(f"{np.floor((values > level).mean() * 1000) / 1000:.3f}" for level in levels)]
        )
    claims = _claims(_rows_at(runs, alpha))
    return {"text": _text, "markdown": _markdown, "latex": _latex}[style](lines, claims)


def draw_probabilities(
    runs: Mapping[str, StoredRun], path: str | Path, *, alpha: float = 1e-3, title: str = ""
) -> None:
    """Draw the share of inputs whose true class is more probable than p under the noise, against p.

    The curves count the lower bounds of `true_class_bounds`. The axis is that of Phi^-1(p), so that for Gaussian noise
    equal steps are equal steps of the radius, in units of sigma.

    Args:
        runs, alpha: as for `probability_table`.
        path: of the picture, in any format that matplotlib writes (the extra `plots`).
        title: over the picture; by default what the runs have in common.

    Raises:
        ValueError, TypeError: as `probability_table`. ImportError: matplotlib is missing.
    """
    bounds = _true_class_bounds(runs, as_alpha(alpha))
    figure, axes = _make_figure("draw_probabilities")
    ticks = np.array([0.01, 0.1, 0.5, 0.9, 0.99, 0.9999])
    grid = special.ndtr(np.linspace(special.ndtri(ticks[0]), special.ndtri(ticks[-1]), 501))
    for name, values in bounds.items():
        axes.step(special.ndtri(grid), (values[None] > grid[:, None]).mean(axis=1), where="post", label=name)
    axes.set_xticks(special.ndtri(ticks), [f"{tick:g}" for tick in ticks])
    axes.axvline(0.0, color="grey", linewidth=0.8, linestyle=":", label="certified above 1/2")
    axes.set(
        xlabel="p, lower bound on the probability of the true class", ylabel="share of inputs above p", ylim=(0, 1)
    )
    axes.set_title(_wrapped(title or _in_words(_common(_rows_at(runs, alpha), _TITLE))), fontsize=9)
    axes.set_xlim(special.ndtri(ticks[0]), special.ndtri(ticks[-1]))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, title=f"bounds that hold with probability {1 - alpha:g} each", title_fontsize=8)
    figure.savefig(path, dpi=150)


def _true_class_bounds(runs: Any, alpha: float) -> dict[str, np.ndarray]:
    """Return the bounds of each run."""
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


def _rows_at(runs: Mapping[str, StoredRun], alpha: float) -> dict[str, list[LogRow]]:
    """Return the rows of each run, which claim this level."""

    def claim_at(row: LogRow) -> str:
        return " ".join(f"{name}={value}" for name, value in {**row.settings, "alpha": alpha}.items())

    return {name: [row._replace(claim=claim_at(row)) for row in run.rows()] for name, run in runs.items()}


def _wrapped(title: str) -> str:
    """Return a title in lines that fit over the axes."""
    return textwrap.fill(title, 75, break_long_words=False)


def _make_figure(function: str) -> tuple[Any, Any]:
    """Return a figure and its axes, which belong to no window."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(f"{function} needs matplotlib: pip install 'jaxsmooth[plots]'") from None
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _check_runs(runs: Any) -> None:
    expected = "a mapping of at least one name to rows of a log"
    if not isinstance(runs, Mapping) or not runs:
        raise TypeError(f"runs must be {expected}, got {runs!r}")
    for name, rows in cast(Mapping[Any, Any], runs).items():
        if not isinstance(rows, Sequence) or not all(isinstance(row, LogRow) for row in cast(Sequence[Any], rows)):
            raise TypeError(f"runs must be {expected}, got {type(rows).__name__} for run {name!r}")
        if any(row.settings.get("truth") == NO_TRUTH for row in rows):
            raise ValueError(
                f"run {name!r} must be of known classes, got one whose true classes are not known, as of a selector"
            )
        # The key of splitting noise is a part of the smoothed classifier.
        is_split = any(row.settings.get("mode") == "splitting" for row in rows)
        for word in ("alpha", "noise", "norm", "mode", "k", "levels", *(("key",) if is_split else ())):
            said = {row.settings.get(word) for row in rows}
            if len(said) > 1:
                raise ValueError(f"run {name!r} must be of one {word}, got {sorted(map(str, said))}")
    norms = {row.settings["norm"] for rows in runs.values() for row in rows if "norm" in row.settings}
    if len(norms) > 1:
        names = " and ".join(f"L{norm}" for norm in sorted(norms))
        raise ValueError(f"runs must be of one norm, got {names}: radii in different norms do not compare")


def _inputs(rows: Sequence[LogRow]) -> str:
    """Return how many inputs a run has, of how many where it is not finished."""
    planned = rows[0].settings.get("inputs", "")
    return f"{len(rows)} of {planned}" if planned.isdecimal() and int(planned) > len(rows) else str(len(rows))


def _columns(name: str, rows: Sequence[LogRow]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return classes, radii and true classes."""
    if not rows:
        raise ValueError(f"run {name!r} must have at least one input")
    return tuple(np.array([getattr(row, field) for row in rows]) for field in ("predict", "radius", "label"))  # pyright: ignore


def _alpha(name: str, rows: Sequence[LogRow], default: float) -> float:
    """Return the failure probability that the rows claim, one for all."""
    claimed = {row.settings.get("alpha") for row in rows}
    if len(claimed) > 1:
        raise ValueError(f"run {name!r} must be of one alpha, got {sorted(map(str, claimed))}")
    said = claimed.pop()
    if said == "0":  # nothing was left to chance
        return 0.0
    return as_alpha(default if said is None else float(said))


def _bound(
    columns: tuple[np.ndarray, np.ndarray, np.ndarray], radii: np.ndarray, alpha: float, delta: float
) -> np.ndarray:
    """Return the certified accuracy less the inputs that may be falsely certified."""
    return (
        certified_accuracy_bound(*columns, radii, alpha=alpha, delta=delta)
        if alpha
        else certified_accuracy(*columns, radii)
    )


def _check_radii(radii: ArrayLike) -> np.ndarray:
    values = as_numbers("radii", radii, "a list of numbers of at least 0")
    if values.ndim != 1 or values.size == 0 or not (values >= 0).all():
        raise ValueError(f"radii must be a list of numbers of at least 0, got {in_brief(radii)}")
    return values


def _common(runs: Mapping[str, Sequence[LogRow]], names: Sequence[str]) -> dict[str, str]:
    """Return the settings that all rows of all runs share."""
    settings = [row.settings for rows in runs.values() for row in rows]
    shared = {name: settings[0].get(name) for name in names} if settings else {}
    return {k: v for k, v in shared.items() if v is not None and all(s.get(k) == v for s in settings)}


def _in_words(settings: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _claims(runs: Mapping[str, Sequence[LogRow]]) -> list[str]:
    """Return what the certificates claim, in words: first of all runs, then of each."""
    shared = _common(runs, _SHOWN)
    lines = [_in_words(shared)] if shared else []
    for name, rows in runs.items():
        own = _common({name: rows}, [word for word in _SHOWN if word not in shared])
        lines += [f"{name}: {_in_words(own)}"] if own else []
    return lines


def _text(lines: list[list[str]], claims: list[str]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    widths[0] = max(widths[0], 10)

    def aligned(line: list[Any]) -> str:
        cells = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        return "  ".join(cells).rstrip()

    return "\n".join([*map(aligned, lines), *claims])


def _markdown(lines: list[list[str]], claims: list[str]) -> str:
    rule = ["---", *["---:"] * (len(lines[0]) - 1)]
    table = ["| " + " | ".join(cell.strip() for cell in line) + " |" for line in [lines[0], rule, *lines[1:]]]
    return "\n".join([*table, *(f"\n{claim}" for claim in claims)])


def _latex(lines: list[list[str]], claims: list[str]) -> str:
    escapes = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "~": r"\textasciitilde{}"}
    escapes |= {"^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}"}

    def escaped(text: str) -> str:
        return "".join(escapes.get(character, character) for character in text.strip())

    body = [" & ".join(map(escaped, line)) + r" \\" for line in lines]
    columns = len(lines[0])
    notes = [rf"\multicolumn{{{columns}}}{{l}}{{\footnotesize {escaped(claim)}}} \\" for claim in claims]
    if notes:
        notes.insert(0, r"\midrule")
    layout = "l" + "r" * (columns - 1)
    table = [rf"\begin{{tabular}}{{{layout}}}", r"\toprule", body[0], r"\midrule", *body[1:], *notes, r"\bottomrule"]
    return "\n".join([*table, r"\end{tabular}"])
