"""Tables of runs: certified accuracy at radii, a lower bound on it, mean radius, abstentions."""

from collections.abc import Mapping, Sequence
from decimal import ROUND_FLOOR, Context, Decimal
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from jaxsmooth.arguments import as_alpha, as_numbers, in_brief, refuse_unknown
from jaxsmooth.curves import abstention_rate, average_certified_radius, certified_accuracy
from jaxsmooth.logs import LogRow
from jaxsmooth.report_rows import (
    TITLE,
    Run,
    alpha_of,
    as_runs,
    bound_of,
    columns_of,
    common_settings,
    in_words,
    inputs_of,
    stored_bounds,
    stored_rows,
)
from jaxsmooth.stores import StoredRun

_STYLES = ("text", "markdown", "latex")
_SHOWN = (*TITLE, "bound", "radii", "precision", "selector", "jaxsmooth", "jax")


def report_table(
    runs: Mapping[str, Run],
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
        runs: by name, rows of logs as `certify_dataset`, `merge_shares` or `read_log` return them; or pairs of what
            `certify` or another mode returns and the true classes; or what `read_votes` returns.
        radii: in the units of the inputs.
        style: "text", "markdown" or "latex" (booktabs).
        alpha: failure probability of a certificate, where neither a log nor a certificate says it.
        delta: failure probability of the second row.

    Raises:
        ValueError: an argument is not as described; a run is empty, or its rows claim different things.

    Example:
        >>> rows = [LogRow(idx, 1, 1, radius=0.6, seconds=1.0) for idx in range(50)]
        >>> print(report_table({"mine": rows}, [0.0, 1.0]))
        run        inputs    0.00   1.00    ACR  abstained  votes/input
        mine           50   1.000  0.000  0.600      0.000            -
          at least            0.960  0.000

        A result with the true classes, without a log:

        >>> import jax, jaxsmooth
        >>> x, truth = 2 * np.eye(4, dtype=np.float32), np.arange(4)
        >>> result = jaxsmooth.certify(lambda x: x, jaxsmooth.Gaussian(0.5), jax.random.key(0), x, n=1000)
        >>> print(report_table({"identity": (result, truth)}, [0.0, 0.5, 1.0]))
        run         inputs   0.00   0.50   1.00    ACR  abstained  votes/input
        identity         4  1.000  1.000  0.750  1.049      0.000        1,000
          at least          0.750  0.750  0.500
        norm 2, alpha 0.001
    """
    refuse_unknown("style", style, _STYLES)
    named = as_runs(runs)
    heads = [_head(radius) for radius in _check_radii(radii).tolist()]
    # What stands under a head is about the radius that it names: 0.3, where np.linspace made 0.30000000000000004.
    radii = np.array([float(head) for head in heads])
    head = ["run", "inputs", *heads, "ACR", "abstained", "votes/input"]
    lines = [head]
    for name, rows in named.items():
        columns = columns_of(name, rows)
        bound = bound_of(columns, radii, alpha_of(name, rows, alpha), delta)
        votes = sum(row.votes for row in rows) / len(rows)
        tail = [f"{average_certified_radius(*columns):.3f}", f"{abstention_rate(columns[0]):.3f}"]
        accuracy = [f"{value:.3f}" for value in certified_accuracy(*columns, radii)]
        lines.append([name, inputs_of(rows), *accuracy, *tail, f"{votes:,.0f}" if votes else "-"])
        lines.append(["  at least", "", *(f"{np.floor(value * 1000) / 1000:.3f}" for value in bound), "", "", ""])
    return {"text": _text, "markdown": _markdown, "latex": _latex}[style](lines, _claims(named))


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
        >>> from pathlib import Path
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
    bounds = stored_bounds(runs, as_alpha(alpha))
    levels = as_numbers("probabilities", probabilities, "a list of numbers in [0, 1]")
    if levels.ndim != 1 or levels.size == 0 or not ((levels >= 0) & (levels <= 1)).all():
        raise ValueError(f"probabilities must be a list of numbers in [0, 1], got {in_brief(probabilities)}")
    lines = [["run", "inputs", *(f"p > {level}" for level in levels.tolist())]]
    for name, values in bounds.items():
        lines.append(
            [name, str(len(values)), *(f"{np.floor((values > level).mean() * 1000) / 1000:.3f}" for level in levels)]
        )
    claims = _claims(stored_rows(runs, alpha))
    return {"text": _text, "markdown": _markdown, "latex": _latex}[style](lines, claims)


def _head(radius: float) -> str:
    """Return a radius with two decimals, or with as many as it takes: a head may not name another radius."""
    texts = f"{radius:.2f}", f"{radius:.6g}"
    floor = Decimal(radius).normalize(Context(prec=6, rounding=ROUND_FLOOR))
    return next((text for text in texts if abs(float(text) - radius) <= 1e-12 * radius), f"{floor:f}")


def _check_radii(radii: ArrayLike) -> np.ndarray:
    values = as_numbers("radii", radii, "a list of numbers of at least 0")
    if values.ndim != 1 or values.size == 0 or not (values >= 0).all():
        raise ValueError(f"radii must be a list of numbers of at least 0, got {in_brief(radii)}")
    return values


def _claims(runs: Mapping[str, Sequence[LogRow]]) -> list[str]:
    """Return what the certificates claim, in words: first of all runs, then of each."""
    shared = common_settings(runs, _SHOWN)
    lines = [in_words(shared)] if shared else []
    for name, rows in runs.items():
        own = common_settings({name: rows}, [word for word in _SHOWN if word not in shared])
        lines += [f"{name}: {in_words(own)}"] if own else []
    return lines


def _text(lines: list[list[str]], claims: list[str]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    widths[0] = max(widths[0], 10)

    def aligned(line: list[str]) -> str:
        cells = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        return "  ".join(cells).rstrip()

    return "\n".join([*map(aligned, lines), *claims])


def _markdown(lines: list[list[str]], claims: list[str]) -> str:
    rule = ["---", *["---:"] * (len(lines[0]) - 1)]
    cells = ([cell.strip().replace("|", r"\|") for cell in line] for line in [lines[0], rule, *lines[1:]])
    table = ["| " + " | ".join(line) + " |" for line in cells]
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
