"""The radius within which a class stays among the k most probable ones (Jia et al. 2020, arXiv:1912.09899)."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike
from scipy import special

from jaxsmooth._checks import as_host_inputs, as_noise, as_votes, refuse_stopped, shape_of_scores
from jaxsmooth._sampling import shaped_scores
from jaxsmooth.arguments import as_alpha, as_array, as_flag, as_integer, in_brief, refuse_traced, refuse_uncallable
from jaxsmooth.bounds import at_label, lower_bound, per_input, round_down, rounded_radius, settled
from jaxsmooth.certificates import cast_votes
from jaxsmooth.noise import Gaussian
from jaxsmooth.types import Certificate, Classifier, Noise, Votes

__all__ = ["TopK", "certify_top_k", "top_k_certificate"]

_BISECTIONS = 100
_SLACK = 1e-12  # of a radius at scale 1, for the rounding of the equation that is solved for it


class TopK(NamedTuple):
    """What a certificate of the k best is about: its `state`, by which `log_rows` says it.

    Attributes:
        k: how many classes there are at most that are as probable as the label, itself included.
    """

    k: int


def certify_top_k(
    f: Classifier,
    noise: Noise,
    key: jax.Array,
    x: ArrayLike,
    k: int,
    *,
    labels: ArrayLike | None = None,
    n0: int = 100,
    n: int = 100_000,
    alpha: float = 1e-3,
    batch_size: int = 256,
    ids: ArrayLike | None = None,
    compiled: bool = True,
    progress: bool = False,
) -> Certificate:
    """Certify that a class stays among the k that the smoothed classifier finds most probable.

    With probability at least 1 - alpha over the samples, for each input, fewer than k other classes are as probable as
    `label` under the noise at every perturbation of x whose L2 norm is below `radius`, or else `label` is `ABSTAIN`
    (Jia et al. 2020, arXiv:1912.09899, Theorem 1). Fix k, n, alpha, and the labels if there are any, before you look
    at any votes. The decision is made on the host, so this function does not run under `jax.jit`.

    Args:
        f, noise, key, x, n0, n, batch_size, ids, compiled, progress: as for `certify`. The noise is Gaussian.
        k: at least 1, and below the number of classes.
        labels: `i32[N, *components]`, the classes to certify, such as the true ones. By default the class that most
            selection votes are for.
        alpha: failure probability for each input, in [1e-12, 0.5).

    Returns:
        A `Certificate`, of NumPy arrays. `p_lower` is the bound on the probability of the label at level alpha / K,
        `state` a `TopK`.

    Raises:
        ValueError, TypeError: an argument is not as described.

    Example:
        >>> import jax.numpy as jnp
        >>> f = lambda x: x
        >>> x = jnp.array([[1.0, 0.9, 0.0, 0.0]])
        >>> result = certify_top_k(f, Gaussian(0.5), jax.random.key(0), x, 2, n=10_000)
        >>> result.label, result.radius
        (array([0], dtype=int32), array([0.4...], dtype=float32))
    """
    alpha = as_alpha(alpha)
    k = as_integer("k", k, 1)
    refuse_other_noise(noise)
    refuse_traced("certify_top_k", (x, key, noise))
    refuse_uncallable(f)
    x = as_host_inputs(x)
    if labels is not None:
        labels = _as_classes(labels, len(x))
    if as_flag("compiled", compiled):  # otherwise only calling f shows how many classes there are
        shape = shape_of_scores(shaped_scores(f, x), len(x))
        _refuse_misfit(k, labels, (len(x), *shape))
    votes, noise = cast_votes(f, noise, key, x, n0, n, batch_size, ids, compiled, progress)
    return _decide(votes, noise, k, labels, alpha)


def top_k_certificate(
    votes: Votes, noise: Noise, k: int, *, labels: ArrayLike | None = None, alpha: float = 1e-3
) -> Certificate:
    """Decide from votes, such as those of `read_votes`, as `certify_top_k` does.

    The probability of the label gets a lower bound p, that of each other class an upper bound, each Clopper-Pearson at
    level alpha / K. Of the k largest upper bounds let S_t be the sum of the t smallest, or 1 - p if that is less. The
    radius is the largest of the R for t = 1, ..., k with

        Phi(Phi^-1(p) - R / sigma) = Phi(Phi^-1(S_t) + R / sigma) / t.

    An invalid sample votes for no class, and takes no place among the k. With k = 1 and no such samples this is
    `certificate(..., bound="runner_up")` at the level 2 alpha / K. With C components each is decided at alpha / C.

    Args:
        votes: of the rule "fixed". They need selection votes where there are no labels.
        noise: Gaussian, the noise under which they were counted.
        k, labels, alpha: as for `certify_top_k`.

    Raises:
        ValueError, TypeError: an argument is not as described.

    Example:
        >>> counts = np.array([[480, 460, 40, 20]])
        >>> votes = Votes(counts=counts, n=1000)
        >>> [top_k_certificate(votes, Gaussian(0.5), k, labels=[1]).radius.item() for k in (1, 2, 3)]
        [0.0, 0.3..., 0.3...]
    """
    alpha = as_alpha(alpha)
    k = as_integer("k", k, 1)
    noise = as_noise(noise)
    refuse_other_noise(noise)
    refuse_traced("top_k_certificate", (votes, noise))
    votes = as_votes(votes)
    refuse_stopped(votes)
    if votes.selection is None and labels is None:
        raise ValueError("votes must have selection votes, or labels must be given: something must choose the classes")
    if labels is not None:
        labels = _as_classes(labels, len(votes.counts))
    return _decide(votes, noise, k, labels, alpha)


def refuse_other_noise(noise: Any) -> None:
    """Refuse a noise that the theorem is not about."""
    if not isinstance(noise, Gaussian):
        raise TypeError(f"noise must be Gaussian for a certificate of the top k, got {in_brief(noise)}")


def _decide(votes: Votes, noise: Noise, k: int, labels: Any, alpha: float) -> Certificate:
    """Decide from checked votes."""
    counts = np.asarray(votes.counts)
    classes = counts.shape[-1]
    _refuse_misfit(k, labels, counts.shape)
    label = np.asarray(votes.selection).argmax(axis=-1) if labels is None else labels
    n = per_input(np.asarray(votes.n), counts.ndim)
    # Bonferroni over components and classes.
    level = alpha / math.prod(counts.shape[1:-1]) / classes
    p = lower_bound(at_label(np, counts, label), n[..., 0] if n.ndim else n, level)
    upper = 1 - lower_bound(n - counts, n, level)
    is_label = np.arange(classes) == label[..., None]
    largest = np.sort(np.where(is_label, -1.0, upper), axis=-1)[..., classes - k :]
    sums = np.minimum(np.cumsum(largest, axis=-1), 1 - p[..., None])
    unit = np.max([_unit_radius(p, sums[..., t - 1], t) for t in range(1, k + 1)], axis=0)
    label, radius = settled(label, rounded_radius(noise, np.where(unit > 0, unit, -1.0)), votes.lost)
    return Certificate(label, radius, round_down(p), votes, TopK(k), alpha=alpha, norm=noise.norm)


def _unit_radius(p: np.ndarray, total: np.ndarray, t: int) -> np.ndarray:
    """Return the root R >= 0 of Phi(Phi^-1(p) - R) = Phi(Phi^-1(total) + R) / t, rounded down; 0 if there is none."""
    a = special.ndtri(p)
    b = special.ndtri(total)
    exists = (p > 0) & (p * t > total)
    a = np.where(exists, a, 0.0)
    b = np.where(exists, b, 0.0)
    # The right-hand side is at least what it is at R = 0, and for t = 1 the root is in the middle.
    low = np.maximum((a - b) / 2, 0.0)
    high = np.maximum(a - special.ndtri(np.where(exists, total / t, 0.5)), low)
    for _ in range(_BISECTIONS if t > 1 else 0):
        middle = (low + high) / 2
        # In logarithms, since both sides may be far out in a tail.
        holds = special.log_ndtr(a - middle) >= special.log_ndtr(b + middle) - math.log(t)
        low = np.where(holds, middle, low)
        high = np.where(holds, high, middle)
    return np.where(exists, np.maximum(low * (1 - _SLACK) - _SLACK, 0.0), 0.0)


def _as_classes(labels: Any, inputs: int) -> np.ndarray:
    """Return the classes to certify, `i64[N, *components]`."""
    array = np.asarray(as_array("labels", labels, f"integers, one for each of the {inputs} inputs", host=True))
    if array.dtype.kind not in "iu":
        raise TypeError(f"labels must hold integers, got dtype {array.dtype}")
    if array.ndim == 0 or len(array) != inputs:
        raise ValueError(f"labels must have one class for each of the {inputs} inputs, got shape {array.shape}")
    return array


def _refuse_misfit(k: int, labels: np.ndarray | None, shape: tuple[int, ...]) -> None:
    """Refuse k and labels that do not fit counts `[N, *components, K]`."""
    *decisions, classes = shape
    if k >= classes:
        raise ValueError(f"k must be below the number of classes, which is {classes}, got {k}")
    if labels is None:
        return
    if labels.shape != tuple(decisions):
        raise ValueError(f"labels must have the shape {tuple(decisions)}, one for each decision, got {labels.shape}")
    if labels.size and not (labels.min() >= 0 and labels.max() < classes):
        raise ValueError(f"labels must lie in [0, {classes}), got values from {labels.min()} to {labels.max()}")
