"""Splitting noise: L1 certificates from split points instead of sums, also without any chance.

Each feature is cut at a random point, and again at every distance of twice the half-width. The classifier sees in which
piece the feature is: its middle. A change of a feature moves it into another piece only if a cut lies between, so the
probability of a class changes slowly in L1, however the cuts of different features depend on each other (Levine & Feizi
2021, arXiv:2103.10834). Pixels of 256 levels leave a few hundred places for a cut. The cuts of all features move
together through these places, so that every case is run and the probabilities are known exactly.

Here nothing is drawn, so the loop that draws samples does not serve.
"""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxsmooth._checks import (
    StaticCallable,
    as_batch_size,
    as_host_inputs,
    as_votes,
    merge_callable,
    split_callable,
)
from jaxsmooth._claims import origin
from jaxsmooth._draws import random_words
from jaxsmooth._host_loop import row_votes
from jaxsmooth.arguments import (
    as_flag,
    as_integer,
    as_key,
    as_scale,
    evaluating,
    in_brief,
    refuse_traced,
    refuse_uncallable,
)
from jaxsmooth.bounds import round_down
from jaxsmooth.classifiers import refuse_faults
from jaxsmooth.logs import LogRow
from jaxsmooth.noise import Splitting
from jaxsmooth.progress import progress_bar
from jaxsmooth.runs import Job, as_run_inputs, do_job
from jaxsmooth.stream import Stream, stream_key
from jaxsmooth.types import ABSTAIN, Certificate, RandomClassifier, Votes

__all__ = ["SplittingState", "certify_splitting", "certify_splitting_dataset", "splitting_certificate"]

_MOST_LEVELS = 2**16 - 1
_MOST_SHIFTS = 2**24
_TOLERANCE = 1 / 64  # of a level, within which a feature counts as one that float32 rounded
_SELECTION = 64  # shifts by whose votes a resumed run recognises its classifier


class SplittingState(NamedTuple):
    """What a certificate of `certify_splitting` is about, beside its votes.

    Attributes:
        levels: how many steps there are from 0 to 1.
    """

    levels: int


def certify_splitting(
    f: Callable[..., Any],
    noise: Splitting,
    key: jax.Array,
    x: ArrayLike,
    *,
    levels: int = 255,
    batch_size: int = 256,
    compiled: bool = True,
    progress: bool = False,
) -> Certificate:
    """Certify a classifier under splitting noise without chance: every place of the cuts is run.

    Inputs hold multiples of 1 / levels in [0, 1], such as 8-bit images. The key draws one offset of the cuts for each
    feature. The smoothed classifier g moves all cuts together through the L = floor(2 levels half_width) places that
    they have, and returns the class A with the most votes, the lowest index in a tie. With B any other class, g returns
    A for every other such input whose L1 distance from x is at most

        floor(min over B of (n_A - n_B - [B < A]) / 2) / levels.

    Nothing is estimated, and there is no alpha (Levine & Feizi 2021, arXiv:2103.10834, section 4). It assumes that f is
    a function of each row, which `check_classifier` tests. The key is a part of g: give all inputs the same one. It
    need not be secret.

    Args:
        f: function or callable pytree from a batch `[B, *event]` to scores `[B, K]`: the middles of the pieces, in
            float32.
        noise: Splitting, of a concrete half_width.
        key: one Threefry key.
        x: inputs `f[N, *event]`.
        levels: how many steps there are from 0 to 1: 255 for 8-bit images. At most 65,535.
        batch_size: most rows in one call of f.
        compiled: run f in a compiled program; if false call it, any function of a JAX array.
        progress: show a bar over the passes.

    Returns:
        A `Certificate` of NumPy arrays. The radius is 0 where g is known at x only, and the label is `ABSTAIN` where
        all scores were invalid. `p_lower` is the probability of the class, n_A / L. Its `state` is a `SplittingState`.
        Its votes have the rule "splitting", which no other decision takes.

    Raises:
        ValueError, TypeError: an argument is not as described.

    Example:
        >>> f = lambda x: jnp.stack([x.sum(axis=1), 1 - x.sum(axis=1)], axis=-1)
        >>> x = np.array([[0.8, 0.4], [0.2, 0.2]])
        >>> result = certify_splitting(f, Splitting(0.5), jax.random.key(0), x)
        >>> result.label, result.radius.round(3), result.votes.counts.tolist()
        (array([0, 0], dtype=int32), array([0.498, 0.322], dtype=float32), [[255, 0], [210, 45]])
    """
    noise, levels = _as_splitting(noise, levels)
    batch_size = as_batch_size(batch_size)
    run = _as_run(f, compiled)
    refuse_traced("certify_splitting", (x, key), "there is no certificate without chance")
    key = as_key(key)
    whole = _as_levels(x, levels)
    shifts = _shifts(noise, levels)
    bar = progress_bar("passes", len(whole) * shifts, as_flag("progress", progress))
    with evaluating(), bar as advance:
        cuts = _make_cuts(key, whole.shape[1:], shifts, levels)
        counts = _count(run, cuts, whole, range(shifts), batch_size, advance)
    return _decide(Votes(counts=counts, n=shifts, rule="splitting"), levels)


def splitting_certificate(votes: Votes, levels: int) -> Certificate:
    """Decide from votes, such as those of `read_votes`, as `certify_splitting` does.

    Args:
        votes: of the rule "splitting": counts `[N, K]` of all n places of the cuts.
        levels: those that the votes were counted with, which the votes do not say: `run.settings["levels"]` does.

    Raises:
        ValueError, TypeError: an argument is not as described.

    Example:
        >>> votes = Votes(counts=np.array([[300, 100], [128, 127]]), n=400, rule="splitting")
        >>> splitting_certificate(votes, levels=255).radius.round(3)  # 100 / 255 and 0
        array([0.392, 0.   ], dtype=float32)
    """
    levels = as_integer("levels", levels, 1, _MOST_LEVELS)
    votes = as_votes(votes)
    if votes.rule != "splitting":
        raise ValueError(f"votes must be of the rule 'splitting', got {votes.rule!r}: they are a sample")
    if np.ndim(votes.counts) != 2:
        raise ValueError(f"votes must be of one class for each input, got counts of shape {np.shape(votes.counts)}")
    refuse_traced("splitting_certificate", votes)
    return _decide(votes, levels)


def certify_splitting_dataset(
    f: Callable[..., Any],
    noise: Splitting,
    key: jax.Array,
    data: Any,
    path: str | Path,
    *,
    levels: int = 255,
    batch_size: int = 256,
    group: int | None = None,
    skip: int = 1,
    most: int | None = None,
    compiled: bool = True,
    share: tuple[int, int] | None = None,
    check: bool = True,
    progress: bool = True,
) -> list[LogRow]:
    """Certify inputs of a data set as `certify_splitting` does, into a log, and go on where an earlier call was ended.

    Everything else is as in `certify_dataset`. The rows claim `alpha=0`, since nothing is left to chance.

    Args:
        f, noise, key, levels, batch_size: as for `certify_splitting`.
        data, path, group, skip, most, compiled, share, check, progress: as for `certify_dataset`.

    Raises:
        ValueError, TypeError, OSError: as `certify_dataset`.

    Example:
        >>> import tempfile
        >>> path, data = Path(tempfile.mkdtemp()) / "run.tsv", (np.eye(3, dtype=np.float32), np.arange(3))
        >>> rows = certify_splitting_dataset(
        ...     lambda x: x, Splitting(0.75), jax.random.key(0), data, path, progress=False
        ... )
        >>> [(row.predict, round(row.radius, 3)) for row in rows]
        [(0, 0.749), (1, 0.251), (2, 0.745)]
    """
    noise, levels = _as_splitting(noise, levels)
    batch_size = as_batch_size(batch_size)
    key = as_key(key)
    run = _as_run(f, compiled)
    shifts = _shifts(noise, levels)
    few = min(_SELECTION, shifts)
    cuts_of = functools.cache(lambda event: _make_cuts(key, event, shifts, levels))

    def votes(x: np.ndarray, first: int, stop: int) -> np.ndarray:
        return _count(run, cuts_of(x.shape[1:]), _as_levels(x, levels), range(first, stop), batch_size)

    def certify(x: np.ndarray, ids: np.ndarray) -> Certificate:
        del ids  # all inputs share the offsets
        # The first votes are kept by themselves, so that a resumed run can tell whether f is the same.
        first = votes(x, 0, few)
        counts = first + votes(x, few, shifts)
        return _decide(Votes(counts=counts, n=shifts, selection=first, rule="splitting"), levels)

    def examine(x: np.ndarray, ids: np.ndarray) -> None:
        del ids
        cuts = cuts_of(x.shape[1:])
        whole = _as_levels(x, levels)[np.zeros(batch_size, int)]
        first = np.arange(batch_size) % shifts
        # In the second batch every other row is one place further on, and those beside it are of one shift.
        places = np.arange(0, batch_size - 1, 2)
        second = np.zeros_like(first)
        second[places + 1] = first[places]
        refuse_faults(lambda at: run(cuts.middles(whole, at)), first, second, batch_size, (places, places + 1))

    def select(x: np.ndarray, ids: np.ndarray) -> np.ndarray:
        del ids
        return votes(x, 0, few)

    job = Job(
        certify=certify,
        select=select,
        examine=examine,
        settings={**origin(f, noise, key), "mode": "splitting", "levels": levels, "n": shifts, "alpha": 0},
        rule="splitting",
        selects=False,
        n=shifts,
        group=16,
    )
    return do_job(job, as_run_inputs(data, skip, most, share), path, group, check, progress)


def _as_splitting(noise: Any, levels: Any) -> tuple[Splitting, int]:
    """Return a splitting noise of a concrete half-width, and a number of levels, that have cuts."""
    if not isinstance(noise, Splitting):
        raise TypeError(f"noise must be Splitting(half_width), got {in_brief(noise)}")
    refuse_traced("certify_splitting", noise)
    as_scale("half_width", noise.half_width)
    levels = as_integer("levels", levels, 1, _MOST_LEVELS)
    if not 1 <= _shifts(noise, levels) <= _MOST_SHIFTS:
        raise ValueError(
            f"half_width must leave at least 1 place for cuts between {levels} levels, and at most {_MOST_SHIFTS}, "
            f"got {noise.half_width}"
        )
    return noise, levels


def _shifts(noise: Splitting, levels: int) -> int:
    """Return the number of places that a cut has, L."""
    exact = 2 * levels * float(np.asarray(noise.half_width))
    # A whole number, if it is one but for the rounding of the half-width to float32.
    nearest = round(exact)
    return nearest if abs(exact - nearest) <= 2.0**-23 * exact else math.floor(exact)


def _as_levels(x: Any, levels: int) -> np.ndarray:
    """Return inputs as whole numbers from 0 to `levels`."""
    if jnp.issubdtype(getattr(x, "dtype", np.float32), jnp.integer):
        raise TypeError(f"x must hold multiples of 1 / {levels} in [0, 1], got dtype {x.dtype}: divide by {levels}")
    x = np.asarray(as_host_inputs(x)).astype(np.float64)
    scaled = x * levels
    whole = np.round(scaled)
    off = np.abs(scaled - whole).max(initial=0.0)
    if off > _TOLERANCE or whole.min(initial=0) < 0 or whole.max(initial=0) > levels:
        raise ValueError(
            f"x must hold multiples of 1 / {levels} in [0, 1], got values from {x.min():g} to {x.max():g}, up to "
            f"{off:.2g} of a level away from such a multiple: divide pixels from 0 to {levels} by {levels}, and round "
            "others first"
        )
    return whole.astype(np.int32)


class _Cuts(NamedTuple):
    """Where features are cut.

    Attributes:
        offsets: `i32[*event]`, of the cuts of each feature.
        shifts: how many places the cuts have.
        levels: how many steps there are from 0 to 1.
    """

    offsets: np.ndarray
    shifts: int
    levels: int

    def middles(self, x: np.ndarray, shift: np.ndarray) -> jax.Array:
        """Return what f sees of inputs `i32[B, *event]`, each at its shift `i[B]`."""
        return _middles(x, self.offsets, shift.astype(np.int32), self.shifts, self.levels)


def _make_cuts(key: jax.Array, event: tuple[int, ...], shifts: int, levels: int) -> _Cuts:
    """Return cuts whose offsets the key draws: any will do."""
    words = np.asarray(random_words(stream_key(key, Stream.SPLITTING), math.prod(event)))
    return _Cuts((words % np.uint32(shifts)).astype(np.int32).reshape(event), shifts, levels)


def _as_run(f: Any, compiled: Any) -> Callable[[jax.Array], Any]:
    """Return a classifier that is called with the rows of a batch."""
    if isinstance(f, RandomClassifier):
        raise TypeError("f must be a function of the inputs for splitting without chance, got a RandomClassifier")
    refuse_uncallable(f)
    if not as_flag("compiled", compiled):
        return f
    arrays, static = split_callable(f)
    return lambda rows: _run(arrays, static, rows)


@functools.partial(jax.jit, static_argnums=1)
def _run(arrays: list[Any], static: StaticCallable, rows: jax.Array) -> Any:
    return merge_callable(arrays, static)(rows)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _middles(x: jax.Array, offsets: jax.Array, shift: jax.Array, shifts: int, levels: int) -> jax.Array:
    """Return the middles of the pieces of [0, 1] that the features are in, `f32[B, *event]`.

    The cuts are half-way between two levels. All that depends on x is the number of the piece, so that inputs between
    which there is no cut have the same bits.
    """
    cut = (offsets[None] + shift.reshape(-1, *(1,) * offsets.ndim)) % shifts
    least = (x + cut) // shifts * shifts - cut  # the lowest level of the piece
    low = jnp.maximum(2 * least - 1, 0)
    high = jnp.minimum(2 * (least + shifts) - 1, 2 * levels)
    return (low + high).astype(jnp.float32) / np.float32(4 * levels)


def _count(
    run: Callable[[jax.Array], Any],
    cuts: _Cuts,
    x: np.ndarray,
    shifts: range,
    batch_size: int,
    advance: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Return the votes of each input at these shifts, `i32[N, K]`."""
    each = len(shifts)
    total = len(x) * each
    if total == 0:
        # A batch of one input that is there, or of zeros, shows how many classes there are.
        none = np.zeros(batch_size, int)
        rows = cuts.middles(x[none], none) if len(x) else jnp.zeros((batch_size, *x.shape[1:]), jnp.float32)
        return np.zeros((len(x), *row_votes(run(rows), none, 0).shape[1:]), np.int32)
    counts: np.ndarray | None = None
    for taken in range(0, total, batch_size):
        # Pairs of inputs and shifts, one after the other. Those beyond the last one are padding.
        at = np.arange(taken, taken + batch_size)
        row = np.minimum(at // each, len(x) - 1)
        scores = run(cuts.middles(x[row], shifts.start + at % each))
        slots = int(row[-1] - row[0]) + 1
        votes = row_votes(scores, np.where(at < total, row - row[0], slots), slots)
        if votes.ndim != 2:
            raise ValueError(f"f must return scores [B, K], got components of shape {votes.shape[1:-1]}")
        if counts is None:
            counts = np.zeros((len(x), votes.shape[-1]), np.int32)
        counts[row[0] : row[0] + len(votes)] += votes
        if advance is not None:
            advance(min(taken + batch_size, total))
    assert counts is not None
    return counts


def _decide(votes: Votes, levels: int) -> Certificate:
    """Decide from the votes of all shifts."""
    counts = np.asarray(votes.counts)
    label = counts.argmax(axis=1)
    top = counts.max(axis=1, initial=0)
    # A class with a lower index wins a tie, so it must stay one vote behind.
    rivals = counts + (np.arange(counts.shape[1]) < label[:, None])
    np.put_along_axis(rivals, label[:, None], -1, axis=1)
    steps = np.maximum(top - rivals.max(axis=1, initial=0), 0) // 2
    is_known = top > 0
    radius = np.where(is_known, round_down(steps / levels), np.float32(0))
    label = np.where(is_known, label, ABSTAIN).astype(np.int32)
    return Certificate(label, radius, round_down(top / votes.n), votes, SplittingState(levels), alpha=0, norm=1)
