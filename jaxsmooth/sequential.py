"""Certify a radius of a grid with as few votes as it takes: an exactly calibrated group-sequential test.

Which mode to choose, before any votes are looked at:

- `certify_radii`, where the radii that matter are known, as in a table of certified accuracy: 10 to 100 times fewer
  votes than a fixed number. The radius that it returns is one of the grid.
- `certify_within`, where each input's own radius is wanted: 3 to 8 times fewer votes, for a radius within 5 % of that
  of all votes.
- `certify`, with a fixed number of votes, where every input's votes are wanted, or one compiled program.
- `certify_anytime`, where nothing can be fixed in advance: a bound that holds at every number of votes at once.

What is fixed in advance is part of the guarantee: the grid or the precision, n, alpha, the looks. An input that was
looked at here cannot be taken further under another rule: its votes and its state say how they came about.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from jaxsmooth._checks import as_sizes
from jaxsmooth._claims import noise_identity
from jaxsmooth._host_loop import HostTask
from jaxsmooth._modes import as_sampler, run
from jaxsmooth.arguments import as_alpha, as_integer
from jaxsmooth.bounds import at_label, per_input, reduced, round_down
from jaxsmooth.plans import RadiiPlan, as_looks, as_radii, edge_probability, make_looks, plan_radii
from jaxsmooth.types import ABSTAIN, Certificate, Classifier, Noise, Votes

__all__ = ["Grid", "GridState", "certify_radii", "look_at_votes"]


def certify_radii(
    f: Classifier,
    noise: Noise,
    key: jax.Array,
    x: ArrayLike,
    radii: Sequence[float],
    *,
    n0: int = 100,
    n: int = 100_000,
    alpha: float = 1e-3,
    beta: float = 1e-3,
    looks: Sequence[int] | None = None,
    batch_size: int = 256,
    ids: ArrayLike | None = None,
    compiled: bool = True,
    state: "GridState | None" = None,
    most_votes: int | None = None,
    progress: bool = False,
) -> Certificate:
    """Certify the largest radius of a grid that holds, for each input, with as few votes as it takes.

    `n0` votes choose a class. Fresh votes are looked at after 64, 80, 100, ... of them, at most n, until every radius
    of the grid is certified or given up. With probability at least 1 - alpha, for each input, the smoothed classifier
    returns `label` for every perturbation below `radius` (norm 0: of at most `radius` features), as `certify`
    guarantees: the probability of a false certificate is computed exactly for the whole sequence of looks
    (`jaxsmooth.plans.plan_radii`). Fix radii, n0, n, alpha, beta and looks before you look at any votes. It runs on the
    host. Batches have one size and are filled from whichever inputs are open; no result depends on that.

    Args:
        f, noise, key, x, n0, alpha, batch_size, ids: as for `certify`; the scale of the noise is a concrete number.
        radii: increasing, at least 0, in the units of `x`. 0 is the class only.
        n: largest number of estimation votes.
        beta: probability of giving up a radius that could just be certified; no part of the guarantee.
        looks: numbers of votes to look after, `plans.make_looks(n)` by default.
        compiled: run f inside a compiled step; if false call it, any function of a JAX array.
        state: of the certificate of an earlier call with the same arguments, which `most_votes` cut short.
        most_votes: stop once this many votes were cast here; inputs that are not settled keep what they have.
        progress: show a bar.

    Returns:
        A `Certificate` whose votes are of the rule "grid". `radius` is `f64`, one of the given radii. `votes.n` says
        how many votes each input took, and `state.is_settled` which inputs need no more. With several components, all
        radii of an input hold together.

    Raises:
        ValueError, TypeError: an argument is not as described; the state is of other arguments.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsmooth import Gaussian
        >>> f = lambda x: jnp.stack([x[:, 0], -x[:, 0]], -1)
        >>> x = jnp.array([[1.0, 5.0], [0.3, 0.0], [0.0, 0.0]])
        >>> result = certify_radii(f, Gaussian(0.5), jax.random.key(0), x, [0.25, 0.5, 0.75])
        >>> result.label, result.radius, int(result.votes.n.sum()) < 10_000
        (array([ 0,  0, -1], dtype=int32), array([0.75, 0.25, 0.  ]), True)
    """
    alpha = as_alpha(alpha)
    most = math.inf if most_votes is None else as_integer("most_votes", most_votes, 1, 2**62)
    mode = Grid(radii, n0=n0, n=n, beta=beta, looks=looks)
    sampler = as_sampler(f, noise, key, x, batch_size, ids, compiled)
    settings = _digest(mode, sampler.task, alpha)
    if state is not None:
        state = _as_state(state, settings)
    result = run(mode, sampler, alpha, state=state, most_votes=most, progress=progress)
    return replace(result, state=result.state._replace(settings=settings))


@dataclass(frozen=True)
class Grid:
    """The mode of `certify_radii`: the largest radius of a grid that holds.

    Args:
        radii, n0, n, beta, looks: as for `certify_radii`.

    Raises:
        ValueError, TypeError: an argument is not as described.
    """

    radii: Sequence[float]
    n0: int = field(default=100, kw_only=True)
    n: int = field(default=100_000, kw_only=True)
    beta: float = field(default=1e-3, kw_only=True)
    looks: Sequence[int] | None = field(default=None, kw_only=True)

    name = "grid"
    rule = "grid"

    def __post_init__(self) -> None:
        object.__setattr__(self, "radii", tuple(as_radii(self.radii)))
        object.__setattr__(self, "beta", as_alpha(self.beta, "beta"))
        n0, n, _ = as_sizes(self.n0, self.n)
        object.__setattr__(self, "n0", n0)
        object.__setattr__(self, "n", n)
        if self.looks is not None:
            object.__setattr__(self, "looks", as_looks(self.looks, self.n))

    @property
    def known(self) -> int:
        """Estimation votes that each input gets whatever the votes are: those of the first look."""
        return int(self._looks()[0])

    def refuse_noise(self, noise: Noise) -> None:
        """Refuse a noise whose scale is traced."""
        edge_probability(noise, 0.0)
        if noise.norm == 0:
            most = float(np.max(noise.unit_radius(1.0)))
            wrong = [radius for radius in self.radii if radius != math.floor(radius) or radius > most]
            if wrong:
                raise ValueError(
                    f"radii must be whole numbers of at most {most:g} for {type(noise).__name__}, got {wrong[0]:g}"
                )

    def plan(self, noise: Noise, alpha: float, components: int) -> RadiiPlan:
        """Return the bars of each radius at each look: see `plan_radii`."""
        share = alpha / components
        return plan_radii(self.radii, noise, n=self.n, alpha=share, beta=self.beta, looks=self.looks)

    def begin(self, plan: RadiiPlan, votes: Votes) -> "GridState":
        """Return the state after the first look. Before it, every radius is open."""
        none = np.zeros(votes.counts.shape[:-1], np.int32)
        return look_at_votes(plan, GridState(votes, none, none + len(self.radii)))

    def needed(self, plan: RadiiPlan, state: "GridState") -> np.ndarray:
        """Return how many votes each input lacks for its next look, 0 where no radius is open."""
        # The next look is the first one after the votes so far.
        drawn = state.votes.n.astype(np.int64)
        upcoming = plan.looks[np.minimum(np.searchsorted(plan.looks, drawn, side="right"), len(plan.looks) - 1)]
        return np.where(state.is_settled, 0, upcoming - drawn)

    def look(self, plan: RadiiPlan, state: "GridState", votes: Votes) -> "GridState":
        """Return the state once these votes were looked at."""
        return look_at_votes(plan, state._replace(votes=votes))

    def certificate(self, plan: RadiiPlan, state: "GridState") -> Certificate:
        """Return the largest radius certified. Its edge is the lower bound on the probability."""
        # `certified` counts radii from the smallest, so it is the place of the largest one. Place 0 is an abstention.
        # In float64, as they were given: float32 has no 0.4, and what is certified at 0.4 is to count there.
        radius = np.concatenate([[0.0], plan.radii])[state.certified]
        p_lower = np.concatenate([[0.0], round_down(plan.edges)]).astype(np.float32)[state.certified]
        label = np.where(state.certified > 0, state.label, ABSTAIN).astype(np.int32)
        label, radius = reduced(np, label, radius, state.votes.lost)
        return Certificate(label, radius, p_lower, state.votes, state)

    def _looks(self) -> Sequence[int]:
        return make_looks(self.n) if self.looks is None else self.looks


class GridState(NamedTuple):
    """How far the tests of `certify_radii` are: a pytree of arrays, to be stored and resumed.

    Attributes:
        votes: of the rule "grid".
        certified: `i32[N, *components]`, how many radii of the grid are certified.
        open_until: `i32[N, *components]`, how many are not given up.
        settings: `u32[8]`, a digest of all that must not change on the way.
    """

    votes: Votes
    certified: Any
    open_until: Any
    settings: Any = None

    @property
    def label(self) -> np.ndarray:
        """`i32[N, *components]`: the class that is tested."""
        return np.asarray(self.votes.selection).argmax(axis=-1).astype(np.int32)

    @property
    def is_settled(self) -> np.ndarray:
        """`bool[N]`: whether more votes would be of no use."""
        is_open = np.asarray(self.certified) < np.asarray(self.open_until)
        return np.asarray(~is_open.any(axis=tuple(range(1, is_open.ndim))))


def look_at_votes(plan: RadiiPlan, state: GridState) -> GridState:
    """Return the state once its votes were looked at. Between two looks nothing changes.

    Example:
        >>> from jaxsmooth import Gaussian
        >>> plan, one = plan_radii([0.5, 1.0], Gaussian(1.0), n=1000), np.ones(1, np.int32)
        >>> votes = Votes(selection=np.array([[9, 1]]), counts=np.array([[60, 4]]), n=64 * one, rule="grid")
        >>> look_at_votes(plan, GridState(votes, certified=0 * one, open_until=2 * one)).certified
        array([1], dtype=int32)
    """
    votes = state.votes
    # The test is on k, the votes for the selected class, and on the misses, which are all other samples.
    hits = at_label(np, votes.counts, state.label)
    at = np.minimum(np.searchsorted(plan.looks, votes.n), len(plan.looks) - 1)
    is_look = per_input(plan.looks[at] == votes.n, hits.ndim)
    misses = per_input(votes.n, hits.ndim) - hits
    # The bars are nested, so the number of bars that are met is the number of radii that are certified.
    bars = (slice(None), at, *(None,) * (hits.ndim - 1))
    reached = (hits[None] >= plan.certify[bars]).sum(axis=0, dtype=np.int32)
    possible = (misses[None] < plan.give_up[bars]).sum(axis=0, dtype=np.int32)
    # After the last look nothing is open.
    possible = np.where(per_input(at == len(plan.looks) - 1, hits.ndim), np.minimum(possible, reached), possible)
    # A radius that was certified stays certified, and one that was given up stays given up.
    certified = np.where(is_look, np.maximum(state.certified, reached), state.certified)
    open_until = np.where(is_look, np.minimum(state.open_until, possible), state.open_until)
    return state._replace(certified=certified, open_until=open_until)


def _digest(mode: Grid, task: HostTask, alpha: float) -> np.ndarray:
    """Return a digest of all that a run must keep from its first vote to its last, the classifier apart."""
    # The classifier is left out: it cannot be told from another one.
    # All that was fixed in advance, and all that the samples depend on.
    exactly = noise_identity(task.noise)["noise_exactly"]
    digest = hashlib.sha256(repr((mode, alpha, type(task.noise).__name__, exactly, task.x.dtype.name)).encode())
    for array in (task.keys, task.ids, task.x):
        digest.update(repr(np.shape(array)).encode() + np.ascontiguousarray(array).tobytes())
    return np.frombuffer(digest.digest(), np.uint32)


def _as_state(state: Any, settings: np.ndarray) -> GridState:
    """Return a state of the same settings, its arrays as NumPy's."""
    if not isinstance(state, GridState):
        raise TypeError(f"state must be a GridState, got {type(state).__name__}")
    if not np.array_equal(np.asarray(state.settings), settings):
        raise ValueError(
            "state must come from a call with the same x, ids, key, noise, radii, n0, n, alpha, beta and looks: what "
            "was looked at under one rule cannot be taken further under another"
        )
    return jax.tree.map(np.asarray, state)
