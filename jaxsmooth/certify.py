"""The radius within which the smoothed classifier provably keeps its class, from vote counts."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsmooth.bounds import lower_bounds, round_down, scaled_radius, split_radii
from jaxsmooth.checks import check_alpha, check_counts, check_integer, check_noise
from jaxsmooth.types import ABSTAIN, Certificate, Classifier, Noise
from jaxsmooth.votes import count_votes, decision_keys


def certify(
    f: Classifier,
    noise: Noise,
    key: jax.Array,
    x: ArrayLike,
    *,
    n0: int = 100,
    n: int = 100_000,
    alpha: float = 1e-3,
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
        n: number of estimation votes, static, at least 1.
        alpha: failure probability for each input, static, in (0, 1).

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
    n0, n, alpha = check_integer("n0", n0, 1, 2**30), check_integer("n", n, 1, 2**30), check_alpha(alpha)
    selection_key, estimation_key = decision_keys(key)
    selection = count_votes(f, noise, selection_key, x, n=n0, batch_size=batch_size, ids=ids)
    counts = count_votes(f, noise, estimation_key, x, n=n, batch_size=batch_size, ids=ids)
    return certificate(selection, counts, noise, n=n, alpha=alpha)


def certificate(selection: ArrayLike, counts: ArrayLike, noise: Noise, *, n: int, alpha: float = 1e-3) -> Certificate:
    """Decide label and radius of each input from its vote counts.

    The class A with most selection votes (the lowest index in a tie) has k of n estimation votes. With L the one-sided
    Clopper-Pearson lower bound at level `alpha`, the label is A and the radius that of L under the noise where
    L > 1/2; otherwise the label is `ABSTAIN` and the radius 0. The guarantee of `certify` holds if the two sets of
    votes are independent. `p_lower` and `radius` are rounded down, never up.

    Args:
        selection: `[N, K]` integers, the votes that choose the class.
        counts: `[N, K]` integers, the votes that bound its probability; a row adds up to at most n.
        noise: the noise under which both were counted.
        n: number of samples behind each row of `counts`, static, at least 1.
        alpha: failure probability for each input, static, in (0, 1).

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
    selection, counts = check_counts("selection", selection), check_counts("counts", counts, n)
    if selection.shape != counts.shape:
        raise ValueError(f"selection and counts must have one shape, got {selection.shape} and {counts.shape}")
    return _certificate(selection, counts, noise, n=n, alpha=alpha)


@partial(jax.jit, static_argnames=("n", "alpha"))
def _certificate(selection: jax.Array, counts: jax.Array, noise: Noise, *, n: int, alpha: float) -> Certificate:
    bounds = lower_bounds(n, alpha)
    scale = jnp.asarray(noise.scale, jnp.float32)
    label = jnp.argmax(selection, axis=1).astype(jnp.int32)
    k = jnp.take_along_axis(counts, label[:, None], axis=1)[:, 0]
    high, low = (jnp.asarray(table)[k] for table in split_radii(noise.unit_radius(bounds)))
    radius = scaled_radius(scale, high, low)
    certified = (
        (jnp.asarray(bounds > 0.5))[k] & (counts.sum(axis=1, dtype=jnp.int32) <= n) & (scale > 0) & jnp.isfinite(radius)
    )
    return Certificate(
        label=jnp.where(certified, label, ABSTAIN),
        radius=jnp.where(certified, radius, 0.0),
        p_lower=jnp.asarray(round_down(bounds))[k],
        counts=counts,
        selection=selection,
    )
