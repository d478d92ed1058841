"""A radius within a fraction of the best, with the votes that this takes: a pilot sets their number for each input.

The steps are: a pilot, a number of votes that follows from it, fresh votes, and the
decision of `certify` on those.
"""

import functools
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from jaxsmooth._checks import as_sizes
from jaxsmooth._modes import as_sampler, run
from jaxsmooth.arguments import as_alpha, refuse_unknown
from jaxsmooth.bounds import at_label, lower_bound
from jaxsmooth.certificates import Bound, decide, refuse_bound
from jaxsmooth.types import Certificate, Classifier, Noise, Votes

__all__ = ["Within", "certify_within", "votes_wanted"]

_LEAST_SHARE = 0.45  # of the pilot's votes, below which an input is not pursued


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
    bound: Bound = "cohen",
    batch_size: int = 256,
    ids: ArrayLike | None = None,
    compiled: bool = True,
    progress: bool = False,
) -> Certificate:
    """Certify each input with about the fewest votes that bring its radius near that of n votes.

    A pilot of `n0` votes chooses the class and estimates its share p^. From p^ follows the smallest number of fresh
    votes whose bound at that share gives (1 - precision) times the radius of n votes. The bound on the fresh votes is
    then that of `certify`. The guarantee is the same and exact, because the number of votes depends only on the pilot.
    The precision is an aim: the share of the fresh votes differs from p^, so about half of the inputs fall somewhat
    below it, and inputs near abstention may fall far below.
    An input with p^ below 0.45 gets none and abstains. Fix precision, n0, n, alpha and bound before you look at any
    votes.

    Args:
        f, noise, key, x, alpha, bound, batch_size, ids: as for `certify`; the scale of the noise is a concrete number.
        precision: fraction of the radius of n votes that may be lost where the fresh votes agree with the pilot, in
            (0, 1).
        n0: number of pilot votes.
        n: largest number of estimation votes.
        compiled, progress: as for `certify_radii`.

    Returns:
        A `Certificate`; `votes.n`, `i32[N]`, says how many votes each input took. With several components an input
        takes the votes that its most demanding component asks for.

    Raises:
        ValueError, TypeError: an argument is not as described.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsmooth import Gaussian
        >>> f = lambda x: jnp.stack([x[:, 0], -x[:, 0]], -1)
        >>> x = jnp.array([[0.5, 5.0], [0.0, 0.0]])
        >>> result = certify_within(f, Gaussian(0.5), jax.random.key(0), x)
        >>> result.label, result.radius, int(result.votes.n[0]) < 20_000
        (array([ 0, -1], dtype=int32), array([0.4..., 0. ...], dtype=float32), True)
    """
    alpha = as_alpha(alpha)
    mode = Within(precision, n0=n0, n=n, bound=bound)
    return run(mode, as_sampler(f, noise, key, x, batch_size, ids, compiled), alpha, progress=progress)


@dataclass(frozen=True)
class Within:
    """The mode of `certify_within`: a radius within a fraction of that of n votes.

    Args:
        precision, n0, n, bound: as for `certify_within`.

    Raises:
        ValueError, TypeError: an argument is not as described.
    """

    precision: float = 0.05
    n0: int = field(default=1000, kw_only=True)
    n: int = field(default=100_000, kw_only=True)
    bound: Bound = field(default="cohen", kw_only=True)

    name = "precision"
    rule = "fixed"  # the number of votes depends on the pilot, not on the votes that are counted

    def __post_init__(self) -> None:
        object.__setattr__(self, "precision", as_alpha(self.precision, "precision"))
        refuse_unknown("bound", self.bound, ("cohen", "runner_up"))
        n0, n, _ = as_sizes(self.n0, self.n)
        object.__setattr__(self, "n0", n0)
        object.__setattr__(self, "n", n)

    @property
    def known(self) -> int:
        """Estimation votes that each input gets whatever the pilot says: none."""
        return 0

    def refuse_noise(self, noise: Noise) -> None:
        """Refuse a noise that the bound is not for."""
        refuse_bound(self.bound, noise)

    def plan(self, noise: Noise, alpha: float, components: int) -> "WithinPlan":
        """Return how many votes each count of the pilot asks for."""
        wanted = votes_wanted(noise, self.n0, self.n, alpha / components, self.precision)
        return WithinPlan(noise, alpha, wanted)

    def begin(self, plan: "WithinPlan", votes: Votes) -> "WithinState":
        """Return the state once the pilot's votes are there: they decide how many votes each input gets."""
        # A and its share p^ = k0 / n0 come from the pilot, and so does n: nothing of it depends on the fresh votes.
        label = votes.selection.argmax(axis=-1)
        wanted = plan.wanted[at_label(np, votes.selection, label)]
        return WithinState(votes, wanted.max(axis=tuple(range(1, wanted.ndim))))

    def needed(self, plan: "WithinPlan", state: "WithinState") -> np.ndarray:
        """Return how many of the wanted votes each input lacks."""
        del plan
        return state.wanted - state.votes.n

    def look(self, plan: "WithinPlan", state: "WithinState", votes: Votes) -> "WithinState":
        """Return the state with these votes. Nothing is decided on the way."""
        del plan
        return state._replace(votes=votes)

    def certificate(self, plan: "WithinPlan", state: "WithinState") -> Certificate:
        """Decide as `certificate` does, each input for its own number of votes."""
        return decide(state.votes, plan.noise, plan.alpha, self.bound)


class WithinPlan(NamedTuple):
    """What is fixed in advance.

    Attributes:
        noise, alpha: as for `certify`.
        wanted: `i64[n0 + 1]`, how many fresh votes each count of the pilot asks for.
    """

    noise: Noise
    alpha: float
    wanted: np.ndarray


class WithinState(NamedTuple):
    """How far a run is.

    Attributes:
        votes: so far.
        wanted: `i64[N]`, how many estimation votes each input gets.
    """

    votes: Votes
    wanted: np.ndarray


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
        return unit_radius(lower_bound(share * votes, votes, alpha))

    # Bisect for the least number of votes that reaches (1 - precision) of the radius of n votes.
    enough = (1 - precision) * radius(np.full(n0 + 1, n))
    few = np.zeros(n0 + 1, np.int64)
    many = np.full(n0 + 1, n)
    while (many - few > 1).any():
        middle = (few + many) // 2
        reached = (enough > 0) & (radius(np.maximum(middle, 1)) >= enough)
        few = np.where(reached, few, middle)
        many = np.where(reached, middle, many)
    return np.where(share < _LEAST_SHARE, 0, many)
