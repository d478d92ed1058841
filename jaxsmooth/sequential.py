"""Certify with as few votes as it takes: a radius of a grid, or a radius within a fraction of the best.

Which to choose, before any votes are looked at:

- `certify_radii`, where the radii that matter are known, as in a table of certified accuracy: 10 to 100 times fewer
  votes than a fixed number. The radius that it returns is one of the grid.
- `certify_within`, where each input's own radius is wanted: 3 to 8 times fewer votes, for a radius within 5 % of that
  of all votes.
- `certify`, with a fixed number of votes, where every input's votes are wanted, or one compiled program.
- `jaxsmooth.anytime`, where nothing can be fixed in advance: a bound that holds at every number of votes at once.

What is fixed in advance is part of the guarantee: the grid or the precision, n, alpha, the looks. An input that was
looked at here cannot be taken further under another rule; a state says by which settings it came about.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxsmooth.bounds import round_down
from jaxsmooth.certify import reduced_radius
from jaxsmooth.checks import check_alpha, check_integer
from jaxsmooth.plans import RadiiPlan, plan_radii
from jaxsmooth.progress import progress_bar
from jaxsmooth.rounds import Step, check_host_task, choose, make_step, vote_round
from jaxsmooth.samples import Task
from jaxsmooth.types import ABSTAIN, Classifier, Noise
from jaxsmooth.votes import decision_keys


class RadiiState(NamedTuple):
    """How far the tests of `certify_radii` are: a pytree of arrays, to be stored and resumed.

    Attributes:
        selection: `i32[N, K]`, the selection votes.
        hits: `i32[N]`, estimation votes for the class with most of them, the one that is tested.
        drawn: `i32[N]`, all estimation votes.
        certified: `i32[N]`, how many radii of the grid are certified.
        open_until: `i32[N]`, how many are not given up.
        settings: `u32[8]`, a digest of all that must not change on the way.
    """

    selection: ArrayLike
    hits: ArrayLike
    drawn: ArrayLike
    certified: ArrayLike
    open_until: ArrayLike
    settings: ArrayLike

    @property
    def label(self) -> np.ndarray:
        """`i32[N]`, the class that is tested."""
        return np.asarray(self.selection).argmax(axis=1).astype(np.int32)


class RadiiCertificate(NamedTuple):
    """What is certified for each of `N` inputs on a grid of radii.

    Attributes:
        label: `i32[N]`, the certified class, or `ABSTAIN` where no radius of the grid is certified.
        radius: `f32[N]`, the largest radius certified, rounded down, 0 on abstention.
        votes: `i32[N]`, how many votes it took, those that chose the class left out.
        is_settled: `bool[N]`, whether more votes would be of use.
        state: to go on from, if the run was cut short.
        rounded: `bool[N]`, whether the noise rounded the input, its radius being reduced for that.
    """

    label: jax.Array
    radius: jax.Array
    votes: jax.Array
    is_settled: jax.Array
    state: RadiiState
    rounded: jax.Array


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
    state: RadiiState | None = None,
    most_votes: int | None = None,
    progress: bool = False,
) -> RadiiCertificate:
    """Certify the largest radius of a grid that holds, for each input, with as few votes as it takes.

    `n0` votes choose a class; fresh votes are looked at after 64, 80, 100, ... of them, until every radius of the grid
    is certified or given up, at most n. With probability at least 1 - alpha, for each input, the smoothed classifier
    returns `label` for every perturbation below `radius`, as `certify` guarantees: the probability of a false
    certificate is computed exactly for the whole sequence of looks (`jaxsmooth.plans.plan_radii`). radii, n0, n, alpha,
    beta and looks are to be fixed before looking at any votes. It runs on the host; batches have one size and are
    filled from whichever inputs are open, on which no result depends.

    Args:
        f, noise, key, x, n0, alpha, batch_size, ids: as for `certify`; the scale of the noise is a concrete number.
        radii: increasing, at least 0, in the units of `x`. 0 is the class alone.
        n: largest number of estimation votes.
        beta: probability of giving up a radius that could just be certified; no part of the guarantee.
        looks: numbers of votes to look after, `plans.make_looks(n)` by default.
        compiled: run f within a compiled step; if false call it, any function of a JAX array.
        state: of an earlier call with the same arguments that `most_votes` cut short.
        most_votes: stop once this many votes were cast here; inputs that are not settled keep what they have.
        progress: show a bar (needs tqdm, the extra `progress`).

    Raises:
        ValueError, TypeError: an argument is not as described; the state is of other arguments.

    Example:
        >>> from jaxsmooth import Gaussian
        >>> f = lambda x: jnp.stack([x[:, 0], -x[:, 0]], -1)
        >>> x = jnp.array([[1.0, 5.0], [0.3, 0.0], [0.0, 0.0]])
        >>> result = certify_radii(f, Gaussian(0.5), jax.random.key(0), x, [0.25, 0.5, 0.75])
        >>> result.label, result.radius, int(result.votes.sum()) < 10_000
        (Array([ 0,  0, -1], dtype=int32), Array([0.75, 0.25, 0.  ], dtype=float32), True)
    """
    alpha, beta = check_alpha(alpha), check_alpha(beta, "beta")
    plan, n0 = plan_radii(radii, noise, n=n, alpha=alpha, beta=beta, looks=looks), check_integer("n0", n0, 1, 2**30)
    selection_key, estimation_key = decision_keys(key)
    task, batch_size = check_host_task("certify_radii", f, noise, estimation_key, x, n, batch_size, ids)
    settings = _digest(plan, task, n0, alpha, beta)
    if state is None:
        _, selection = choose(f, task, selection_key, n0, batch_size, compiled)
        state = _begin(plan, selection, settings)
    most = math.inf if most_votes is None else check_integer("most_votes", most_votes, 1, 2**62)
    return _run(make_step(f, compiled), task, plan, _check_state(state, settings), batch_size, most, progress)


@jax.jit
def settle(plan: RadiiPlan, state: RadiiState) -> RadiiState:
    """Return the state once votes were looked at: a pure function, under `jit` too. Between looks nothing changes.

    Example:
        >>> from jaxsmooth import Gaussian
        >>> plan = plan_radii([0.5, 1.0], Gaussian(1.0), n=1000)
        >>> one = np.ones(1, np.int32)
        >>> state = RadiiState([[100, 0]], 60 * one, 64 * one, 0 * one, 2 * one, np.zeros(8, np.uint32))
        >>> settle(plan, state).certified
        Array([1], dtype=int32)
    """
    looks, hits, drawn = jnp.asarray(plan.looks, jnp.int32), jnp.asarray(state.hits), jnp.asarray(state.drawn)
    at = jnp.clip(jnp.searchsorted(looks, drawn), 0, len(plan.looks) - 1)
    is_look = looks[at] == drawn
    reached = (hits[None] >= jnp.asarray(plan.certify, jnp.int32)[:, at]).sum(axis=0, dtype=jnp.int32)
    possible = ((drawn - hits)[None] < jnp.asarray(plan.give_up, jnp.int32)[:, at]).sum(axis=0, dtype=jnp.int32)
    certified = jnp.where(is_look, jnp.maximum(state.certified, reached), state.certified)
    open_until = jnp.where(is_look, jnp.minimum(state.open_until, possible), state.open_until)
    return state._replace(certified=certified, open_until=open_until)


def _run(
    step: Step, task: Task, plan: RadiiPlan, state: RadiiState, batch_size: int, most: float, progress: bool
) -> RadiiCertificate:
    """Vote and look in turn until nothing is open, or as many votes were cast."""
    most += np.sum(state.drawn)
    with progress_bar("inputs", task.x.shape[0], progress) as advance:
        while True:
            state = RadiiState(*map(np.asarray, settle(plan, state)))
            needed = _votes_needed(plan, state)
            advance(int((needed == 0).sum()))
            if not needed.any() or np.sum(state.drawn) >= most:
                return _certificate(plan, task, state, needed)
            state = _vote(step, task, state, needed, batch_size)


def _vote(step: Step, task: Task, state: RadiiState, needed: np.ndarray, batch_size: int) -> RadiiState:
    """Return the state after one round of votes."""
    label, rows = state.label, np.arange(len(needed))
    hits = np.zeros(np.shape(state.selection), np.int32)
    hits[rows, label] = state.hits
    counts, drawn = vote_round(step, task, jnp.asarray(hits), np.asarray(state.drawn, np.int64), needed, batch_size)
    return state._replace(hits=np.asarray(counts)[rows, label], drawn=drawn.astype(np.int32))


def _votes_needed(plan: RadiiPlan, state: RadiiState) -> np.ndarray:
    """Return how many votes each input lacks for its next look, 0 where it is settled."""
    drawn = np.asarray(state.drawn, np.int64)
    upcoming = plan.looks[np.minimum(np.searchsorted(plan.looks, drawn, side="right"), len(plan.looks) - 1)]
    return np.where(np.asarray(state.certified) < np.asarray(state.open_until), upcoming - drawn, 0)


def _begin(plan: RadiiPlan, selection: jax.Array, settings: np.ndarray) -> RadiiState:
    """Return the state before the first estimation vote."""
    none = np.zeros(len(selection), np.int32)
    return RadiiState(np.asarray(selection), none, none, none, none + len(plan.radii), settings)


def _certificate(plan: RadiiPlan, task: Task, state: RadiiState, needed: np.ndarray) -> RadiiCertificate:
    certified = np.asarray(state.certified)
    radius = np.concatenate([[0.0], round_down(plan.radii)]).astype(np.float32)[certified]
    label = np.where(certified > 0, state.label, ABSTAIN)
    found = reduced_radius(task.noise, task.x, label, radius)
    return RadiiCertificate(votes=jnp.asarray(state.drawn), is_settled=jnp.asarray(needed == 0), state=state, **found)


def _digest(plan: RadiiPlan, task: Task, n0: int, alpha: float, beta: float) -> np.ndarray:
    """Return a digest of all that a run must keep from its first vote to its last, the classifier apart."""
    digest = hashlib.sha256(repr((type(task.noise).__name__, n0, alpha, beta, task.x.dtype.name)).encode())
    noise = [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(task.noise)]
    key, ids = jax.random.key_data(task.key), np.asarray(task.ids, np.uint32)
    for array in (*noise, *plan, key, ids, np.asarray(task.x)):
        digest.update(repr(np.shape(array)).encode() + np.ascontiguousarray(array).tobytes())
    return np.frombuffer(digest.digest(), np.uint32)


def _check_state(state: Any, settings: np.ndarray) -> RadiiState:
    if not isinstance(state, RadiiState):
        raise TypeError(f"state must be a RadiiState, got {type(state).__name__}")
    if not np.array_equal(np.asarray(state.settings), settings):
        raise ValueError(
            "state must come from a call with the same x, ids, key, noise, radii, n0, n, alpha, beta and looks: what "
            "was looked at under one rule cannot be taken further under another"
        )
    return state
