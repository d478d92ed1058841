"""A level of noise for each input: a certified selector chooses among several, each with a classifier of its own.

Choosing sigma by looking at the input is not covered by the theorem for one sigma. It is once the choice is certified,
too (Dual Randomized Smoothing, arXiv:2512.01782).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from jaxsmooth._checks import as_batch_size, as_host_inputs, as_ids, as_noise, shape_of_scores
from jaxsmooth._claims import noise_words
from jaxsmooth._host_loop import DECISION, as_host_task, key_data, make_step
from jaxsmooth._modes import Sampler, run
from jaxsmooth._sampling import shaped_scores
from jaxsmooth.arguments import as_alpha, as_flag, as_key, in_brief, refuse_traced, refuse_uncallable
from jaxsmooth.certificates import Fixed
from jaxsmooth.precision import Within
from jaxsmooth.sequential import Grid
from jaxsmooth.stream import Stream, stream_key
from jaxsmooth.types import ABSTAIN, Certificate, Classifier, Noise, RandomClassifier, Votes

__all__ = ["Level", "LevelState", "certify_levels"]

_FIXED = Fixed()


class Level(NamedTuple):
    """A classifier, and the noise under which it votes.

    Attributes:
        f: base classifier. Each level may have its own, trained under its noise, or all the same.
        noise: of this level.
    """

    f: Classifier
    noise: Noise


class LevelState(NamedTuple):
    """What the certificates of `certify_levels` are made of: their `state`.

    Attributes:
        level: `i32[N]`, the certified level of each input, or `ABSTAIN`.
        selector: the certificates of the selector, whose labels are levels.
        radius: `[N]`, the radius of the class at the level; 0 where there is none.
    """

    level: np.ndarray
    selector: Certificate
    radius: np.ndarray


def certify_levels(
    selector: Classifier,
    levels: Sequence[Level | tuple[Classifier, Noise]],
    noise: Noise,
    key: jax.Array,
    x: ArrayLike,
    *,
    mode: Fixed | Grid | Within = _FIXED,
    selector_mode: Fixed | Grid | Within | None = None,
    alpha: float = 1e-3,
    alpha_selector: float | None = None,
    batch_size: int = 256,
    ids: ArrayLike | None = None,
    compiled: bool = True,
    progress: bool = False,
) -> Certificate:
    """Certify each input at a level of noise that a smoothed selector chooses for it.

    The selector is a classifier whose classes are the levels. It is certified under a noise of its own: the level is s
    within R_s. Then the classifier of level s is certified under the noise of that level: the class is c within R_c.
    What is certified is the classifier that asks the smoothed selector for the level, and then the smoothed classifier
    of that level. It returns c for every perturbation of x whose norm is below min(R_s, R_c). This holds for each input
    with probability at least 1 - alpha (Dual Randomized Smoothing, arXiv:2512.01782). Where either abstains, the label
    is `ABSTAIN`. Fix the levels, the modes and both alphas before you look at any votes.

    Args:
        selector: scores `[B, S]`, one for each level: any function of x. Its own radius limits that of the class, so
            it should change its mind less than the classifiers do: one that groups their classes by the level that is
            best for each class, for example.
        levels: at least two: `Level`, or pair (f, noise), in the order of the selector's classes. All noises and the
            selector's are of one norm, in the units of x.
        noise: of the selector.
        key, x, batch_size, ids, compiled: as for `certify`. The selector's votes come from a stream of their own.
        mode: how a class is certified: `Fixed(n0, n)`, `Grid(radii)` or `Within(precision)`.
        selector_mode: how a level is certified; as `mode` by default.
        alpha: failure probability for each input, in [1e-12, 0.5).
        alpha_selector: the part of alpha that goes to the level; half of it by default.
        progress: show bars.

    Returns:
        A `Certificate`, of NumPy arrays. Its votes are those at the level, of the rule "levels", which `certificate`
        and the like refuse. `state` is a `LevelState`.

    Raises:
        ValueError, TypeError: an argument is not as described.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsmooth import Gaussian
        >>> f = lambda x: jnp.stack([x[:, 0], -x[:, 0]], -1)
        >>> far = lambda x: jnp.stack([jnp.ones(len(x)), jnp.abs(x[:, 0])], -1)  # level 1 where |x| is above 1
        >>> levels = [Level(f, Gaussian(0.25)), Level(f, Gaussian(1.0))]
        >>> x = jnp.array([[0.3, 0.0], [3.0, 0.0]])
        >>> result = certify_levels(far, levels, Gaussian(0.5), jax.random.key(0), x, mode=Fixed(n=10_000))
        >>> result.state.level, result.label, result.radius.round(1)
        (array([0, 1], dtype=int32), array([0, 0], dtype=int32), array([0.3, 1.6], dtype=float32))
    """
    alpha, alpha_selector = as_shares(alpha, alpha_selector)
    mode, of_selector = as_modes(mode, selector_mode)
    refuse_traced("certify_levels", (x, key))
    refuse_uncallable(selector)
    noise, levels = as_levels(levels, noise)
    of_selector.refuse_noise(noise)
    for level in levels:
        mode.refuse_noise(level.noise)
    key = as_key(key)
    x = np.asarray(as_host_inputs(x, noise))
    ids = np.arange(len(x), dtype=np.uint32) if ids is None else np.asarray(as_ids(ids, len(x)))
    batch_size = as_batch_size(batch_size)
    compiled = as_flag("compiled", compiled)
    progress = as_flag("progress", progress)

    def certify(f: Any, own: Noise, key: jax.Array, rows: np.ndarray, mode: Any, alpha: float) -> Certificate:
        task = as_host_task(own, key_data(key, DECISION), x[rows], ids[rows])
        return run(mode, Sampler(make_step(f, compiled), task, batch_size), alpha, progress=progress)

    if compiled:  # otherwise only calling them shows how many classes there are
        like = jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype)
        shapes = [shape_of_scores(shaped_scores(f, like), batch_size) for f in (selector, *(f for f, _ in levels))]
        refuse_other_levels(shapes[0], len(levels))
        one_shape(set(shapes[1:]))
    every = np.arange(len(x))
    # A stream of its own: the level may not depend on the noise that the class is then certified with.
    chosen = certify(selector, noise, stream_key(key, Stream.LEVELS), every, of_selector, alpha_selector)
    refuse_other_levels(np.shape(chosen.votes.counts)[1:], len(levels))
    at_level = {}
    for index, level in enumerate(levels):
        rows = np.flatnonzero(np.asarray(chosen.label) == index)
        if len(rows):
            at_level[index] = rows, certify(level.f, level.noise, key, rows, mode, alpha - alpha_selector)
    return replace(joined(chosen, at_level, mode.rule), alpha=alpha, norm=noise.norm)


def joined(chosen: Certificate, at_level: dict[int, tuple[np.ndarray, Certificate]], rule: str) -> Certificate:
    """Return the certificates of all inputs, from those of the selector and those at each level.

    Args:
        chosen: of the selector.
        at_level: the rows of the inputs at each level, and their certificates.
        rule: of the mode at the levels. The radii of a grid are float64.
    """
    inputs = len(chosen.label)
    row = one_shape({np.shape(found.votes.counts)[1:] for _, found in at_level.values()})
    dtype = np.float64 if rule == "grid" else np.float32
    label = np.full((inputs, *row[:-1]), ABSTAIN, np.int32)
    own = np.zeros(label.shape, dtype)
    p_lower = np.zeros(label.shape, np.float32)
    counts = np.zeros((inputs, *row), np.int32)
    selection = np.zeros((inputs, *row), np.int32)
    n = np.zeros(inputs, np.int32)
    lost = np.zeros(inputs, np.float32)
    for rows, found in at_level.values():
        label[rows] = found.label
        own[rows] = found.radius
        p_lower[rows] = found.p_lower
        counts[rows] = found.votes.counts
        selection[rows] = found.votes.selection
        n[rows] = found.votes.n
        if found.votes.lost is not None:
            lost[rows] = found.votes.lost
    reach = np.asarray(chosen.radius).reshape(-1, *(1,) * (label.ndim - 1))
    radius = np.where(label == ABSTAIN, 0, np.minimum(own, reach)).astype(dtype)
    rounds = any(found.votes.lost is not None for _, found in at_level.values())
    sizes = {found.votes.batch_size for _, found in at_level.values()} - {None}
    votes = Votes(
        counts=counts,
        n=n,
        selection=selection,
        lost=lost if rounds else None,
        rule="levels",
        batch_size=next(iter(sizes), None),
    )
    state = LevelState(np.asarray(chosen.label), chosen, own)
    return Certificate(label, radius, p_lower, votes, state)


def one_shape(shapes: set[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the shape of a row of scores at all levels. Where no input has a level, two classes are as good as any."""
    if len(shapes) > 1:
        raise ValueError(f"the classifiers of all levels must have the same classes, got scores of shapes {shapes}")
    return next(iter(shapes), (2,))


def as_shares(alpha: Any, alpha_selector: Any) -> tuple[float, float]:
    """Return alpha, and the part of it that goes to the level."""
    alpha = as_alpha(alpha)
    share = alpha / 2 if alpha_selector is None else as_alpha(alpha_selector, "alpha_selector")
    if not share < alpha:
        raise ValueError(f"alpha_selector must be below alpha, {alpha:g}, of which it is a part, got {share:g}")
    return alpha, share


def as_modes(mode: Any, selector_mode: Any) -> tuple[Any, Any]:
    """Return how a class and a level are certified."""
    selector_mode = mode if selector_mode is None else selector_mode
    for name, value in (("mode", mode), ("selector_mode", selector_mode)):
        if not isinstance(value, (Fixed, Grid, Within)):
            raise TypeError(f"{name} must be Fixed(...), Grid(...) or Within(...), got {in_brief(value)}")
    return mode, selector_mode


def as_levels(levels: Any, noise: Any) -> tuple[Noise, list[Level]]:
    """Return the selector's noise and the levels, all of one norm."""
    expected = "levels must be a sequence of at least two (f, noise)"
    if isinstance(levels, (str, bytes, Level)) or not isinstance(levels, Sequence):
        raise TypeError(f"{expected}, got {in_brief(levels)}")
    if len(levels) < 2:
        raise ValueError(f"{expected}, got {len(levels)}")
    noise = as_noise(noise)
    made: list[Level] = []
    for index, level in enumerate(levels):
        if not isinstance(level, tuple) or len(level) != 2:
            raise TypeError(f"{expected}, got {in_brief(level)} at {index}")
        f, own = level
        refuse_uncallable(f.f if isinstance(f, RandomClassifier) else f)
        own = as_noise(own)
        if own.norm != noise.norm:
            raise ValueError(
                f"all noises must be of one norm, got that of the selector, L{noise.norm}, and L{own.norm} at {index}"
            )
        if own.norm == 0 and _unit_of(own) != _unit_of(noise):
            raise ValueError(
                f"all noises must count the same features, got {noise_words(noise)} of the selector, and "
                f"{noise_words(own)} at {index}"
            )
        made.append(Level(f, own))
    return noise, made


def _unit_of(noise: Noise) -> Any:
    """Return what a noise of norm 0 counts: the positions of an `Ablation`, or single features."""
    return getattr(noise, "positions", None)


def refuse_other_levels(shape: tuple[int, ...], levels: int) -> None:
    """Refuse a selector whose rows of scores have this shape and are not about these levels."""
    if shape != (levels,):
        raise ValueError(f"selector must return scores [B, {levels}], one for each level, got rows of shape {shape}")
