"""A radius within a fraction of the best, with the votes that this takes: a pilot sets their number for each input."""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from scipy import special

from jaxsmooth.bounds import round_down
from jaxsmooth.certify import check_bound, largest_rival, reduced_radius
from jaxsmooth.checks import check_alpha, check_integer, safe_scale
from jaxsmooth.progress import progress_bar
from jaxsmooth.rounds import check_host_task, choose, make_step, vote_round
from jaxsmooth.samples import Task
from jaxsmooth.types import ABSTAIN, Classifier, Noise
from jaxsmooth.votes import decision_keys

_LEAST = 0.45  # share of pilot votes below which an input is not pursued
_MARGIN = 1e-13  # of float64 bounds, for SciPy's errors


class PrecisionCertificate(NamedTuple):
    """What is certified for each of `N` inputs, each with its own number of votes.

    Attributes:
        label: `i32[N]`, the certified class, or `ABSTAIN`.
        radius: `f32[N]`, the certified radius, rounded down, 0 on abstention.
        p_lower: `f32[N]`, the lower confidence bound on the probability of the selected class.
        votes: `i32[N]`, how many estimation votes were cast, 0 where the pilot was hopeless.
        counts: `i32[N, K]`, the estimation votes.
        selection: `i32[N, K]`, the pilot's votes.
        rounded: `bool[N]`, whether the noise rounded the input, its radius being reduced for that.
    """

    label: jax.Array
    radius: jax.Array
    p_lower: jax.Array
    votes: jax.Array
    counts: jax.Array
    selection: jax.Array
    rounded: jax.Array


def certify_within(
    f: Classifier,
    noise: Noise,
    key: jax.Array,
    x: ArrayLike,
    precision: float = 0.05,
    *,
    n0: int = 1000,
    n: int = 100_000,
    alpha: float = 1e-3,
    bound: Literal["cohen", "runner_up"] = "cohen",
    batch_size: int = 256,
    ids: ArrayLike | None = None,
    compiled: bool = True,
    progress: bool = False,
) -> PrecisionCertificate:
    """Certify each input with as many votes as bring its radius within a fraction of that of n votes.

    A pilot of `n0` votes chooses the class and estimates its share p^. From p^ alone follows the smallest number of
    fresh votes whose bound at that share gives (1 - precision) times the radius of n votes. The bound on the fresh
    votes is then that of `certify`: the guarantee is the same and exact, since the number of votes depends on the pilot
    alone. An input with p^ below 0.45 gets none and abstains. precision, n0, n, alpha and bound are to be fixed before
    looking at any votes.

    Args:
        f, noise, key, x, n, alpha, bound, batch_size, ids: as for `certify`, n being the largest number of votes; the
            scale of the noise is a concrete number.
        precision: fraction of the radius that may be lost, in (0, 1).
        n0: number of pilot votes.
        compiled, progress: as for `certify_radii`.

    Raises:
        ValueError, TypeError: an argument is not as described.

    Example:
        >>> from jaxsmooth import Gaussian
        >>> f = lambda x: jnp.stack([x[:, 0], -x[:, 0]], -1)
        >>> x = jnp.array([[0.5, 5.0], [0.0, 0.0]])
        >>> result = certify_within(f, Gaussian(0.5), jax.random.key(0), x)
        >>> result.label, result.radius, result.votes[0] < 20_000
        (Array([ 0, -1], dtype=int32), Array([0.4..., 0. ...], dtype=float32), Array(True, dtype=bool))
    """
    precision, alpha, n0 = check_alpha(precision, "precision"), check_alpha(alpha), check_integer("n0", n0, 1, 2**30)
    selection_key, estimation_key = decision_keys(key)
    task, batch_size = check_host_task("certify_within", f, noise, estimation_key, x, n, batch_size, ids)
    check_bound(bound, task.noise)
    label, selection = choose(f, task, selection_key, n0, batch_size, compiled)
    wanted = votes_wanted(task.noise, n0, n, alpha, precision)[np.asarray(selection)[np.arange(len(label)), label]]
    step, counts, drawn = make_step(f, compiled), jnp.zeros(selection.shape, jnp.int32), np.zeros(len(label), np.int64)
    with progress_bar("votes", int(wanted.sum()), progress) as advance:
        while (drawn < wanted).any():
            counts, drawn = vote_round(step, task, counts, drawn, wanted - drawn, batch_size)
            advance(int(drawn.sum()))
    return _certificate(task, label, counts, selection, drawn, alpha, bound)


def votes_wanted(noise: Noise, n0: int, n: int, alpha: float, precision: float) -> np.ndarray:
    """Return, for each count of the pilot from 0 to n0, how many fresh votes it asks for, `i64[n0 + 1]`.

    Example:
        >>> from jaxsmooth import Gaussian
        >>> votes_wanted(Gaussian(0.5), 1000, 100_000, 0.001, 0.05)[[400, 700, 900, 990]]
        array([    0, 11261,  4369,  5652])
    """
    return _wanted(noise.unit_radius, n0, n, alpha, precision)


@functools.lru_cache(maxsize=64)
def _wanted(unit_radius: Any, n0: int, n: int, alpha: float, precision: float) -> np.ndarray:
    share = np.arange(n0 + 1) / n0

    def radius(votes: np.ndarray) -> np.ndarray:
        return unit_radius(_lower(share * votes, votes, alpha))

    enough = (1 - precision) * radius(np.full(n0 + 1, n))
    few, many = np.zeros(n0 + 1, np.int64), np.full(n0 + 1, n)
    while (many - few > 1).any():
        middle = (few + many) // 2
        reached = (enough > 0) & (radius(np.maximum(middle, 1)) >= enough)
        few, many = np.where(reached, few, middle), np.where(reached, middle, many)
    return np.where(share < _LEAST, 0, many)


def _lower(hits: np.ndarray, votes: np.ndarray, alpha: float) -> np.ndarray:
    """Return the Clopper-Pearson lower bound, stepped down, also between integers; 0 without hits."""
    bound = special.betaincinv(np.where(hits > 0, hits, 1.0), votes - hits + 1.0, alpha) * (1 - _MARGIN)
    return np.where(hits > 0, bound, 0.0)


def _certificate(
    task: Task,
    label: np.ndarray,
    counts: jax.Array,
    selection: jax.Array,
    votes: np.ndarray,
    alpha: float,
    bound: str,
) -> PrecisionCertificate:
    """Decide in float64 on the host, since each input has its own number of votes."""
    noise, hits = task.noise, np.asarray(counts, np.int64)[np.arange(len(label)), label]
    if bound == "runner_up":
        p_lower = _lower(hits, votes, alpha / 2)
        rival = np.asarray(largest_rival(counts, jnp.asarray(label), jnp.asarray(votes, jnp.int32)), np.int64)
        unit = (special.ndtri(p_lower) + special.ndtri(_lower(votes - rival, votes, alpha / 2))) / 2
    else:
        p_lower = _lower(hits, votes, alpha)
        unit = np.where(p_lower > 0.5, noise.unit_radius(p_lower), 0.0)
    certified = unit > 0
    radius = round_down(np.where(certified, safe_scale(noise) * unit * (1 - _MARGIN), 0.0))
    return PrecisionCertificate(
        p_lower=jnp.asarray(round_down(p_lower)),
        votes=jnp.asarray(votes, jnp.int32),
        counts=counts,
        selection=selection,
        **reduced_radius(noise, task.x, np.where(certified, label, ABSTAIN), radius),
    )
