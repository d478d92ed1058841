"""What a command prints for machines: one record of each input, and a summary."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

import jaxsmooth
from jaxsmooth.report_rows import common_settings, planned_of
from jaxsmooth.whole_files import write_whole


def refuse_records(path: Path | None, others: Sequence[Any]) -> None:
    """Refuse a file of records of another kind, or one that the command reads or writes otherwise."""
    if path is None:
        return
    if path.suffix not in (".csv", ".json"):
        raise ValueError(f"--records must end in .csv or .json, got {path}")
    if not path.parent.is_dir():
        raise ValueError(f"--records must be in a folder that is there, got {path}")
    if any(Path(other).resolve() == path.resolve() for other in others):
        raise ValueError(f"--records must be a file of its own, got {path}")


def records_of(runs: Mapping[str, Sequence[jaxsmooth.LogRow]]) -> list[dict[str, Any]]:
    """Return one record of each input: the columns of the log, and the name of its run first."""
    return [{"run": name, **row._asdict(), "correct": row.correct} for name, rows in runs.items() for row in rows]


def write_records(path: Path, runs: Mapping[str, Sequence[jaxsmooth.LogRow]]) -> None:
    """Write the records of runs as .csv or .json. Radii have all their digits."""
    records = records_of(runs)
    text = io.StringIO(newline="")
    if path.suffix == ".json":
        text.write(json.dumps(records, indent=1) + "\n")
    else:
        writer = csv.DictWriter(text, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
    write_whole(path, text.getvalue())


def summary_of(
    rows: Sequence[jaxsmooth.LogRow], radii: ArrayLike, *, alpha: float = 1e-3, delta: float = 1e-3
) -> dict[str, Any]:
    """Return the figures of a table of one run, as `jaxsmooth.report_table` has them."""
    predicted = np.array([row.predict for row in rows])
    columns = predicted, np.array([row.radius for row in rows]), np.array([row.label for row in rows])
    # Where nothing was left to chance, alpha is 0.
    level = float(rows[0].settings.get("alpha", alpha))
    certified = jaxsmooth.certified_accuracy(*columns, radii)
    bound = jaxsmooth.certified_accuracy_bound(*columns, radii, alpha=level, delta=delta) if level else certified
    return {
        "inputs": len(rows),
        "planned": planned_of(rows),
        "radii": [radius if math.isfinite(radius) else None for radius in np.asarray(radii, float).tolist()],
        "certified_accuracy": certified.tolist(),
        "at_least": bound.tolist(),
        "delta": delta,
        "average_certified_radius": jaxsmooth.average_certified_radius(*columns),
        "abstention_rate": jaxsmooth.abstention_rate(predicted),
        "votes_per_input": sum(row.votes for row in rows) / len(rows) if any(row.votes for row in rows) else None,
        "seconds": sum(row.seconds for row in rows),
        # Those of every row: a log may hold rows of several runs.
        "settings": common_settings({"": rows}, list(rows[0].settings)),
    }
