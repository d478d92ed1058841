"""Certify another version of a classifier from the votes of the first, and a few samples on which both are called.

Incremental randomized smoothing certification (Ugare et al. 2024, arXiv:2305.19521): a network that was quantised,
pruned, fine-tuned or cast to bfloat16 mostly votes as before, and how often it does not takes few samples to bound.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxsmooth._checks import as_batch_size, as_host_inputs, as_noise, as_votes, refuse_stopped, shape_of_scores
from jaxsmooth._claims import NOT_IDENTIFIED, identity, input_digest, noise_identity, noise_words
from jaxsmooth._host_loop import (
    DECISION,
    HostTask,
    as_host_task,
    count_requests,
    key_data,
    make_step,
    samples_of_each,
    scores_on_host,
)
from jaxsmooth._resumption import VOTE_AGAIN, refuse_other_votes
from jaxsmooth._sampling import shaped_scores
from jaxsmooth.arguments import as_alpha, as_flag, as_integer, is_traced, refuse_traced, refuse_uncallable
from jaxsmooth.bounds import at_label, lower_bound, per_input, round_down, rounded_radius, settled, unit_radii
from jaxsmooth.progress import progress_bar
from jaxsmooth.stores import StoredRun
from jaxsmooth.stream import Stream
from jaxsmooth.types import MOST_VOTES, Certificate, Classifier, Noise, RandomClassifier, Votes

__all__ = ["Changes", "certify_changed"]


class Changes(NamedTuple):
    """How often another version of a classifier votes otherwise: the `state` of a certificate of `certify_changed`.

    Attributes:
        changed: `i32[N, *components]`, samples on which f votes for the class that its selection votes chose, and the
            other version does not.
        m: how many samples both were called on.
    """

    changed: np.ndarray
    m: int


def certify_changed(
    f: Classifier,
    changed: Classifier,
    noise: Noise,
    key: jax.Array | None,
    x: ArrayLike,
    votes: Votes | StoredRun,
    *,
    m: int = 2000,
    alpha: float = 1e-3,
    alpha_zeta: float | None = None,
    batch_size: int = 256,
    ids: ArrayLike | None = None,
    compiled: bool = True,
    progress: bool = False,
) -> Certificate:
    """Certify `changed`, another version of f, from the votes of f and m noisy samples on which both are called.

    Let A be the class that the selection votes of f chose, L the lower bound on P(f = A) from its votes, and zeta the
    Clopper-Pearson upper bound, at level `alpha_zeta`, on P(f = A and changed != A), from the m samples. Then
    P(changed = A) >= L - zeta, and the radius is that of L - zeta under the noise where this is above 1/2. The paper
    bounds P(f != changed), which is at least as large. With probability at least 1 - alpha, for each input, the
    smoothed version of `changed` returns `label` for every perturbation of x whose norm is below `radius` (Ugare et al.
    2024, arXiv:2305.19521, Theorem 2). Fix m, alpha and alpha_zeta before you look at the votes on the m samples.

    Args:
        f: the classifier that cast the votes.
        changed: the other version, with the same classes.
        noise: the noise under which f cast the votes. A stored run shows it, `Votes` do not.
        key: the key of the votes, whose first m estimation samples are drawn again, or any other key. None for that of
            a stored run, on some of whose inputs f then votes again.
        x, ids, batch_size, compiled, progress: as for `certify`.
        votes: of f on x: of the rule "fixed" with selection votes, or what `read_votes` returns for a run over x.
        m: samples on which both are called, at least 1.
        alpha: failure probability for each input, in [1e-12, 0.5).
        alpha_zeta: the part of alpha that goes to the bound on changes; half of it by default.

    Returns:
        A `Certificate`, of NumPy arrays, whose `state` are `Changes`. Its `votes` are those of f, now of the rule
        "changed", which no other decision takes: they are not those of `changed`.

    Raises:
        ValueError, TypeError: an argument is not as described; a stored run is of another classifier, noise or x.

    Example:
        >>> from jaxsmooth import Gaussian, certify
        >>> f = lambda x: jnp.stack([x[:, 0], -x[:, 0]], -1)
        >>> changed = lambda x: f(x.astype(jnp.bfloat16))
        >>> noise, key, x = Gaussian(0.5), jax.random.key(0), jnp.array([[0.5, 5.0]])
        >>> first = certify(f, noise, key, x)
        >>> second = certify_changed(f, changed, noise, key, x, first.votes)
        >>> bool(0 < second.radius[0] < first.radius[0]), int(second.state.changed[0])
        (True, 0)
    """
    alpha = as_alpha(alpha)
    zeta_share = alpha / 2 if alpha_zeta is None else as_alpha(alpha_zeta, "alpha_zeta")
    if not zeta_share < alpha:
        raise ValueError(f"alpha_zeta must be below alpha, {alpha:g}, of which it is a part, got {zeta_share:g}")
    m = as_integer("m", m, 1, MOST_VOTES)
    batch_size = as_batch_size(batch_size)
    refuse_traced("certify_changed", (x, noise, key))
    noise = as_noise(noise)
    x = as_host_inputs(x, noise)
    if isinstance(votes, StoredRun):
        _refuse_other_run(votes, f, noise, np.asarray(x))
        ids = votes.idx if ids is None else ids
        if key is None:
            key = np.array(votes.settings["key"], np.uint32)  # pyright: ignore[reportAssignmentType]
            _refuse_other_votes(votes, f, as_host_task(noise, key_data(key, DECISION), x, ids), batch_size, compiled)
        votes = votes.votes
    elif key is None:
        raise TypeError("key must be given with votes that are no stored run")
    votes = _as_votes_of(votes, noise, np.asarray(x))
    both = pair(f, changed)
    compiled = as_flag("compiled", compiled)
    row = np.shape(votes.counts)[1:]
    if compiled:  # otherwise only calling them shows how many classes there are
        _refuse_other_classes(shape_of_scores(shaped_scores(both, x), len(x)), row)
    step = make_step(both, compiled)
    task = as_host_task(noise, key_data(key, (Stream.ESTIMATION,)), x, ids)
    with progress_bar("votes", len(x) * m, as_flag("progress", progress)) as advance:
        found = count_requests(step, task, samples_of_each(len(x), m), batch_size, advance)
    _refuse_other_classes(found.shape[1:], row)
    return _decide(votes, found, m, noise, alpha, zeta_share)


def _decide(votes: Votes, found: np.ndarray, m: int, noise: Noise, alpha: float, alpha_zeta: float) -> Certificate:
    """Decide from the changes, at alpha_zeta, and from the votes of f, at the rest of alpha."""
    label = np.asarray(votes.selection).argmax(axis=-1)
    components = votes.components  # Bonferroni
    k = at_label(np, np.asarray(votes.counts), label)
    p_lower = lower_bound(k, per_input(np.asarray(votes.n), label.ndim), (alpha - alpha_zeta) / components)
    z = at_label(np, found, label)
    kept = lower_bound(m - z, m, alpha_zeta / components)  # 1 - zeta
    p = np.clip(np.nextafter(p_lower - (1 - kept), -1), 0.0, 1.0)
    label, radius = settled(label, rounded_radius(noise, unit_radii(noise, p)), votes.lost)
    state = Changes(z.astype(np.int32), m)
    stated: dict[str, Any] = {"alpha": alpha, "norm": noise.norm}
    return Certificate(label, radius, round_down(p), replace(votes, rule="changed"), state, **stated)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class _Pair:
    """Two versions of a classifier as one that votes for a class of the first where the other leaves it.

    Where both agree it votes for one more class, so that its votes for class A count the samples on which the first one
    votes for A and the other does not.
    """

    f: Any
    changed: Any

    def __call__(self, x: Any, keys: Any = None) -> Any:
        """Return scores `[B, *components, K + 1]`."""
        before, after = (
            version(x, keys) if isinstance(version, RandomClassifier) else version(x)
            for version in (self.f, self.changed)
        )
        xp: Any = jnp if any(map(is_traced, (before, after))) else np
        before, after = (xp.asarray(scores) if hasattr(scores, "shape") else scores for scores in (before, after))
        shapes = [shape_of_scores(scores, len(x)) for scores in (before, after)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"changed must return scores of the shape that f returns, {shapes[0]}, got {shapes[1]}")
        classes = before.shape[-1]
        voted, left = (_classes(xp, scores) for scores in (before, after))
        # An invalid sample of the first one is no vote that could be lost.
        place = xp.where((voted == left) | (voted == classes), classes, voted)
        every = xp.arange(classes + 1).reshape((1,) * place.ndim + (-1,))
        return (place[..., None] == every).astype(np.float32)


def _classes(xp: Any, scores: Any) -> Any:
    """Return the class of each row, K where a row is invalid: in the scores' own dtype, as votes are counted."""
    if xp is np:
        scores = scores_on_host(scores)
    return xp.where(xp.isfinite(scores).all(axis=-1), scores.argmax(axis=-1), scores.shape[-1])


def pair(f: Any, changed: Any) -> Any:
    """Return two versions of a classifier as one, under the same keys where they are random."""
    for version in (f, changed):
        refuse_uncallable(version.f if isinstance(version, RandomClassifier) else version)
    both = _Pair(f, changed)
    random = [version for version in (f, changed) if isinstance(version, RandomClassifier)]
    return RandomClassifier(both, of_batch=any(version.of_batch for version in random)) if random else both


def _as_votes_of(votes: Any, noise: Any, x: np.ndarray) -> Votes:
    """Return the votes of the first version, which chose their classes from other votes and a number fixed before."""
    votes = as_votes(votes)
    refuse_traced("certify_changed", votes)
    refuse_stopped(votes)
    if votes.selection is None:
        raise ValueError("votes must have selection votes: the votes that are counted may not choose the class, too")
    if len(votes.counts) != len(x):
        raise ValueError(f"votes must be of x, which has {len(x)} inputs, got those of {len(votes.counts)}")
    lost = noise.lost_radius(x) if hasattr(noise, "lost_radius") else None
    if lost is not None and (votes.lost is None or not np.array_equal(lost, np.asarray(votes.lost))):
        raise ValueError(f"votes.lost must be noise.lost_radius(x) for {type(noise).__name__}, which rounds x")
    return votes


def _refuse_other_votes(run: StoredRun, f: Any, task: HostTask, batch_size: int, compiled: Any) -> None:
    """Refuse a classifier that votes otherwise than in the run, on the inputs where the selection was closest.

    No digest shows all that a classifier computes with.
    """
    selection = run.votes.selection
    if selection is None or len(run.idx) == 0:
        return
    top = np.sort(np.asarray(selection).reshape(len(run.idx), -1), axis=-1)
    some = np.argsort(top[:, -1] - top[:, -2], kind="stable")[:VOTE_AGAIN]
    few = task._replace(x=task.x[some], ids=task.ids[some])
    n0 = int(run.settings["n0"])
    found = count_requests(make_step(f, compiled), few, samples_of_each(len(some), n0), batch_size)
    for i, votes in zip(some.tolist(), found, strict=True):
        refuse_other_votes(int(run.idx[i]), selection[i], votes)


def _refuse_other_classes(found: tuple[int, ...], row: tuple[int, ...]) -> None:
    """Refuse votes of a pair of versions that are not about the components and classes of the given votes."""
    of_f = (*found[:-1], found[-1] - 1)
    if of_f != row:
        raise ValueError(f"votes must be of f, whose scores have the shape {of_f}, got votes of the shape {row}")


def _refuse_other_run(run: StoredRun, f: Any, noise: Noise, x: np.ndarray) -> None:
    """Refuse what a stored run is not of."""
    said = run.settings
    if any(said.get(name) != value for name, value in noise_identity(noise).items()):
        raise ValueError(f"noise must be that of the run, {said.get('noise')}, got {noise_words(noise)}")
    if said.get("classifier") not in (NOT_IDENTIFIED, identity(f)):
        raise ValueError("f must be the classifier of the run, got one with other weights")
    if len(x) != len(run.idx):
        raise ValueError(f"x must be the {len(run.idx)} inputs of the run, in the order of run.idx, got {len(x)}")
    other = [int(idx) for idx, digest, row in zip(run.idx, run.inputs, x, strict=True) if digest != input_digest(row)]
    if other:
        raise ValueError(f"x must be the inputs of the run, in the order of run.idx: input {other[0]} is another one")
