"""A bound that holds at every number of votes at once: stop or go on whenever you like."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from scipy import special

from jaxsmooth.bounds import round_down
from jaxsmooth.certify import reduced_radius
from jaxsmooth.checks import as_numbers, check_alpha, check_integer, safe_scale
from jaxsmooth.rounds import Step, check_host_task, choose, make_step, vote_round
from jaxsmooth.samples import Task
from jaxsmooth.types import ABSTAIN, Classifier, Noise
from jaxsmooth.votes import decision_keys

_MARGIN = 1e-12  # of the bounds, for the errors of SciPy's functions
_STEPS = 60


class AnytimeCertificate(NamedTuple):
    """What is certified for each of `N` inputs so far.

    Attributes:
        label: `i32[N]`, the certified class, or `ABSTAIN`.
        radius: `f32[N]`, the certified radius, rounded down, 0 on abstention; it never decreases.
        p_lower: `f64[N]`, a NumPy array: the largest lower bound so far on the probability of the selected class.
        hits: `i64[N]`, votes for it.
        votes: estimation votes so far, the same number for each input.
        rounded: `bool[N]`, whether the noise rounded the input, its radius being reduced for that.
    """

    label: jax.Array
    radius: jax.Array
    p_lower: np.ndarray
    hits: np.ndarray
    votes: int
    rounded: jax.Array


def certify_anytime(
    f: Classifier,
    noise: Noise,
    key: jax.Array,
    x: ArrayLike,
    *,
    n0: int = 100,
    votes: int = 256,
    alpha: float = 1e-3,
    batch_size: int = 256,
    ids: ArrayLike | None = None,
    compiled: bool = True,
) -> Iterator[AnytimeCertificate]:
    """Yield certificates after every `votes` further votes for each input, for as long as they are asked for.

    `n0` votes choose a class. With probability at least 1 - alpha, for each input, every certificate that is ever
    yielded is true, so that the caller may look at each and stop for any reason. alpha and n0 are to be fixed before
    looking at any votes. For a number of votes or radii that can be fixed in advance, `certify` and `certify_radii`
    give more for the same votes.

    Args:
        f, noise, key, x, n0, alpha, batch_size, ids: as for `certify`; the scale of the noise is a concrete number.
        votes: further votes for each input between two certificates.
        compiled: as for `certify_radii`.

    Raises:
        ValueError, TypeError: an argument is not as described.

    Example:
        >>> from jaxsmooth import Gaussian
        >>> f = lambda x: jnp.stack([x[:, 0], -x[:, 0]], -1)
        >>> x = jnp.array([[1.0, 5.0], [0.5, 0.0]])
        >>> for result in certify_anytime(f, Gaussian(0.5), jax.random.key(0), x):
        ...     if (result.radius > 0.3).all():
        ...         break
        >>> result.label, result.votes < 1000
        (Array([0, 0], dtype=int32), True)
    """
    alpha, n0, votes = check_alpha(alpha), check_integer("n0", n0, 1, 2**30), check_integer("votes", votes, 1, 2**30)
    selection_key, estimation_key = decision_keys(key)
    task, batch_size = check_host_task("certify_anytime", f, noise, estimation_key, x, votes, batch_size, ids)
    label, selection = choose(f, task, selection_key, n0, batch_size, compiled)
    counts = jnp.zeros(selection.shape, jnp.int32)
    return _certificates(make_step(f, compiled), task, label, counts, votes, alpha, batch_size)


def _certificates(
    step: Step, task: Task, label: np.ndarray, counts: jax.Array, votes: int, alpha: float, batch_size: int
) -> Iterator[AnytimeCertificate]:
    drawn, p_lower, rows = np.zeros(len(label), np.int64), np.zeros(len(label)), np.arange(len(label))
    for target in itertools.count(votes, votes):
        while (drawn < target).any():
            counts, drawn = vote_round(step, task, counts, drawn, target - drawn, batch_size)
        hits = np.asarray(counts, np.int64)[rows, label]
        p_lower = np.maximum(p_lower, anytime_lower_bound(hits, target, alpha))
        radius = round_down(safe_scale(task.noise) * task.noise.unit_radius(p_lower) * (1 - _MARGIN))
        certified = (p_lower > 0.5) & (radius > 0)
        labels, radii = np.where(certified, label, ABSTAIN), np.where(certified, radius, np.float32(0))
        found = reduced_radius(task.noise, task.x, labels, radii)
        yield AnytimeCertificate(p_lower=p_lower, hits=hits, votes=target, **found)


def anytime_lower_bound(count: ArrayLike, n: ArrayLike, alpha: float) -> np.ndarray:
    """Return a lower bound on a probability from successes in n trials, valid at all n together.

    With probability at least 1 - alpha, the bounds at n = 1, 2, 3, ... all hold, hence also their running maximum. It
    inverts a one-sided mixture of likelihood ratios over the Jeffreys prior, by Ville's inequality (Howard et al. 2021,
    arXiv:1810.08240; Voracek 2024, arXiv:2406.17830).

    Args:
        count: integers in [0, n].
        n: numbers of trials, at least 1, of a shape that broadcasts against `count`.
        alpha: failure probability in (0, 1).

    Returns:
        float64 array, stepped down by 1e-12 of itself; 0 where nothing is known.

    Example:
        >>> anytime_lower_bound([0, 90, 100], 100, 0.001).round(3)
        array([0.   , 0.736, 0.922])
    """
    alpha = check_alpha(alpha)
    k, total = (as_numbers(name, value, "integers") for name, value in (("count", count), ("n", n)))
    try:
        k, total = np.broadcast_arrays(k, total)
    except ValueError:
        raise ValueError(f"n must have a shape that broadcasts against count, got {total.shape}, {k.shape}") from None
    if not (
        (k >= 0) & (k <= total) & (total >= 1) & (total < np.inf) & (k == np.floor(k)) & (total == np.floor(total))
    ).all():
        raise ValueError(f"count must hold integers in [0, n] and n integers of at least 1, got {count!r} and {n!r}")
    low, high = np.zeros(k.shape), k / total
    for _ in range(_STEPS):
        middle = (low + high) / 2
        refuted = _log_evidence(middle, k, total) >= -np.log(alpha)
        low, high = np.where(refuted, middle, low), np.where(refuted, high, middle)
    return low * (1 - _MARGIN)


def _log_evidence(q: np.ndarray, k: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Return the log of the evidence against a probability of at most q, for q below the share of successes.

    There the upper part of the posterior holds about half of it or more, so that its log is exact enough.
    """
    a, b, inside = k + 0.5, n - k + 0.5, np.clip(q, 1e-300, 1.0)
    posterior = special.betaln(a, b) + np.log(np.maximum(special.betainc(b, a, 1 - inside), 1e-300))
    prior = special.betaln(0.5, 0.5) + np.log(np.maximum(special.betainc(0.5, 0.5, 1 - inside), 1e-300))
    return posterior - prior - special.xlogy(k, inside) - special.xlog1py(n - k, -inside)
