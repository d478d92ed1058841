"""Test whether a classifier gives each row its scores whatever the other rows are: certificates assume it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxsmooth._checks import as_host_inputs, as_noise, shape_of_scores
from jaxsmooth._sampling import sample_noise
from jaxsmooth.arguments import as_integer, refuse_traced, refuse_uncallable
from jaxsmooth.types import Noise, RandomClassifier

__all__ = ["check_classifier", "refuse_faults"]

_WHEN_RANDOM = (
    "put a network in evaluation mode; where chance is meant, certificates hold if its random numbers are new for each "
    "row and independent of the noise: make a RandomClassifier of it, or go on without this test, in runs and classes "
    "with check=False"
)
_WHEN_OF_THE_BATCH = (
    "batch normalisation must use its running statistics: put a network in evaluation mode, as the bridges do; the "
    "first axis must be that of the inputs"
)
_TOLERANCE = 1e-4  # of the scores: kernels add in a different order at a different place of a batch


def check_classifier(
    f: Any, x: ArrayLike, *, noise: Noise | None = None, classes: int | None = None, finite: bool = True
) -> None:
    """Refuse a classifier whose scores of a row depend on more than that row.

    A certificate speaks of the class that f gives to a row. It holds only if that class depends on the row and on
    nothing else: not on the other rows (batch normalisation by the statistics of the batch), on chance (dropout) or on
    earlier calls. The test compares two batches that share rows, at other places and among other neighbours, and
    repeats the first batch after the second. Scores may differ by 1e-4 of the largest. The test cannot prove that f is
    a function: it does not see faults that these inputs do not show.

    A certificate also holds for a random f if its random numbers are new for each row and independent of the noise:
    then it speaks of the probability of a class over both. A `RandomClassifier` is such an f: of it the test asks for
    the same scores for the same row under the same key; where it draws for the batch as a whole, at the same place of
    it. Another random f cannot be told from a faulty one, and both are refused. Runs and classes leave the test out
    with `check=False`. Their votes are then not repeatable, so that a run does not go on after a restart.

    Args:
        f: classifier, `[B, *event] -> [B, K]` scores; it is called a few times, with 2N rows.
        x: some inputs `[N, *event]`, of the kind and dtype that are to be certified.
        noise: half of the rows are moved by normal numbers of its scale; by default of the standard deviation of x,
            or 1 if that is 0. A noise of norm 0 moves them itself: give it where x holds integers.
        classes: the number of classes that f should have.
        finite: whether scores must be finite. A row that has others votes for no class, which may be meant.

    Raises:
        ValueError: f depends on the batch, is random or has a state; a score is not finite; it has not that many
            classes; scores in less than 32 bits tie, or votes differ from those for x in float32. The message names
            all that was found. ValueError, TypeError: an argument is not as described. What f raises.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(8, 5))
        >>> check_classifier(lambda x: x, x, classes=5)
        >>> check_classifier(lambda x: x - x.mean(axis=0, keepdims=True), x)
        Traceback (most recent call last):
        ...
        ValueError: f must be a function of each row, but its scores depend on the batch: those of 8 of 8 rows...
    """
    refuse_uncallable(f)
    x = as_host_inputs(x, noise)
    classes = None if classes is None else as_integer("classes", classes, 2)
    inputs = len(x)
    if inputs == 0:
        raise ValueError("x must have at least one input, got none")
    noise = None if noise is None else as_noise(noise)
    refuse_traced("check_classifier", (f, x, noise))
    exact, moved = _moved(x, noise)
    wide = [np.concatenate(rows) for rows in ((exact, moved[0]), (moved[1], exact))]
    first, second = (jax.device_put(batch.astype(x.dtype)) for batch in wide)
    shared = np.arange(inputs), np.arange(inputs, 2 * inputs)
    in_float32 = jax.device_put(wide[0]) if exact.dtype != x.dtype else None
    if not isinstance(f, RandomClassifier):
        return refuse_faults(f, first, second, 2 * inputs, shared, in_float32, classes, finite)
    # The same row under the same key must have the same scores.
    keys = jax.random.split(jax.random.key(0, impl="threefry2x32"), 3 * inputs)
    of_first, of_second = keys[: 2 * inputs], jnp.concatenate([keys[2 * inputs :], keys[:inputs]])
    in_float32 = None if in_float32 is None else (in_float32, of_first)
    if f.of_batch:
        # It draws for a batch as a whole: its rows are compared at their places, under the same keys.
        of_second = of_first
        second = jax.device_put(np.concatenate([exact, moved[1]]).astype(x.dtype))
        shared = np.arange(inputs), np.arange(inputs)
    pairs = (first, of_first), (second, of_second)
    return refuse_faults(lambda pair: f(*pair), *pairs, 2 * inputs, shared, in_float32, classes, finite)


def _moved(x: Any, noise: Any) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return inputs without loss of precision, and two noisy copies of them."""
    if getattr(noise, "norm", None) == 0:
        keys = jax.random.split(jax.random.key(0, impl="threefry2x32"), 2 * len(x))
        drawn = sample_noise(noise, keys, x.shape[1:], x.dtype)
        exact = np.asarray(x)
        noisy = np.asarray(noise.add(jnp.concatenate([exact, exact]), drawn))
        return exact, [noisy[: len(x)], noisy[len(x) :]]
    exact = np.asarray(x).astype(jnp.promote_types(x.dtype, jnp.float32))
    scale = float(np.std(exact, dtype=np.float64)) or 1.0 if noise is None else float(np.asarray(noise.scale))
    # NumPy's noise will do here, and needs no program to be compiled.
    moves = np.random.default_rng(0).standard_normal((2, *exact.shape)).astype(exact.dtype)
    return exact, [exact + exact.dtype.type(scale) * move for move in moves]


def refuse_faults(
    scores: Callable[[Any], Any],
    first: Any,
    second: Any,
    number: int,
    shared: tuple[Any, Any],
    wide: Any = None,
    classes: int | None = None,
    finite: bool = True,
) -> None:
    """Raise a ValueError that names every way in which the scores of two batches depend on more than their row.

    Args:
        scores: of a batch.
        first, second: batches, in any form that `scores` takes.
        number: of rows in each of them.
        shared: where the rows that both have are in each of them.
        wide: the first batch in float32, where it has fewer bits.
        classes: the expected number of classes.
        finite: whether scores must be finite.
    """
    call = partial(_call, scores, number)
    # The third call repeats the first batch: a change is chance or a state, not a neighbour.
    before, beside, after = map(call, (first, second, first))
    if not before.shape == beside.shape == after.shape:
        raise ValueError(
            f"f must always return the same number of classes, got scores {before.shape}, {beside.shape}, {after.shape}"
        )
    faults: list[str] = []
    if classes is not None and before.shape[-1] != classes:
        faults.append(f"it has {before.shape[-1]} classes, not {classes}")
    broken = ~_all_of_row(np.isfinite(before))
    if finite and broken.any():
        faults.append(f"its scores are not finite in {broken.sum()} of {len(before)} rows")
    if (changed := _differing(before, after)).any():
        # A fourth call tells chance from a state.
        steady = not _differing(after, call(first)).any()
        kind = "it has a state: scores changed after another batch" if steady else "it is random, or has a state"
        advice = "" if steady else f" ({_WHEN_RANDOM})"
        faults.append(f"{kind}, in {changed.sum()} of {len(before)} rows{advice}")
    elif (changed := _differing(before[shared[0]], beside[shared[1]])).any():
        rows = f"{changed.sum()} of {len(changed)} rows changed with the rows beside them"
        faults.append(f"its scores depend on the batch: those of {rows} ({_WHEN_OF_THE_BATCH})")
    faults += _faults_of_dtype(before, None if wide is None else call(wide))
    if faults:
        raise ValueError(f"f must be a function of each row, but {'; '.join(faults)}")


def _call(scores: Callable[[Any], Any], rows: int, batch: Any) -> np.ndarray:
    values = scores(batch)
    values = values if isinstance(values, (jax.Array, np.ndarray)) else jnp.asarray(values)
    shape_of_scores(values, rows)
    return np.asarray(values)


def _differing(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return which rows differ by more than rounding explains, or are finite at different places."""
    wide = one.astype(np.float64)
    beside = other.astype(np.float64)
    finite = np.isfinite(wide) & np.isfinite(beside)
    # Of the two scores that decide a vote: a class that is masked by -1e9 would hide every difference of the others.
    largest = max(_size_of_best(wide, finite), _size_of_best(beside, finite))
    with np.errstate(invalid="ignore"):
        tolerance = np.maximum(largest, np.abs(wide)) * max(_TOLERANCE, 8 * _resolution(one))
        far = finite & (np.abs(wide - beside) > tolerance)
    return ~_all_of_row(~(far | (np.isfinite(wide) != np.isfinite(beside))))


def _size_of_best(scores: np.ndarray, finite: np.ndarray) -> float:
    """Return the largest size of the two best scores of a row."""
    best = np.sort(np.where(finite, scores, -np.inf), axis=-1)[..., -2:]
    return float(np.abs(best[np.isfinite(best)]).max(initial=0.0))


def _all_of_row(values: np.ndarray) -> np.ndarray:
    return np.asarray(values.all(axis=tuple(range(1, values.ndim))))


def _resolution(scores: np.ndarray) -> float:
    return float(jnp.finfo(scores.dtype).eps) if jnp.issubdtype(scores.dtype, jnp.floating) else 0.0


def _faults_of_dtype(before: np.ndarray, wide: np.ndarray | None) -> list[str]:
    """Return how the low precision of the scores or of the inputs changes votes."""
    faults: list[str] = []
    if before.dtype.itemsize < 4 and jnp.issubdtype(before.dtype, jnp.floating):
        ties = (~_all_of_row((before == before.max(axis=-1, keepdims=True)).sum(axis=-1) < 2)).sum()
        if ties:
            faults.append(f"its scores in {before.dtype} tie at the top in {ties} of {len(before)} rows")
    if wide is not None:
        moved = (~_all_of_row(wide.argmax(axis=-1) == before.argmax(axis=-1))).sum()
        if moved:
            faults.append(f"the votes of {moved} of {len(before)} rows change for inputs in float32")
    return faults
