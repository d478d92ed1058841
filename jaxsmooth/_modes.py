"""One driver for every mode: selection votes, then estimation votes for as long as the mode asks for more.

A mode is a value that says what is fixed in advance. It decides between batches how many votes each input needs next,
and at the end what they certify. It never sees a classifier or a key.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxsmooth._checks import as_batch_size
from jaxsmooth._host_loop import (
    DECISION,
    HostTask,
    Requests,
    Step,
    as_host_task,
    count_requests,
    count_streams,
    key_data,
    make_step,
    samples_of_each,
)
from jaxsmooth.progress import progress_bar
from jaxsmooth.types import Certificate, Noise, RandomClassifier, Votes

_BATCHES_OF_A_ROUND = 64  # so that inputs that need few votes do not wait long for one that needs many


class Mode(Protocol):
    """How many votes an input gets, and what they certify: `Fixed`, `Grid`, `Within`, `Anytime`.

    Every mode has the same shape: a plan (what is fixed in advance), a state (a NamedTuple that begins with `votes`),
    how many votes come next, and the decision.
    """

    @property
    def name(self) -> str:
        """Its name in logs."""
        ...

    @property
    def rule(self) -> str:
        """What its votes say of how they were drawn: see `Votes.rule`."""
        ...

    @property
    def n0(self) -> int:
        """Selection votes of each input."""
        ...

    @property
    def n(self) -> int:
        """Most estimation votes of an input."""
        ...

    @property
    def known(self) -> int:
        """Estimation votes that each input gets whatever the votes are. They are drawn with the selection votes."""
        ...

    def refuse_noise(self, noise: Noise) -> None:
        """Refuse a noise that the mode is not for, before anything is drawn."""
        ...

    def plan(self, noise: Noise, alpha: float, components: int) -> Any:
        """Return all that is fixed in advance."""
        ...

    def begin(self, plan: Any, votes: Votes) -> Any:
        """Return the state once the selection votes and the known votes are there."""
        ...

    def needed(self, plan: Any, state: Any) -> np.ndarray:
        """Return how many more votes each input needs before its next look, `i64[N]`, 0 where it is settled."""
        ...

    def look(self, plan: Any, state: Any, votes: Votes) -> Any:
        """Return the state once these votes were looked at."""
        ...

    def certificate(self, plan: Any, state: Any) -> Certificate:
        """Decide."""
        ...


class Sampler(NamedTuple):
    """Where the votes of a run come from.

    Attributes:
        step: how the classifier votes on a batch.
        task: what samples are drawn from, in the streams of selection and estimation.
        batch_size: rows of a batch.
    """

    step: Step
    task: HostTask
    batch_size: int

    def first(self, n0: int, known: int, rule: str, advance: Callable[[int], None] | None = None) -> Votes:
        """Return n0 selection votes and the known estimation votes of each input, counted in one pass."""
        inputs = len(self.task.x)
        if known:
            both = count_streams(self.step, self.task, n0, known, self.batch_size, advance)
            selection = both[:, 0]
            counts = both[:, 1]
        else:
            requests = samples_of_each(inputs, n0)
            selection = count_requests(self.step, self.task, requests, self.batch_size, advance)
            counts = np.zeros_like(selection)
        noise: Any = self.task.noise
        lost = noise.lost_radius(self.task.x) if hasattr(noise, "lost_radius") else None
        n = np.full(inputs, known, np.int32)
        f = self.step.f
        drawn_in = self.batch_size if isinstance(f, RandomClassifier) and f.of_batch else None
        return Votes(selection=selection, counts=counts, n=n, lost=lost, rule=rule, batch_size=drawn_in)

    def more(self, votes: Votes, needed: np.ndarray) -> Votes:
        """Return the votes after a round: whole batches, filled with estimation samples that inputs need, in order."""
        share = share_of_round(needed, self.batch_size)
        row = np.flatnonzero(share)
        # Fresh samples: those after the ones that each input has already.
        requests = Requests(row, np.ones_like(row), votes.n[row].astype(np.int64), share[row])
        counts = votes.counts.copy()
        counts[row] += count_requests(self.step, self.task, requests, self.batch_size)
        return replace(votes, counts=counts, n=(votes.n + share).astype(np.int32))


def as_sampler(f: Any, noise: Any, key: Any, x: Any, batch_size: Any, ids: Any, compiled: bool) -> Sampler:
    """Check where the votes come from."""
    step = make_step(f, compiled)
    batch_size = as_batch_size(batch_size)
    return Sampler(step, as_host_task(noise, key_data(key, DECISION), x, ids), batch_size)


def run(
    mode: Mode,
    sampler: Sampler,
    alpha: float,
    *,
    state: Any = None,
    most_votes: float = math.inf,
    progress: bool = False,
) -> Certificate:
    """Certify under a mode.

    Args:
        mode: what is fixed in advance.
        sampler: where the votes come from.
        alpha: failure probability for each input.
        state: where an earlier run was cut short.
        most_votes: stop once this many estimation votes were cast here.
        progress: show a bar over the inputs; over the votes where all of them are known in advance.
    """
    noise = sampler.task.noise
    mode.refuse_noise(noise)
    inputs = len(sampler.task.x)
    cast = 0
    if state is None:
        is_known = mode.known == mode.n
        with progress_bar("votes", inputs * (mode.n0 + mode.n), progress and is_known) as advance:
            votes = sampler.first(mode.n0, mode.known, mode.rule, advance)
        # Only now is the number of components known, among which alpha is divided.
        plan = mode.plan(noise, alpha, votes.components)
        state = mode.begin(plan, votes)
        cast = int(votes.n.sum())
        progress = progress and not is_known
    else:
        plan = mode.plan(noise, alpha, state.votes.components)
    with progress_bar("inputs", inputs, progress) as advance:
        while True:
            needed = mode.needed(plan, state)
            advance(int((needed == 0).sum()))
            # Stopping early is always sound: what is certified so far was decided by the plan.
            if not needed.any() or cast >= most_votes:
                return replace(mode.certificate(plan, state), alpha=alpha, norm=noise.norm)
            before = int(state.votes.n.sum())
            state = mode.look(plan, state, sampler.more(state.votes, needed))
            cast += int(state.votes.n.sum()) - before


def share_of_round(needed: np.ndarray, batch_size: int) -> np.ndarray:
    """Return how many samples each input gets in a round: whole batches, unless all need less than one.

    A round leaves rows of a batch unused only if all inputs together need less than a batch. Otherwise the last input
    that it serves gets less than it needs.

    Example:
        >>> share_of_round(np.array([5, 0, 5, 5]), 4)
        array([5, 0, 5, 2])
    """
    # Inputs are served in order until the batches of the round are full.
    total = min(int(needed.sum()), _BATCHES_OF_A_ROUND * batch_size)
    whole = total - total % batch_size if total >= batch_size else total
    return np.clip(whole - (np.cumsum(needed) - needed), 0, needed)
