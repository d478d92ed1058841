"""A bound that holds at every number of votes at once: stop or go on whenever you like."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from jaxsmooth._checks import as_sizes
from jaxsmooth._host_loop import own_inputs
from jaxsmooth._modes import Sampler, as_sampler
from jaxsmooth.arguments import as_alpha, as_integer
from jaxsmooth.bounds import anytime_lower_bound, at_label, per_input, round_down, rounded_radius, settled, unit_radii
from jaxsmooth.types import Certificate, Classifier, Noise, Votes

__all__ = ["Anytime", "certify_anytime"]


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
) -> Iterator[Certificate]:
    """Yield certificates after every `votes` further votes for each input, for as long as they are asked for.

    `n0` votes choose a class. With probability at least 1 - alpha, for each input, every certificate that is ever
    yielded is true. So the caller may look at each and stop for any reason. Fix alpha and n0 before you look at any
    votes. For a number of votes or radii that can be fixed in advance, `certify` and `certify_radii` give more for the
    same votes.

    Args:
        f, noise, key, x, n0, alpha, batch_size, ids: as for `certify`; the scale of the noise is a concrete number.
        votes: further votes for each input between two certificates.
        compiled: as for `certify_radii`.

    Yields:
        A `Certificate` whose votes are of the rule "anytime". `votes.n` is the same for each input. The radius and
        `p_lower` never decrease.

    Raises:
        ValueError, TypeError: an argument is not as described.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsmooth import Gaussian
        >>> f = lambda x: jnp.stack([x[:, 0], -x[:, 0]], -1)
        >>> x = jnp.array([[1.0, 5.0], [0.5, 0.0]])
        >>> for result in certify_anytime(f, Gaussian(0.5), jax.random.key(0), x):
        ...     if (result.radius > 0.3).all():
        ...         break
        >>> result.label, result.votes.n < 1000
        (array([0, 0], dtype=int32), True)
    """
    alpha = as_alpha(alpha)
    mode = Anytime(n0=n0, votes=votes)
    sampler = as_sampler(f, noise, key, x, batch_size, ids, compiled)
    return _certificates(mode, sampler._replace(task=own_inputs(sampler.task)), alpha)


def _certificates(mode: "Anytime", sampler: Sampler, alpha: float) -> Iterator[Certificate]:
    votes = sampler.first(mode.n0, mode.known, mode.rule)
    plan = mode.plan(sampler.task.noise, alpha, votes.components)
    state = mode.begin(plan, votes)
    while True:
        yield replace(mode.certificate(plan, state), alpha=alpha, norm=plan.noise.norm)
        # Vote until every input has the same number of votes again, and only then look.
        target = state.votes.n.max(initial=0) + mode.votes
        votes = state.votes
        while (votes.n < target).any():
            votes = sampler.more(votes, target - votes.n.astype(np.int64))
        state = mode.look(plan, state, votes)


@dataclass(frozen=True)
class Anytime:
    """The mode of `certify_anytime` for a data set: each input gets votes until a condition holds.

    Args:
        until: function of the `Certificate` so far, of one input; the input is settled when it returns true. By
            default every input gets n votes.
        n0: number of selection votes.
        votes: estimation votes between two looks.
        n: most estimation votes of an input.

    Raises:
        ValueError, TypeError: an argument is not as described.
    """

    until: Callable[[Certificate], bool] | None = None
    n0: int = field(default=100, kw_only=True)
    votes: int = field(default=256, kw_only=True)
    n: int = field(default=100_000, kw_only=True)

    name = "anytime"
    rule = "anytime"

    def __post_init__(self) -> None:
        if self.until is not None and not callable(self.until):
            raise TypeError(f"until must be a function of a Certificate, got {self.until!r}")
        n0, n, _ = as_sizes(self.n0, self.n)
        object.__setattr__(self, "n0", n0)
        object.__setattr__(self, "n", n)
        object.__setattr__(self, "votes", as_integer("votes", self.votes, 1, 2**30))

    @property
    def known(self) -> int:
        """Estimation votes that each input gets whatever the votes are: those before the first look."""
        return min(self.votes, self.n)

    def refuse_noise(self, noise: Noise) -> None:
        """Every noise will do."""

    def plan(self, noise: Noise, alpha: float, components: int) -> "AnytimePlan":
        """Return what is fixed in advance."""
        return AnytimePlan(noise, alpha / components)

    def begin(self, plan: "AnytimePlan", votes: Votes) -> "AnytimeState":
        """Return the state after the first look."""
        return self.look(plan, AnytimeState(votes, np.zeros(votes.counts.shape[:-1])), votes)

    def needed(self, plan: "AnytimePlan", state: "AnytimeState") -> np.ndarray:
        """Return how many votes each input lacks for its next look, 0 for all once the condition holds."""
        drawn = state.votes.n.astype(np.int64)
        # The look that the furthest input is at, or on its way to.
        target = min(-(-drawn.max(initial=0) // self.votes) * self.votes, self.n)
        if (drawn < target).any():  # a round ended between two looks
            return target - drawn
        # All inputs are at a look now, so the condition may be asked.
        is_enough = target >= self.n or (self.until is not None and bool(self.until(self.certificate(plan, state))))
        return np.full(len(drawn), 0 if is_enough else min(self.votes, self.n - target))

    def look(self, plan: "AnytimePlan", state: "AnytimeState", votes: Votes) -> "AnytimeState":
        """Return the state once these votes were looked at: the bound is the largest so far."""
        label = votes.selection.argmax(axis=-1)
        bound = anytime_lower_bound(at_label(np, votes.counts, label), per_input(votes.n, label.ndim), plan.alpha)
        # A round may end between two looks. Looking there would be valid, but results would depend on the batch size.
        is_look = per_input((votes.n % self.votes == 0) | (votes.n == self.n), label.ndim)
        return AnytimeState(votes, np.where(is_look, np.maximum(state.p_lower, bound), state.p_lower))

    def certificate(self, plan: "AnytimePlan", state: "AnytimeState") -> Certificate:
        """Return the radius of the largest lower bound so far."""
        # By Ville's inequality the bounds at all numbers of votes hold together, so the largest one holds.
        p_lower = state.p_lower
        # The bound is a float64 number for each input, so no table is needed: the radius is rounded down from it.
        radius = rounded_radius(plan.noise, unit_radii(plan.noise, p_lower))
        label, radius = settled(state.votes.selection.argmax(axis=-1), radius, state.votes.lost)
        votes = replace(state.votes, n=int(state.votes.n.max(initial=0)))
        return Certificate(label, radius, round_down(p_lower), votes)


class AnytimePlan(NamedTuple):
    """What is fixed in advance: the noise, and the failure probability of each component."""

    noise: Noise
    alpha: float


class AnytimeState(NamedTuple):
    """How far a run is.

    Attributes:
        votes: so far.
        p_lower: `f64[N, *components]`, the largest lower bound so far.
    """

    votes: Votes
    p_lower: np.ndarray
