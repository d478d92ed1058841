"""Certified accuracy at given radii, average certified radius and abstention rate of a set of certificates."""

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from jaxsmooth._checks import as_votes, refuse_stopped
from jaxsmooth.arguments import as_alpha, as_integer, as_numbers, in_brief
from jaxsmooth.bounds import at_label, lower_bound, round_down
from jaxsmooth.types import ABSTAIN, Votes


def certified_accuracy(predicted: ArrayLike, radius: ArrayLike, truth: ArrayLike, radii: ArrayLike) -> np.ndarray:
    """Return the share of inputs whose certified class is the true one at radius r or more, for each r.

    Abstentions and errors are in the denominator.

    Args:
        predicted: `[N]` certified classes, `ABSTAIN` (-1) included.
        radius: `[N]` certified radii.
        truth: `[N]` true classes.
        radii: `[R]` or scalar; in the units of `radius`.

    Returns:
        float64 of the shape of `radii`.

    Raises:
        ValueError: the three arrays are empty or of different lengths, classes are no whole numbers, or radii is NaN.

    Example:
        >>> certified_accuracy([1, 0, -1, 2], [0.6, 0.2, 0.0, 0.9], [1, 0, 1, 0], [0.0, 0.5, 1.0])
        array([0.5 , 0.25, 0.  ])
    """
    correct, radius = _correct(predicted, truth, radius)
    radii = as_numbers("radii", radii, "numbers")
    if np.isnan(radii).any():
        raise ValueError(f"radii must be numbers, got {in_brief(radii)}")
    return (correct & (radius >= radii[..., None])).mean(axis=-1)


def average_certified_radius(predicted: ArrayLike, radius: ArrayLike, truth: ArrayLike) -> float:
    """Return the mean radius, a wrong or abstained input counting as 0 (ACR; Zhai et al. 2020, arXiv:2001.02378).

    A classifier can raise it at the cost of accuracy: report `certified_accuracy` first.

    Args:
        predicted, radius, truth: as for `certified_accuracy`.

    Example:
        >>> average_certified_radius([1, 0, -1, 2], [0.6, 0.2, 0.0, 0.9], [1, 0, 1, 0])
        0.2
    """
    correct, radius = _correct(predicted, truth, radius)
    return float(np.where(correct, radius, 0.0).mean())


def most_false_certificates(number: int, alpha: float, delta: float = 1e-3) -> int:
    """Return a number that false certificates do not exceed, with probability at least 1 - delta.

    The certificates are independent, and each is false with probability at most alpha, so the number of false ones is
    at most binomial. Certificates of `certify` and the other modes are independent where each input has its own id.

    Args:
        number: how many certificates there are.
        alpha: failure probability of each, in (0, 1).
        delta: failure probability of the statement about all of them, in (0, 1).

    Example:
        >>> most_false_certificates(500, alpha=0.001), most_false_certificates(10_000, alpha=0.001)
        (4, 21)
    """
    number = as_integer("number", number, 0)
    alpha = as_alpha(alpha)
    delta = as_alpha(delta, "delta")
    tail = special.bdtrc(np.arange(number), number, alpha)
    # At most Binomial(number, alpha) are false. The tail falls in m: count the m with P(more than m) > delta.
    return int((tail > delta).sum())


def certified_accuracy_bound(
    predicted: ArrayLike, radius: ArrayLike, truth: ArrayLike, radii: ArrayLike, *, alpha: float, delta: float = 1e-3
) -> np.ndarray:
    """Return `certified_accuracy`, with the inputs taken off that may be falsely certified.

    With probability at least 1 - delta over the noise, for all radii together, the smoothed classifier gives at least
    this share of the inputs their true class on every perturbation below r (norm 0: of at most r features).

    Args:
        predicted, radius, truth, radii: as for `certified_accuracy`.
        alpha, delta: as for `most_false_certificates`.

    Example:
        >>> certified_accuracy_bound([1] * 50, [0.6] * 50, [1] * 50, [0.0, 1.0], alpha=0.001)
        array([0.96, 0.  ])
    """
    accuracy = certified_accuracy(predicted, radius, truth, radii)
    # One event covers all radii: a false certificate is counted off at each of them.
    number = np.size(predicted)
    return np.maximum(0.0, np.round(accuracy * number) - most_false_certificates(number, alpha, delta)) / number


def abstention_rate(predicted: ArrayLike) -> float:
    """Return the share of inputs without a certificate.

    Example:
        >>> abstention_rate([1, 0, -1, 2])
        0.25
    """
    predicted = _as_classes("predicted", predicted)
    if predicted.ndim != 1 or predicted.size == 0:
        raise ValueError(f"predicted must be a vector of at least one class, got shape {predicted.shape}")
    return float((predicted == ABSTAIN).mean())


def true_class_bounds(votes: Votes, truth: ArrayLike, *, alpha: float = 1e-3) -> np.ndarray:
    """Return a lower bound on the probability of the true class under the noise, for each input.

    With probability at least 1 - alpha, for each input, P(f(x + noise) = truth) is at least the bound. The truth is
    known before the votes, so that no votes are needed to choose the class. The distribution of these bounds over a
    data set shows what a mean radius hides (Sun et al. 2024, arXiv:2410.06895): see `draw_probabilities`.

    Args:
        votes: of the rule "fixed", such as those of `read_votes`.
        truth: `[N]` true classes.
        alpha: failure probability for each input, in [1e-12, 0.5).

    Returns:
        `f32[N]`, rounded down.

    Raises:
        ValueError, TypeError: an argument is not as described.

    Example:
        >>> votes = Votes(counts=np.array([[990, 10], [300, 700]]), n=1000)
        >>> true_class_bounds(votes, [0, 0]).round(3)
        array([0.976, 0.256], dtype=float32)
    """
    alpha = as_alpha(alpha)
    votes = as_votes(votes)
    refuse_stopped(votes)
    counts = np.asarray(votes.counts)
    classes = _as_classes("truth", truth).astype(int)
    if classes.shape != counts.shape[:-1] or counts.ndim != 2:
        raise ValueError(f"truth must have one class for each of {len(counts)} inputs, got shape {classes.shape}")
    if classes.size and not (classes.min() >= 0 and classes.max() < counts.shape[-1]):
        raise ValueError(f"truth must lie in [0, {counts.shape[-1]}), got {in_brief(truth)}")
    return round_down(lower_bound(at_label(np, counts, classes), votes.n, alpha))


def _as_classes(name: str, value: ArrayLike) -> np.ndarray:
    """Return classes, or `ABSTAIN`: integers, or floats that are whole. Radii in their place are refused."""
    classes = as_numbers(name, value, "a vector of classes")
    if not ((classes == np.floor(classes)) & (classes >= ABSTAIN)).all():
        raise ValueError(
            f"{name} must hold classes, whole numbers of at least -1, got values from {classes.min()} to "
            f"{classes.max()}: the order is predicted, radius, truth"
        )
    return classes


def _correct(predicted: ArrayLike, truth: ArrayLike, radius: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    predicted = _as_classes("predicted", predicted)
    truth = _as_classes("truth", truth)
    radius = as_numbers("radius", radius, "a vector of radii")
    if not (predicted.shape == truth.shape == radius.shape == (predicted.size,)) or predicted.size == 0:
        shapes = f"{predicted.shape}, {radius.shape} and {truth.shape}"
        raise ValueError(f"predicted, radius and truth must be vectors of one length, at least 1, got {shapes}")
    if not (radius >= 0).all():
        raise ValueError(f"radius must not be negative or NaN, got {in_brief(radius)}")
    return (predicted == truth) & (predicted != ABSTAIN), radius
