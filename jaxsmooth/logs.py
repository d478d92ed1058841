"""The log of certificates: tab-separated text in the columns that Cohen et al. (2019) published, followed by ours."""

import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from decimal import ROUND_FLOOR, Decimal
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike

from jaxsmooth._checks import as_noise
from jaxsmooth._claims import CLAIMED, claim, level_words, noise_words
from jaxsmooth.arguments import as_alpha, as_integer, as_key, as_nonnegative, as_numbers, in_brief
from jaxsmooth.certificates import certificate
from jaxsmooth.discrete import Ablation
from jaxsmooth.noise import Gaussian, Splitting
from jaxsmooth.types import ABSTAIN, Certificate, Noise
from jaxsmooth.whole_files import write_whole

COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")
OWN_COLUMNS = ("votes", "claim")
HEADER = "\t".join(COLUMNS + OWN_COLUMNS)


class LogRow(NamedTuple):
    """One certified input.

    Attributes:
        idx: index of the input in its data set.
        label: true class.
        predict: certified class, or `ABSTAIN` (-1).
        radius: certified radius.
        seconds: time that the certificate took.
        votes: number of estimation samples, 0 where it is not known.
        claim: what the certificate claims and which settings it was made with, as `name=value` words.
    """

    idx: int
    label: int
    predict: int
    radius: float
    seconds: float
    votes: int = 0
    claim: str = ""

    @property
    def correct(self) -> bool:
        """Whether the certified class is the true one."""
        return self.predict == self.label

    @property
    def settings(self) -> dict[str, str]:
        """The claim, by name."""
        return dict(word.split("=", 1) for word in self.claim.split())


def log_rows(
    result: Certificate,
    truth: ArrayLike,
    *,
    noise: Noise | Sequence[Any],
    alpha: float | None = None,
    idx: ArrayLike | None = None,
    seconds: float = 0.0,
    **settings: Any,
) -> list[LogRow]:
    """Return certificates as rows of a log, for `write_log`, `report_table` and `draw_curves`.

    Args:
        result: of `certify` or another mode, for inputs with one class each.
        truth: `[N]` true classes.
        noise: what the certificates were made with. The rows claim it. For a result of `certify_levels` give its
            levels.
        alpha: failure probability for each input. By default that of the result, which another one contradicts.
        idx: `[N]` indices of the inputs in their data set; 0, 1, 2, ... by default.
        seconds: time that a certificate took.
        **settings: more for the rows to claim, by name, such as `mode`, `n0`, `n`, `radii`, `key`. What the result
            says itself, `k` of the top k and `m` of another version, need not be given.

    Raises:
        ValueError, TypeError: an argument is not as described.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxsmooth import Gaussian, certify
        >>> noise, x = Gaussian(0.5), jnp.array([[1.0, 0.0], [0.0, 2.0]])
        >>> result = certify(lambda x: x, noise, jax.random.key(0), x, n=1000)
        >>> for row in log_rows(result, [0, 1], noise=noise, n=1000):
        ...     print(row.label, row.predict, row.votes, row.claim)
        0 0 1000 noise=Gaussian(sigma=0.5) norm=2 alpha=0.001 n=1000
        1 1 1000 noise=Gaussian(sigma=0.5) norm=2 alpha=0.001 n=1000
    """
    label = _labels_of(result)
    known = _as_integers("truth", truth, len(label))
    at = np.arange(len(label)) if idx is None else _as_integers("idx", idx, len(label))
    if len(set(at.tolist())) < len(at):
        raise ValueError("idx must name each input once")
    seconds = as_nonnegative("seconds", seconds)
    own = _own_words(result)
    of_noise = _noise_words(result, noise)
    if result.norm is not None and of_noise["norm"] != result.norm:
        raise ValueError(f"noise must be that of the result, of norm {result.norm}, got one of norm {of_noise['norm']}")
    _refuse_other_noise(result, noise)
    words = {**_as_settings({**own, **settings}, own), **of_noise}
    drawn = np.asarray(result.votes.n)
    if result.votes.rule == "fixed" and drawn.ndim == 0 and words.get("n") not in (None, drawn):
        raise ValueError(f"n must be that of the result, {drawn}, got {words['n']}")
    said = claim({**words, "alpha": _as_alpha_of(result, alpha)})
    return _rows(result, known, at, seconds, said)


def _refuse_other_noise(result: Certificate, noise: Any) -> None:
    """Refuse a noise under which the votes certify other radii, where they tell that: those of a fixed n do."""
    votes = result.votes
    alpha = result.alpha
    if votes.rule != "fixed" or votes.selection is None or result.state is not None or not alpha:
        return
    if np.ndim(votes.n) or votes.counts.ndim != 2 or hasattr(noise, "lost_radius") != (votes.lost is not None):
        return
    certified = np.asarray(result.label) != ABSTAIN
    radius = np.asarray(result.radius)[certified]
    bounds: list[Any] = ["cohen", "runner_up"] if isinstance(noise, (Gaussian, Ablation)) else ["cohen"]
    decided = [certificate(votes, noise, alpha=alpha, bound=bound) for bound in bounds]
    found = [np.asarray(each.radius)[certified] for each in decided]
    if not any(np.allclose(radius, own, rtol=1e-3, atol=0) for own in found):
        at = int(np.argmax(~np.isclose(radius, found[0], rtol=1e-3, atol=0)))
        raise ValueError(
            f"noise must be that of the result, whose radius {radius[at]:.6g} is {found[0][at]:.6g} under {noise}"
        )


def unclaimed_rows(result: Certificate, truth: ArrayLike) -> list[LogRow]:
    """Return certificates as rows that claim what the result says itself: its level, its norm, its k or m."""
    label = _labels_of(result)
    known = _as_integers("truth", truth, len(label))
    classes = np.shape(result.votes.counts)[-1]
    if len(known) and known.max() >= classes:
        raise ValueError(f"truth must hold classes below {classes}, as many as were counted, got {known.max()}")
    words = {**_own_words(result), "alpha": result.alpha, "norm": result.norm}
    return _rows(result, known, np.arange(len(label)), 0.0, claim(words))


def _labels_of(result: Any) -> np.ndarray:
    """Return the classes of a certificate that has one for each input."""
    if not isinstance(result, Certificate):
        raise TypeError(f"result must be a Certificate, got {in_brief(result)}")
    label = np.asarray(result.label)
    if label.ndim != 1:
        raise ValueError(f"result must have one class for each input, got labels of shape {label.shape}")
    return label


def _own_words(result: Certificate) -> dict[str, Any]:
    """Return what the state of a result claims by name."""
    return {name: getattr(result.state, name) for name in ("k", "m", "levels") if hasattr(result.state, name)}


def _rows(result: Certificate, truth: np.ndarray, at: np.ndarray, seconds: float, said: str) -> list[LogRow]:
    label = np.asarray(result.label)
    votes = np.broadcast_to(np.asarray(result.votes.n), label.shape)
    chosen = getattr(result.state, "selector", None)
    if chosen is not None:  # of `certify_levels`: the votes of both
        votes = votes + np.asarray(chosen.votes.n)
    columns = zip(at, truth, label, np.asarray(result.radius), votes, strict=True)
    return [LogRow(int(i), int(y), int(c), float(r), seconds, int(n), said) for i, y, c, r, n in columns]


def _as_alpha_of(result: Certificate, alpha: Any) -> float:
    """Return the failure probability of a result: 0 where nothing was left to chance."""
    if alpha is None:
        if result.alpha is None:
            raise ValueError("alpha must be given for a result that does not say it")
        return result.alpha
    if result.votes.rule == "splitting":
        if as_nonnegative("alpha", alpha) != 0:
            raise ValueError(f"alpha must be 0 for a result of certify_splitting, which has none, got {alpha}")
        return 0
    alpha = as_alpha(alpha)
    if result.alpha is not None and alpha != result.alpha:
        raise ValueError(f"alpha must be that of the result, {result.alpha:g}, got {alpha:g}")
    return alpha


def _noise_words(result: Certificate, noise: Any) -> dict[str, Any]:
    """Return what rows claim of the noise: of one, or of each level."""
    if result.votes.rule == "levels":
        try:
            noises = [as_noise(own) for _, own in noise]
        except (TypeError, ValueError):
            raise TypeError(
                f"noise must be the levels of certify_levels for its result, got {in_brief(noise)}"
            ) from None
        return {"noise": level_words([(None, own) for own in noises]), "norm": noises[0].norm}
    noise = as_noise(noise)
    if result.votes.rule == "splitting" and not isinstance(noise, Splitting):
        raise TypeError(f"noise must be Splitting for a result of certify_splitting, got {in_brief(noise)}")
    return {"noise": noise_words(noise), "norm": noise.norm}


def _as_settings(settings: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Return settings that a claim can hold as words."""
    free = [name for name in CLAIMED if name not in ("noise", "norm", "alpha", "truth")]
    unknown = [name for name in settings if name not in free]
    if unknown:
        raise TypeError(f"settings must be among {', '.join(free)}, got {', '.join(unknown)}")
    for name in ("k", "m", "levels"):
        if name in settings and name not in own:
            raise ValueError(f"{name} is for a result that says it, and this one does not")
    for name, value in own.items():
        if settings[name] != value:
            raise ValueError(f"{name} must be that of the result, {value}, got {settings[name]}")
    made: dict[str, Any] = {}
    for name, value in settings.items():
        if name == "key":
            made[name] = np.asarray(jax.random.key_data(as_key(value))).tolist()
            continue
        is_array = isinstance(value, (tuple, list, np.ndarray, jax.Array))
        made[name] = np.asarray(value).tolist() if is_array else value
        text = str(value) if not is_array else ",".join(map(str, made[name]))
        if text != "".join(text.split()):
            raise ValueError(f"{name} must be one word, got {in_brief(value)}")
    return made


def _as_integers(name: str, value: Any, inputs: int) -> np.ndarray:
    """Return one integer of at least 0 for each input."""
    array = as_numbers(name, value, f"{inputs} integers")
    if array.shape != (inputs,):
        raise ValueError(f"{name} must have one integer for each of the {inputs} inputs, got shape {array.shape}")
    if not ((array >= 0) & (array == np.floor(array)) & (array < 2**53)).all():
        raise ValueError(f"{name} must hold integers of at least 0, got {in_brief(value)}")
    return array.astype(np.int64)


def write_log(path: str | Path, rows: Iterable[LogRow]) -> None:
    """Write rows as text, one line each under the header `idx label predict radius correct time votes claim`.

    Radii are rounded down to six decimals, never up. The file is replaced as a whole, once all rows are there.

    Raises:
        ValueError, TypeError: a radius or a time is negative or not finite, or a row is not as described. Nothing is
            written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "certificates.tsv")
        >>> write_log(path, [LogRow(3, 7, 7, radius=0.9999999, seconds=1.5, votes=100, claim="norm=2 alpha=0.001")])
        >>> print(path.read_text().expandtabs(9), end="")
        idx      label    predict  radius   correct  time     votes    claim
        3        7        7        0.999999 1        0:00:01.500000    100      norm=2 alpha=0.001
    """
    if not isinstance(rows, Iterable) or getattr(rows, "shape", None) == ():  # pyright: ignore
        raise TypeError(f"rows must be rows of a log, got {in_brief(rows)}")
    lines = [HEADER, *map(format_row, rows)]
    write_whole(Path(path), "\n".join(lines) + "\n")


def read_log(path: str | Path) -> list[LogRow]:
    """Read a log: ours, or one published by Cohen et al., which has only the first six columns.

    `correct` may be True or False, as in some published logs.

    Raises:
        ValueError: the header begins otherwise, an index is there twice, or a line is incomplete or malformed; the
            message names the line, the column and what is there. The file is no text in UTF-8, a file of votes or a
            directory.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "certificates.tsv")
        >>> write_log(path, [LogRow(idx=3, label=7, predict=7, radius=0.5, seconds=1.5)])
        >>> read_log(path)
        [LogRow(idx=3, label=7, predict=7, radius=0.5, seconds=1.5, votes=0, claim='')]
    """
    text = _read_text(Path(path))
    lines = text.splitlines()
    columns = tuple(lines[0].split("\t")) if lines else ()
    if columns not in (COLUMNS, COLUMNS + OWN_COLUMNS):
        raise ValueError(f"{path} must begin with the columns {' '.join(COLUMNS)}, got {lines[:1]}")
    if not text.endswith("\n"):
        raise ValueError(f"{path}, line {len(lines)} is torn: it does not end")
    rows = [_parse(line, columns, f"{path}, line {number}") for number, line in enumerate(lines[1:], start=2)]
    seen: dict[int, int] = {}
    for number, row in enumerate(rows, start=2):
        if row.idx in seen:
            raise ValueError(f"{path}, line {number}: idx {row.idx} is there before, in line {seen[row.idx]}")
        seen[row.idx] = number
    return rows


def planned_inputs(path: Path) -> int:
    """Return of how many inputs a log says that its run is; 0 where it says nothing, or is not there."""
    if not path.exists():
        return 0
    with path.open(encoding="utf-8", errors="replace") as file:
        found = [re.search(r"\binputs=(\d+)", line) for line in itertools.islice(file, 1, 2)]
    return int(found[0].group(1)) if found and found[0] else 0


def format_row(row: LogRow) -> str:
    """Return the line of a row, without its end."""
    if not isinstance(row, LogRow):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"rows must hold rows of a log, got {row!r}")
    for name in ("idx", "label", "predict", "votes"):
        as_integer(f"{name} of a row", getattr(row, name), ABSTAIN, 2**63 - 1)
    for name, value in (("radius", row.radius), ("seconds", row.seconds)):
        if isinstance(value, (str, bytes)) or as_numbers(name, value, "a number").ndim != 0:
            raise TypeError(f"{name} must be a number, got {in_brief(value)} for idx {row.idx}")
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be finite and not negative, got {value} for idx {row.idx}")
    if not isinstance(row.claim, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"claim must be text, got {row.claim!r} for idx {row.idx}")
    words = row.claim.split(" ") if row.claim else []
    if any("=" not in word or word != "".join(word.split()) for word in words):
        raise ValueError(f"claim must be name=value words with one space between, got {row.claim!r} for idx {row.idx}")
    radius = _radius_text(row)
    time = timedelta(seconds=float(row.seconds))
    fields = (row.idx, row.label, row.predict, radius, int(row.correct), time, row.votes, row.claim)
    return "\t".join(map(str, fields))


def _radius_text(row: LogRow) -> str:
    """Return the radius as the log has it: no radius that is read is larger than the certified one."""
    value = float(row.radius)
    if value > row.radius:  # of a wider type
        value = math.nextafter(value, 0.0)
    # A radius of a grid is written as it was given, 0.3 or 0.3333333333: cut, it would lie below its own grid.
    if float(as_given := f"{value:.6f}") == value:
        return as_given
    if value in map(float, filter(None, row.settings.get("radii", "").split(","))):
        return repr(value)
    # Decimal rounds the exact value toward zero.
    return str(Decimal(value).quantize(Decimal("0.000001"), rounding=ROUND_FLOOR))


def _read_text(path: Path) -> str:
    """Return the text of a log, or say what else the file is."""
    if path.is_dir():
        raise ValueError(f"{path} is a directory, not a log")
    data = path.read_bytes()
    if data.startswith(b"jaxsmooth votes"):
        raise ValueError(f"{path} is a file of votes, not a log: read_votes reads it")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{path} is in UTF-16: save it as UTF-8")
    if data.startswith(b"\xef\xbb\xbf"):
        raise ValueError(f"{path} begins with a byte order mark: save it as UTF-8 without one")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from None


_TRUTH = {"0": False, "1": True, "False": False, "True": True}


def _parse(line: str, columns: tuple[str, ...], place: str) -> LogRow:
    """Return the row of a line, or name the column that is wrong."""
    fields = line.split("\t")
    if len(fields) != len(columns):
        raise ValueError(f"{place}: expected the columns {' '.join(columns)} separated by tabs, got {line!r}")
    found = dict(zip(columns, fields, strict=True))

    def read(name: str, convert: Callable[[str], Any], fits: Callable[[Any], bool], expected: str) -> Any:
        try:
            value = convert(found[name])
        except (ValueError, KeyError, OverflowError):
            value = None
        if value is None or not fits(value):
            raise ValueError(f"{place}, column {name}: expected {expected}, got {found[name]!r}")
        return value

    def is_finite(value: float) -> bool:
        return math.isfinite(value) and value >= 0

    idx = read("idx", int, lambda value: value >= 0, "an index of at least 0")
    label = read("label", int, lambda value: value >= 0, "a class of at least 0")
    predict = read("predict", int, lambda value: value >= ABSTAIN, "a class, or -1")
    radius = read("radius", float, is_finite, "a radius of at least 0")
    read(
        "correct",
        _TRUTH.__getitem__,
        lambda value: value == (predict == label),
        f"{int(predict == label)}, as predict says",
    )
    seconds = read("time", _seconds, is_finite, "a time, as 0:00:01.5")
    if len(columns) == len(COLUMNS):
        return LogRow(idx, label, predict, radius, seconds)
    votes = read("votes", int, lambda value: value >= 0, "a number of at least 0")
    return LogRow(idx, label, predict, radius, seconds, votes, found["claim"])


def _seconds(time: str) -> float:
    """Return the seconds of "1 day, 0:01:02.5" or of "62.5": published logs have both."""
    if ":" not in time:
        return float(time)
    days, _, clock = time.rpartition(", ")
    hours, minutes, seconds = clock.split(":")
    return float(days.split()[0] if days else 0) * 86400 + int(hours) * 3600 + int(minutes) * 60 + float(seconds)
