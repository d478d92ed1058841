"""Show the logs of certify.py, or those published by Cohen et al.: a table, and a picture of the curves.

Logs of several processes are merged first. Try it: python examples/report.py run.tsv "mine=other.tsv" --radii 0 0.5 1
"""

import argparse
from pathlib import Path

from loading import share_files

import jaxsmooth

RADII = [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5]


def load(path: Path) -> list[jaxsmooth.LogRow]:
    """Return the rows of a log, made first of those of several processes where there are such."""
    return jaxsmooth.merge_shares(path) if share_files(path) else jaxsmooth.read_log(path)


def named(texts: list[str]) -> list[tuple[str, Path]]:
    """Return a name of its own for each path: the one before the last "=", else as much of the path as tells it.

    Example:
        >>> [name for name, _ in named(["modelA/run.tsv", "modelB/run.tsv", "mine=run.tsv"])]
        ['modelA/run', 'modelB/run', 'mine']
    """
    said = [text.rpartition("=") if not Path(text).exists() else ("", "", text) for text in texts]
    paths = [Path(path) for *_, path in said]
    names = [name or path.stem for (name, *_), path in zip(said, paths, strict=True)]
    if len(set(names)) < len(names):
        names = [name or str(path.with_suffix("")) for (name, *_), path in zip(said, paths, strict=True)]
    if len(set(names)) < len(names):
        raise ValueError(f"each run needs a name of its own, got {', '.join(names)}: give name=path")
    return list(zip(names, paths, strict=True))


def main(argv: list[str] | None = None) -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("logs", nargs="+", help="paths of logs, or name=path to show another name")
    parser.add_argument("--radii", type=float, nargs="+", default=RADII, help="of the table")
    parser.add_argument("--style", choices=["text", "markdown", "latex"], default="text", help="of the table")
    parser.add_argument("--alpha", type=float, default=0.001, help="of the certificates, where a log does not say it")
    parser.add_argument("--delta", type=float, default=0.001, help="failure probability of the rows 'at least'")
    parser.add_argument("--picture", type=Path, help="file to draw the curves into (needs matplotlib)")
    parser.add_argument(
        "--probabilities",
        type=float,
        nargs="+",
        metavar="P",
        help="print, too, the share of inputs whose true class is more probable than P under the noise, from the files "
        "of votes beside the logs",
    )
    parser.add_argument("--picture-of-probabilities", type=Path, metavar="FILE", help="file to draw all of them into")
    arguments = parser.parse_args(argv)
    try:
        runs = {name: load(path) for name, path in named(arguments.logs)}
        levels = {"alpha": arguments.alpha, "delta": arguments.delta}
        print(jaxsmooth.report_table(runs, arguments.radii, style=arguments.style, **levels))
        if arguments.picture is not None:
            jaxsmooth.draw_curves(runs, arguments.picture, **levels)
        if arguments.probabilities or arguments.picture_of_probabilities:
            paths = {name: Path(f"{path}.votes") for name, path in named(arguments.logs)}
            if missing := [str(path) for path in paths.values() if not path.exists()]:
                raise ValueError(f"probabilities are those of one file of votes, and there is no {', '.join(missing)}")
            stored = {name: jaxsmooth.read_votes(path) for name, path in paths.items()}
            if arguments.probabilities:
                settings = {"style": arguments.style, "alpha": arguments.alpha}
                print(jaxsmooth.probability_table(stored, arguments.probabilities, **settings))
            if arguments.picture_of_probabilities:
                jaxsmooth.draw_probabilities(stored, arguments.picture_of_probabilities, alpha=arguments.alpha)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
