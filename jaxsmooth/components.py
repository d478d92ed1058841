"""The components of one answer, certified together: the pixels of a segmentation, several labels, attributions.

Every function here certifies components, each at its share of alpha. `certify_components` fixes one probability tau in
advance instead, and then needs much less of alpha for each (Fischer et al. 2021, SegCertify).
"""

import math

import jax
import numpy as np
from jax.typing import ArrayLike
from scipy import special

from jaxsmooth._checks import as_host_inputs, as_n, as_noise, as_votes, shape_of_scores
from jaxsmooth._sampling import shaped_scores
from jaxsmooth.arguments import as_alpha, as_flag, as_numbers, in_brief, refuse_traced, refuse_uncallable
from jaxsmooth.bounds import at_label, per_input, round_down, rounded_radius, settled, unit_radii
from jaxsmooth.certificates import cast_votes, refuse_unsupported
from jaxsmooth.types import ABSTAIN, Certificate, Classifier, Noise, Votes

__all__ = ["certify_components", "components_certificate"]

_MARGIN = 1e-12  # of a p-value, toward safety


def certify_components(
    f: Classifier,
    noise: Noise,
    key: jax.Array,
    x: ArrayLike,
    tau: float = 0.75,
    *,
    n0: int = 10,
    n: int = 300,
    alpha: float = 1e-3,
    batch_size: int = 256,
    ids: ArrayLike | None = None,
    compiled: bool = True,
    progress: bool = False,
) -> Certificate:
    """Certify as many components of each answer as possible, all at the radius of one probability tau.

    With probability at least 1 - alpha over the samples, for each input, *all* components that are certified keep
    their class at once, for every perturbation of x whose norm is below the radius that tau has under the noise. (For
    norm 0 the radius is the largest number of changed features.) The others are `ABSTAIN`. It tests for each component
    whether its class is more probable than tau, and corrects for the number of components by Holm's method, which holds
    however they depend on each other (Fischer et al. 2021, arXiv:2107.00228, SegCertify). Fix tau, n0, n and alpha
    before you look at any votes. `certify` gives each component a radius of its own, at level alpha / M for M
    components. The decision is made on the host, so this function does not run under `jax.jit`.

    The votes of an input take 8 M K bytes for K classes, whatever n is: 42 MB for 512 x 512 pixels and 20 classes.

    Args:
        f: scores `[B, *components, K]`, such as a segmentation `[B, height, width, K]`.
        noise, key, x, n0, n, batch_size, ids, compiled, progress: as for `certify`.
        tau: in (1/2, 1), static. The radius is that of a class of this probability.
        alpha: failure probability for each input, all of its components together, in [1e-12, 0.5).

    Returns:
        A `Certificate`, of NumPy arrays, whose label and radius have the shape `[N, *components]`. The radius is the
        same for all certified components, and `p_lower` is tau there.

    Raises:
        ValueError, TypeError: an argument is not as described. With so few votes no component could be certified, not
            even if all agreed: the message says how many it takes.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsmooth import Gaussian
        >>> f = lambda x: jnp.stack([x, -x], axis=-1)  # one component for each feature
        >>> x = jnp.array([[1.0, 0.0, -1.0, 1.0]])
        >>> result = certify_components(f, Gaussian(0.5), jax.random.key(0), x)
        >>> result.label, result.radius.round(3)
        (array([[ 0, -1,  1,  0]], dtype=int32), array([[0.337, 0.   , 0.337, 0.337]], dtype=float32))
    """
    tau = as_tau(tau)
    alpha = as_alpha(alpha)
    refuse_traced("certify_components", (x, key, noise), "use count_votes, and components_certificate outside of it")
    noise = as_noise(noise)
    if as_flag("compiled", compiled):  # otherwise only calling f shows how many components there are
        refuse_uncallable(f)
        x = as_host_inputs(x, noise)
        row = shape_of_scores(shaped_scores(f, x), len(x)) if len(x) else (2,)
        _refuse_few(as_n(n), tau, alpha, math.prod(row[:-1]))
    votes, noise = cast_votes(f, noise, key, x, n0, n, batch_size, ids, compiled, progress)
    return _decide(votes, noise, tau, alpha)


def components_certificate(votes: Votes, noise: Noise, tau: float = 0.75, *, alpha: float = 1e-3) -> Certificate:
    """Decide from votes as `certify_components` does.

    For each of M components let k of n votes be for the class that the selection votes chose, and its p-value
    P[Bin(n, tau) >= k]. In ascending order of the p-values, components are certified while the i-th p-value is at most
    alpha / (M - i + 1) (Holm 1979).

    Args:
        votes: of the rule "fixed", with selection votes: counts `[N, *components, K]`.
        noise: the noise under which they were counted.
        tau, alpha: as for `certify_components`.

    Raises:
        ValueError, TypeError: an argument is not as described.

    Example:
        >>> from jaxsmooth import Gaussian
        >>> counts = np.array([[[98, 2], [80, 20], [3, 97]]])
        >>> votes = Votes(counts=counts, selection=counts // 10, n=100)
        >>> components_certificate(votes, Gaussian(0.5), 0.75).label
        array([[ 0, -1,  1]], dtype=int32)
    """
    tau = as_tau(tau)
    alpha = as_alpha(alpha)
    noise = as_noise(noise)
    refuse_traced("components_certificate", (votes, noise))
    votes = as_votes(votes)
    refuse_unsupported(votes, noise)
    return _decide(votes, noise, tau, alpha)


def as_tau(tau: object) -> float:
    """Return a probability between 1/2 and 1."""
    value = as_numbers("tau", tau, "a number in (1/2, 1)")
    if value.shape != () or not 0.5 < value < 1:
        raise ValueError(f"tau must be a number in (1/2, 1), got {in_brief(tau)}")
    return float(value)


def _refuse_few(n: int, tau: float, alpha: float, components: int) -> None:
    """Refuse so few votes that no component could be certified, not even if all votes agreed."""
    least = math.ceil(math.log(alpha / components) / math.log(tau))
    if n < least:
        raise ValueError(
            f"n must be at least {least} for {components} components at tau = {tau:g} and alpha = {alpha:g}, got {n}: "
            "with fewer votes none can be certified, even if all agree"
        )


def _decide(votes: Votes, noise: Noise, tau: float, alpha: float) -> Certificate:
    """Decide from checked votes."""
    label = np.asarray(votes.selection).argmax(axis=-1)
    hits = at_label(np, np.asarray(votes.counts), label)
    n = per_input(np.asarray(votes.n), label.ndim)
    # P[Bin(n, tau) >= k], which is 1 for k = 0.
    p_value = np.where(hits > 0, special.betainc(np.maximum(hits, 1), n - hits + 1.0, tau), 1.0) * (1 + _MARGIN)
    is_certified = holm(p_value.reshape(len(label), math.prod(label.shape[1:])), alpha).reshape(label.shape)
    (of_tau,) = np.ravel(rounded_radius(noise, unit_radii(noise, np.array(tau))))
    label, radius = settled(label, np.where(is_certified, of_tau, np.float32(-1)), votes.lost)
    p_lower = np.where(label != ABSTAIN, round_down(tau), np.float32(0))
    return Certificate(label, radius, p_lower, votes, alpha=alpha, norm=noise.norm)


def holm(p_values: np.ndarray, alpha: float) -> np.ndarray:
    """Return which hypotheses of each row `[N, M]` Holm's method rejects, at level alpha for the row as a whole.

    Example:
        >>> holm(np.array([[0.04, 0.001, 0.02, 0.3]]), 0.05)
        array([[False,  True, False, False]])
        >>> holm(np.array([[0.04, 0.001, 0.015, 0.02]]), 0.05)
        array([[ True,  True,  True,  True]])
    """
    order = np.argsort(p_values, axis=1, kind="stable")
    levels = alpha / np.arange(p_values.shape[1], 0, -1)
    passes = np.take_along_axis(p_values, order, axis=1) <= levels
    # The first one that fails ends the row.
    rejected = np.logical_and.accumulate(passes, axis=1)
    found = np.zeros_like(rejected)
    np.put_along_axis(found, order, rejected, axis=1)
    return found
