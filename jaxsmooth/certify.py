"""The radius within which the smoothed classifier provably keeps its class, from vote counts."""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from scipy import special

from jaxsmooth.bounds import lower_bounds, round_down, scaled_radius, split_radii
from jaxsmooth.checks import check_alpha, check_choice, check_counts, check_integer, check_noise
from jaxsmooth.noise import Gaussian
from jaxsmooth.types import ABSTAIN, Certificate, Classifier, Noise
from jaxsmooth.votes import count_both


def certify(
    f: Classifier,
    noise: Noise,
    key: jax.Array,
    x: ArrayLike,
    *,
    n0: int = 100,
    n: int = 100_000,
    alpha: float = 1e-3,
    bound: Literal["cohen", "runner_up"] = "cohen",
    batch_size: int = 256,
    ids: ArrayLike | None = None,
) -> Certificate:
    """Certify the smoothed classifier: `n0` votes choose a class, `n` fresh votes bound its probability.

    With probability at least 1 - alpha over the samples, for each input, the smoothed classifier g(x) = argmax_c
    P(f(x + noise) = c) returns `label` for every perturbation of x whose norm (L2 for `Gaussian`, L1 for `Laplace` and
    `Uniform`) is below `radius`, or else `label` is `ABSTAIN` (Cohen et al. 2019, arXiv:1902.02918, Theorem 1 and
    Proposition 3). n and alpha are to be fixed before looking at any votes.

    Args:
        f, noise, key, x, batch_size, ids: as for `count_votes`. The radius is in the units of `x`, like the scale.
        n0: number of selection votes, static, at least 1.
        n: number of estimation votes, static, at least 1; at most 2^30 with n0.
        alpha: failure probability for each input, static, in (0, 1).
        bound: see `certificate`, to be fixed before looking at any votes.

    Returns:
        A `Certificate` of `label i32[N]`, `radius f32[N]`, `p_lower f32[N]`, `counts i32[N, K]`, `selection i32[N, K]`.

    Raises:
        ValueError, TypeError: as `count_votes` and `certificate`, before f is called.

    Example:
        >>> from jaxsmooth import Gaussian
        >>> f = lambda x: jnp.stack([x[:, 0], -x[:, 0]], -1)
        >>> result = certify(f, Gaussian(1.0), jax.random.key(0), jnp.array([[1.0, 5.0], [0.0, 0.0]]), n=10_000)
        >>> result.label, result.radius
        (Array([ 0, -1], dtype=int32), Array([0.9..., 0. ...], dtype=float32))
    """
    alpha = check_alpha(alpha)
    check_bound(bound, check_noise(noise))
    selection, counts = count_both(f, noise, key, x, n0=n0, n=n, batch_size=batch_size, ids=ids)
    result = certificate(selection, counts, noise, n=n, alpha=alpha, bound=bound)
    return result._replace(**reduced_radius(noise, x, result.label, result.radius))


def certificate(
    selection: ArrayLike,
    counts: ArrayLike,
    noise: Noise,
    *,
    n: int,
    alpha: float = 1e-3,
    bound: Literal["cohen", "runner_up"] = "cohen",
) -> Certificate:
    """Decide label and radius of each input from its vote counts.

    The class A with most selection votes (the lowest index in a tie) has k of n estimation votes. With L the one-sided
    Clopper-Pearson lower bound at level `alpha`, the label is A and the radius that of L under the noise where
    L > 1/2; otherwise the label is `ABSTAIN` and the radius 0. The guarantee of `certify` holds if the two sets of
    votes are independent. `p_lower` and `radius` are rounded down, never up.

    With `bound="runner_up"`, for Gaussian noise, the radius is sigma/2 (Phi^-1(L) - Phi^-1(U)), with L at level
    alpha / 2 and U the upper bound at level alpha / 2 of the largest other count, invalid votes counting as a class
    (Cohen et al. 2019, Theorem 1). It is at least the other radius at alpha / 2, and more where classes share the rest.

    Args:
        selection: `[N, K]` integers, the votes that choose the class.
        counts: `[N, K]` integers, the votes that bound its probability; a row adds up to at most n.
        noise: the noise under which both were counted.
        n: number of samples behind each row of `counts`, static, at least 1.
        alpha: failure probability for each input, static, in (0, 1).
        bound: "cohen" or "runner_up".

    Returns:
        A `Certificate`.

    Raises:
        ValueError, TypeError: an argument is not as described. A traced row of more than n votes, and a traced scale
            that is not positive and finite, abstain.

    Example:
        >>> from jaxsmooth import Gaussian
        >>> counts = jnp.array([[990, 10], [510, 490]])
        >>> certificate(counts // 10, counts, Gaussian(0.5), n=1000).radius
        Array([0.98..., 0. ...], dtype=float32)
    """
    n, alpha, noise = check_integer("n", n, 1, 2**30), check_alpha(alpha), check_noise(noise)
    check_bound(bound, noise)
    selection, counts = check_counts("selection", selection), check_counts("counts", counts, n)
    if selection.shape != counts.shape:
        raise ValueError(f"selection and counts must have one shape, got {selection.shape} and {counts.shape}")
    decide = _runner_up_certificate if bound == "runner_up" else _certificate
    return decide(selection, counts, noise, n=n, alpha=alpha)


def check_bound(bound: Any, noise: Noise) -> None:
    """Refuse a bound that is none, or that is not for this noise."""
    check_choice("bound", bound, ("cohen", "runner_up"))
    if bound == "runner_up" and not isinstance(noise, Gaussian):
        raise TypeError(f"bound='runner_up' is for Gaussian noise, got {type(noise).__name__}")


@partial(jax.jit, static_argnames=("n", "alpha"))
def _certificate(selection: jax.Array, counts: jax.Array, noise: Noise, *, n: int, alpha: float) -> Certificate:
    bounds = lower_bounds(n, alpha)
    label = jnp.argmax(selection, axis=1).astype(jnp.int32)
    k = at_label(counts, label)
    unit = noise.unit_radius(bounds)
    high, low = (jnp.asarray(table)[k] for table in split_radii(unit))
    is_above = jnp.asarray((bounds > 0.5) & (unit > 0))[k]
    return _decided(selection, counts, noise, n, label, (high, low), is_above, round_down(bounds))


@partial(jax.jit, static_argnames=("n", "alpha"))
def _runner_up_certificate(
    selection: jax.Array, counts: jax.Array, noise: Noise, *, n: int, alpha: float
) -> Certificate:
    bounds = lower_bounds(n, alpha / 2)
    label = jnp.argmax(selection, axis=1).astype(jnp.int32)
    k, rival = at_label(counts, label), largest_rival(counts, label, n)
    # An upper bound at a count is 1 less the lower bound at all others, so that -Phi^-1(U) is in the same table.
    quantiles = jnp.asarray(round_down(special.ndtri(bounds)))
    unit = quantiles[k] + quantiles[n - rival]
    # One step down for the rounding of the sum, and one for a scale that float32 rounded up.
    safe = jnp.nextafter(jnp.nextafter(unit, -jnp.inf), -jnp.inf) / 2
    unit = jnp.maximum(safe, 0.0), jnp.zeros_like(safe)
    return _decided(selection, counts, noise, n, label, unit, safe > 0, round_down(bounds))


def at_label(counts: jax.Array, label: jax.Array) -> jax.Array:
    """Return each row's count of its label."""
    return jnp.take_along_axis(counts, label[:, None], axis=1)[:, 0]


def largest_rival(counts: jax.Array, label: jax.Array, n: ArrayLike) -> jax.Array:
    """Return the largest count of another class than the label, the votes that are for none being one, in [0, n]."""
    others = jnp.where(jnp.arange(counts.shape[1])[None] == label[:, None], 0, counts).max(axis=1)
    return jnp.clip(jnp.maximum(others, n - counts.sum(axis=1, dtype=jnp.int32)), 0, n)


def _decided(
    selection: jax.Array,
    counts: jax.Array,
    noise: Noise,
    n: int,
    label: jax.Array,
    unit: tuple[jax.Array, jax.Array],
    is_above: jax.Array,
    p_lower: np.ndarray,
) -> Certificate:
    """Return the certificate that follows from unit radii, split in two, where they are above 0."""
    scale = jnp.asarray(noise.scale, jnp.float32)
    radius = scaled_radius(scale, *unit)
    certified = is_above & (counts.sum(axis=1, dtype=jnp.int32) <= n) & (scale > 0) & jnp.isfinite(radius)
    return Certificate(
        label=jnp.where(certified, label, ABSTAIN),
        radius=jnp.where(certified, radius, 0.0),
        p_lower=jnp.asarray(p_lower)[at_label(counts, label)],
        counts=counts,
        selection=selection,
        rounded=jnp.zeros(label.shape, bool),
    )


def reduced_radius(noise: Noise, x: ArrayLike, label: ArrayLike, radius: ArrayLike) -> dict[str, jax.Array]:
    """Return label, radius and `rounded` once what a noise loses by rounding its inputs was taken off.

    A radius that is used up is an abstention.
    """
    label, radius = jnp.asarray(label), jnp.asarray(radius)
    lost_radius = getattr(noise, "lost_radius", None)
    if lost_radius is None:
        return {"label": label, "radius": radius, "rounded": jnp.asarray(np.zeros(label.shape, bool))}
    lost = lost_radius(x)
    rounded = lost > 0
    left = jnp.where(rounded, jnp.nextafter(radius - lost, jnp.full_like(radius, -jnp.inf)), radius)
    kept = (label != ABSTAIN) & (~rounded | (left > 0))
    return {"label": jnp.where(kept, label, ABSTAIN), "radius": jnp.where(kept, left, 0.0), "rounded": rounded}
