"""`jaxsmooth report`: a table, curves and records of logs."""

import argparse
import json
import re
from pathlib import Path

import jaxsmooth
from bridges.command.records import refuse_records, summary_of, write_records
from jaxsmooth.share_files import list_share_stores
from jaxsmooth.shares import read_shares

_RADII = [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5]


def add_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    """Add what reporting takes."""
    del command
    parser.add_argument("logs", nargs="+", metavar="LOG", help="files of logs, or name=file to show another name")
    parser.add_argument(
        "--radii",
        type=float,
        nargs="+",
        help="of the table (those of a grid; of one noise 0, 1/2, ... 3 times its scale; else 0 0.25 ... 1.5)",
    )
    parser.add_argument("--style", choices=["text", "markdown", "latex"], default="text", help="of the table (text)")
    parser.add_argument("--alpha", type=float, default=0.001, help="of certificates whose log does not say it (0.001)")
    parser.add_argument("--delta", type=float, default=0.001, help="failure probability of the rows 'at least' (0.001)")
    parser.add_argument("--picture", type=Path, help="file for the curves, .pdf, .svg or .png (needs matplotlib)")
    parser.add_argument("--title", help="over the picture; what the logs have in common by default, '' for none")
    parser.add_argument("--records", type=Path, help="file for one record of each input, .csv or .json, as for pandas")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.add_argument(
        "--probabilities", type=float, nargs="+", metavar="P",
        help="print, too, the share of inputs whose true class is more probable than P under the noise",
    )  # fmt: skip
    parser.add_argument("--picture-of-probabilities", type=Path, metavar="FILE", help="file to draw all of them into")


def report(arguments: argparse.Namespace) -> int:
    """Report logs, ours or those published by Cohen et al.: a table, and a picture of the curves.

    Below each row of certified accuracy stands what holds of it with probability 1 - delta, at all radii together. A
    run that is not finished shows "12 of 50" inputs. Logs of several processes are merged first. Probabilities are
    read from the files of votes beside the logs.
    """
    paths = named(arguments.logs)
    refuse_records(arguments.records, [path for _, path in paths])
    runs = {name: _load(path) for name, path in paths}
    if arguments.radii is None:
        arguments.radii = _default_radii(runs)
    for path in (arguments.picture, arguments.picture_of_probabilities):
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"a picture must be in a folder that is there, got {path}")
    levels = {"alpha": arguments.alpha, "delta": arguments.delta}
    table = jaxsmooth.report_table(runs, arguments.radii, style=arguments.style, **levels)
    stored = _stored(paths, runs) if arguments.probabilities or arguments.picture_of_probabilities else {}
    if arguments.json:
        found = {name: summary_of(rows, arguments.radii, **levels) for name, rows in runs.items()}
        for name, run in stored.items():
            bounds = jaxsmooth.true_class_bounds(run.votes, run.truth, alpha=arguments.alpha)
            shares = {str(p): float((bounds > p).mean()) for p in arguments.probabilities or ()}
            found[name]["true_class_more_probable_than"] = shares
        print(json.dumps(found))
    else:
        print(table)
    if arguments.picture is not None:
        jaxsmooth.draw_curves(runs, arguments.picture, title=arguments.title, **levels)
    if arguments.records is not None:
        write_records(arguments.records, runs)
    if arguments.probabilities and not arguments.json:
        settings = {"style": arguments.style, "alpha": arguments.alpha}
        print(jaxsmooth.probability_table(stored, arguments.probabilities, **settings))
    if arguments.picture_of_probabilities:
        jaxsmooth.draw_probabilities(stored, arguments.picture_of_probabilities, alpha=arguments.alpha)
    return 0


def _default_radii(runs: dict[str, list[jaxsmooth.LogRow]]) -> list[float]:
    """Return the radii that were tested, if all logs are of grids; else those of the noise, or of the papers."""
    said = [rows[0].settings if rows else {} for rows in runs.values()]
    if all("radii" in settings for settings in said):
        return sorted({float(radius) for settings in said for radius in settings["radii"].split(",")})
    scales = {re.search(r"\b(?:sigma|scale)=([\d.e+-]+)", settings.get("noise", "")) for settings in said}
    found = {match[1] if match else None for match in scales}
    return _RADII if len(found) > 1 or None in found else radii_of_noise(float(str(found.pop())))


def radii_of_noise(scale: float) -> list[float]:
    """Return the radii of a table of one noise: up to three scales, in steps of half a one.

    Example:
        >>> radii_of_noise(0.25)
        [0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75]
    """
    return [float(f"{step * scale / 2:.9g}") for step in range(7)]


def _stored(paths: list[tuple[str, Path]], runs: dict[str, list[jaxsmooth.LogRow]]) -> dict[str, jaxsmooth.StoredRun]:
    """Return the votes of all inputs of each log."""
    stores = {name: Path(f"{path}.votes") for name, path in paths}
    missing = [str(path) for path in stores.values() if not path.exists()]
    if missing:
        raise ValueError(f"probabilities are those of one file of votes, and there is no {', '.join(missing)}")
    stored = {name: jaxsmooth.read_votes(path) for name, path in stores.items()}
    for name, run in stored.items():
        if len(run.idx) != len(runs[name]):
            raise ValueError(
                f"probabilities are those of one file of votes: {stores[name]} has {len(run.idx)} of the "
                f"{len(runs[name])} inputs of {name}"
            )
        logged = sorted(runs[name])
        for ours, theirs in zip(logged, sorted(run.rows()), strict=True):
            # A log rounds radii down to six decimals.
            if ours[:3] != theirs[:3] or not 0 <= theirs.radius - ours.radius < 1.1e-6 + 1e-6 * theirs.radius:
                raise ValueError(
                    f"probabilities are those of the votes of a log: {stores[name]} says of input {theirs.idx} the "
                    f"class {theirs.predict} and the radius {theirs.radius:g}, and {name} the class {ours.predict} and "
                    f"the radius {ours.radius:g}"
                )
    return stored


def _load(path: Path) -> list[jaxsmooth.LogRow]:
    """Return the rows of a log, or of those of several processes where there are such. Nothing is written there."""
    of_shares = list_share_stores(path)
    if not of_shares and not path.exists():
        raise ValueError(f"LOG must be the file of a log: there is no {path}")
    if not of_shares:
        return jaxsmooth.read_log(path)
    return read_shares(path)


def named(texts: list[str]) -> list[tuple[str, Path]]:
    """Return a name of its own for each path: the one before "=", else as much of the path as tells it.

    Example:
        >>> [name for name, _ in named(["modelA/run.tsv", "modelB/run.tsv", "mine=run.tsv"])]
        ['modelA/run', 'modelB/run', 'mine']
    """
    said = [_split(text) for text in texts]
    names = [name or name_of(path) for name, path in said]
    if len(set(names)) < len(names):
        names = [name or str(path.with_name(name_of(path))) for name, path in said]
    if len(set(names)) < len(names):
        raise ValueError(f"each run needs a name of its own, got {', '.join(names)}: give name=file")
    return [(name, path) for name, (_, path) in zip(names, said, strict=True)]


def _split(text: str) -> tuple[str, Path]:
    """Return the name and the path of `name=path`: where several "=" could part them, the first that leaves a file."""
    if Path(text).exists() or "=" not in text:
        return "", Path(text)
    at = [index for index, letter in enumerate(text) if letter == "="]
    place = next((index for index in at if Path(text[index + 1 :]).exists()), at[-1])
    return text[:place], Path(text[place + 1 :])


def name_of(path: Path) -> str:
    """Return the name of a file without its ending: `sigma_0.25` has none."""
    return path.stem if path.suffix in (".tsv", ".csv", ".txt", ".log") else path.name
