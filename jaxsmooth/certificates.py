"""The radius within which the smoothed classifier provably keeps its class, from a fixed number of votes.

`certify` is CERTIFY of Cohen et al. 2019 (arXiv:1902.02918, section 3.2.2), for many inputs at once.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from scipy import special

from jaxsmooth._checks import as_noise, as_sizes, as_votes, refuse_stopped
from jaxsmooth._host_loop import DECISION, as_host_task, count_streams, key_data, make_step
from jaxsmooth._sampling import as_task, scan_votes
from jaxsmooth.arguments import LEAST_SCALE, as_alpha, as_flag, is_traced, refuse_uncallable, refuse_unknown
from jaxsmooth.bounds import (
    at_label,
    fit_samples,
    largest_rival,
    lower_bound,
    lower_bounds,
    per_input,
    reduced,
    round_down,
    rounded_radius,
    scaled_radius,
    split_radii,
    unit_radii,
)
from jaxsmooth.discrete import Ablation
from jaxsmooth.noise import Gaussian
from jaxsmooth.progress import progress_bar
from jaxsmooth.types import ABSTAIN, Certificate, Classifier, Noise, RandomClassifier, Votes

__all__ = ["Fixed", "certificate", "certify"]

Bound = Literal["cohen", "runner_up"]
_BOUNDS = ("cohen", "runner_up")


def certify(
    f: Classifier,
    noise: Noise,
    key: jax.Array,
    x: ArrayLike,
    *,
    n0: int = 100,
    n: int = 100_000,
    alpha: float = 1e-3,
    bound: Bound = "cohen",
    batch_size: int = 256,
    ids: ArrayLike | None = None,
    compiled: bool = True,
    progress: bool = False,
) -> Certificate:
    """Certify the smoothed classifier: `n0` votes choose a class, `n` fresh votes bound its probability.

    Give all inputs at once. In a loop over images, or `jax.vmap(lambda x: certify(f, noise, key, x[None]))`, each input
    has the id 0 and so the same noise under one key. Each certificate is valid then, but they are not independent, as
    bounds for a whole data set need them: give a loop `ids=[i]`.

    With probability at least 1 - alpha over the samples, for each input, the smoothed classifier g(x) = argmax_c
    P(f(x + noise) = c) returns `label` for every perturbation of x whose norm (L2 for `Gaussian`, L1 for `Laplace`,
    `Uniform` and `Splitting`) is below `radius`, or, for a noise of norm 0 such as `Ablation`, that changes at most
    `radius` features; or else `label` is `ABSTAIN` (Cohen et al. 2019, arXiv:1902.02918, Theorem 1 and
    Proposition 3). Fix n and alpha before you look at any votes.

    Args:
        f: base classifier, `[B, *event] -> [B, *components, K]` scores, of which the largest is the class; traceable by
            JAX unless `compiled=False`. A row of its scores may depend on that row of the input only.
        noise: `Gaussian(sigma)`, `Laplace`, `Uniform` or another `jaxsmooth.Noise`. Its scale is in the units of `x`.
        key: one Threefry key, as of `key_of_seed`, unknown to whoever chose x and f.
        x: inputs `[N, *event]`, floating-point; one input is `x[None]`. The radius is in their units. Where JAX has no
            float64, they are rounded to float32 first, and the certificate is of what they then are.
        batch_size: most rows in one call of f, static. The votes do not depend on it.
        ids: `N` integers in [0, 2^32) that name the inputs to the noise; 0..N-1 by default.
        n0: number of selection votes, static, at least 1.
        n: number of estimation votes, static, at least 1; at most 2^30 with n0.
        alpha: failure probability for each input, static, in [1e-12, 0.5).
        bound: see `certificate`. Fix it before you look at any votes.
        compiled: run f in one compiled scan. If false, call it from the host: f may then be any function of a JAX
            array, this function does not run under `jax.jit`, and what it returns are NumPy arrays, as in every
            function that works on the host.
        progress: show a bar over the votes; only with `compiled=False`.

    Returns:
        A `Certificate` whose `votes` hold both sets of votes.

    Raises:
        ValueError, TypeError: as `count_votes` and `certificate`, before f is called.

    Example:
        >>> from jaxsmooth import Gaussian
        >>> f = lambda x: jnp.stack([x[:, 0], -x[:, 0]], -1)
        >>> result = certify(f, Gaussian(1.0), jax.random.key(0), jnp.array([[1.0, 5.0], [0.0, 0.0]]), n=10_000)
        >>> result.label, result.radius
        (Array([ 0, -1], dtype=int32), Array([0.9..., 0. ...], dtype=float32))
    """
    alpha = as_alpha(alpha)
    refuse_bound(bound, noise)
    votes, noise = cast_votes(f, noise, key, x, n0, n, batch_size, ids, compiled, progress)
    return decide(votes, noise, alpha, bound)


def cast_votes(
    f: Any, noise: Any, key: Any, x: Any, n0: Any, n: Any, batch_size: Any, ids: Any, compiled: Any, progress: Any
) -> tuple[Votes, Noise]:
    """Check what `certify` is given, and return selection and estimation votes with the checked noise."""
    n0, n, batch_size = as_sizes(n0, n, batch_size)
    # counts0 <- SampleUnderNoise(f, x, n0, sigma) and counts <- SampleUnderNoise(f, x, n, sigma), in one pass.
    if as_flag("compiled", compiled):
        refuse_uncallable(f)
        if as_flag("progress", progress):
            raise ValueError("progress=True needs compiled=False: a compiled scan has no bar")
        task = as_task(noise, key, x, ids)
        both = scan_votes(f, task, (n0, n), batch_size)
    else:
        step = make_step(f, compiled=False)
        task = as_host_task(noise, key_data(key, DECISION), x, ids)
        with progress_bar("votes", len(task.x) * (n0 + n), progress) if progress else nullcontext() as advance:
            both = count_streams(step, task, n0, n, batch_size, advance)
    used: Any = task.noise
    lost = used.lost_radius(task.x) if hasattr(used, "lost_radius") else None
    drawn_in = batch_size if isinstance(f, RandomClassifier) and f.of_batch else None
    return Votes(selection=both[:, 0], counts=both[:, 1], n=n, lost=lost, batch_size=drawn_in), used


def certificate(votes: Votes, noise: Noise, *, alpha: float = 1e-3, bound: Bound = "cohen") -> Certificate:
    """Decide label and radius of each input from its votes.

    The class A with most selection votes (the lowest index in a tie) has k of n estimation votes. With L the one-sided
    Clopper-Pearson lower bound at level `alpha`, the label is A and the radius that of L under the noise where
    L > 1/2; otherwise the label is `ABSTAIN` and the radius 0. The guarantee of `certify` holds if the two sets of
    votes are independent. `p_lower` and `radius` are rounded down, never up.

    With `bound="runner_up"`, for Gaussian noise, the radius is sigma/2 (Phi^-1(L) - Phi^-1(U)), with L at level
    alpha / 2 and U the upper bound at level alpha / 2 of the largest other count, where invalid votes count as a class
    (Cohen et al. 2019, Theorem 1). It is at least the other radius at alpha / 2, and more where classes share the rest.
    With `Ablation` it is the largest number of changes whose effect is below half of L - U.

    With C components, each is decided at level alpha / C, so that all certificates of an input hold together with
    probability at least 1 - alpha (Bonferroni).

    Args:
        votes: of the rule "fixed", with selection votes. Their `n` is static under `jax.jit`.
        noise: the noise under which they were counted.
        alpha: failure probability for each input, static, in [1e-12, 0.5).
        bound: "cohen" or "runner_up".

    Returns:
        A `Certificate`, of JAX arrays where the counts are, else of NumPy arrays.

    Raises:
        ValueError, TypeError: an argument is not as described: the sampling stopped because of the votes, they have no
            selection votes, or the noise rounds inputs and `votes.lost` is not known. A traced row of more than n
            votes, and a traced scale that is not positive and finite, abstain.

    Example:
        >>> from jaxsmooth import Gaussian, Votes
        >>> counts = jnp.array([[990, 10], [510, 490]])
        >>> votes = Votes(selection=counts // 10, counts=counts, n=1000)
        >>> certificate(votes, Gaussian(0.5)).radius
        Array([0.98..., 0. ...], dtype=float32)
    """
    alpha = as_alpha(alpha)
    noise = as_noise(noise)
    votes = as_votes(votes)
    refuse_bound(bound, noise)
    refuse_unsupported(votes, noise)
    return decide(votes, noise, alpha, bound)


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """The mode of `certify`: a fixed number of votes.

    Args:
        n0, n, bound: as for `certify`.
    """

    n0: int = 100
    n: int = 100_000
    bound: Bound = "cohen"

    name = "fixed"
    rule = "fixed"

    def __post_init__(self) -> None:
        refuse_unknown("bound", self.bound, _BOUNDS)
        n0, n, _ = as_sizes(self.n0, self.n)
        object.__setattr__(self, "n0", n0)
        object.__setattr__(self, "n", n)

    @property
    def known(self) -> int:
        """Estimation votes that each input gets whatever the votes are."""
        return self.n

    def refuse_noise(self, noise: Noise) -> None:
        """Refuse a noise that the bound is not for."""
        refuse_bound(self.bound, noise)

    def plan(self, noise: Noise, alpha: float, components: int) -> "FixedPlan":
        """Return what is fixed in advance."""
        del components  # `decide` divides alpha among them
        return FixedPlan(noise, alpha)

    def begin(self, plan: "FixedPlan", votes: Votes) -> "FixedState":
        """Return the state once all votes are there."""
        del plan
        return FixedState(votes)

    def needed(self, plan: "FixedPlan", state: "FixedState") -> np.ndarray:
        """Return how many more votes each input needs: none."""
        del plan
        return np.zeros(len(state.votes.counts), np.int64)

    def look(self, plan: "FixedPlan", state: "FixedState", votes: Votes) -> "FixedState":
        """Return the state with these votes."""
        del plan
        return state._replace(votes=votes)

    def certificate(self, plan: "FixedPlan", state: "FixedState") -> Certificate:
        """Decide as `certificate` does."""
        return decide(replace(state.votes, n=self.n), plan.noise, plan.alpha, self.bound)


class FixedPlan(NamedTuple):
    """What is fixed in advance."""

    noise: Noise
    alpha: float


class FixedState(NamedTuple):
    """The votes."""

    votes: Votes


def refuse_unsupported(votes: Votes, noise: Noise) -> None:
    """Refuse checked votes that do not support a certificate for a fixed n."""
    refuse_stopped(votes)
    if votes.selection is None:
        raise ValueError("votes must have selection votes: the votes that are counted may not choose the class, too")
    if votes.lost is None and hasattr(noise, "lost_radius"):
        raise ValueError(f"votes.lost must be noise.lost_radius(x) for {type(noise).__name__}, which rounds x")


def refuse_bound(bound: Any, noise: Any) -> None:
    """Refuse a bound that is none, or that is not for this noise."""
    if not isinstance(bound, str) or bound not in _BOUNDS:
        raise ValueError(f"bound must be one of {', '.join(_BOUNDS)}, got {bound!r}")
    if bound == "runner_up" and not isinstance(noise, (Gaussian, Ablation)):
        raise TypeError(f"bound='runner_up' is for Gaussian noise and Ablation, got {type(noise).__name__}")


def decide(votes: Votes, noise: Noise, alpha: float, bound: Bound) -> Certificate:
    """Decide from checked votes of the rule "fixed": in compiled code from tables, on the host from each count."""
    stated: dict[str, Any] = {"alpha": alpha, "norm": noise.norm}
    alpha = alpha / math.prod(votes.counts.shape[1:-1])  # Bonferroni over components
    if any(map(is_traced, jax.tree.leaves((votes.counts, votes.selection, votes.lost, votes.n, noise)))):
        if not isinstance(votes.n, int):
            raise TypeError("votes.n must be one static int under jax.jit: it decides which table is compiled")
        label, radius, p_lower = _decide_traced(votes, noise, alpha=alpha, bound=bound)
        return Certificate(label, radius, p_lower, votes, **stated)
    lost = None if votes.lost is None else np.asarray(votes.lost)
    on_host = replace(votes, counts=np.asarray(votes.counts), selection=np.asarray(votes.selection), lost=lost)
    with np.errstate(over="ignore", invalid="ignore"):
        label, radius, p_lower = _decide_host(on_host, noise, alpha, bound)
    if isinstance(votes.counts, jax.Array):
        label, radius, p_lower = jax.device_put((label, radius, p_lower))  # jnp.asarray would compile a program
    return Certificate(label, radius, p_lower, votes, **stated)


def _decide_host(votes: Votes, noise: Noise, alpha: float, bound: Bound) -> tuple[Any, Any, Any]:
    """Return label, radius and p_lower. Neither time nor memory grows with n."""
    # cA <- top index in counts0 (the lowest in a tie), k <- counts[cA]
    label = votes.selection.argmax(axis=-1).astype(np.int32)
    is_static = isinstance(votes.n, int)
    n = votes.n if is_static else per_input(votes.n, label.ndim)
    k = at_label(np, votes.counts, label)
    if bound == "cohen":
        # pA <- LowerConfBound(k, n, 1 - alpha); if pA > 1/2 the radius is sigma Phi^-1(pA), else ABSTAIN
        p_lower = lower_bound(k, n, alpha)
        unit = unit_radii(noise, p_lower)
        is_above = unit >= 0
        high, low = split_radii(noise, np.maximum(unit, 0.0))
    else:
        # Theorem 1 with both bounds. No union over classes is needed: the bound of the largest other count is at least
        # the bound of the true runner-up's own count.
        p_lower = lower_bound(k, n, alpha / 2)
        rival_lower = lower_bound(n - largest_rival(np, votes.counts, label, n), n, alpha / 2)  # 1 - U
        if isinstance(noise, Ablation):
            unit = _runner_up_changes(np, noise, *map(round_down, (p_lower, rival_lower)))
            is_above = unit >= 0
            high, low = split_radii(noise, np.maximum(unit, 0))
        else:
            unit = (special.ndtri(p_lower) + special.ndtri(rival_lower)) / 2
            high, low = _runner_up_radius(np, *map(_quantile, (p_lower, rival_lower)))
            is_above = (high > 0) if is_static else (unit > 0)
    if is_static:
        radius = scaled_radius(np.asarray(noise.scale, np.float32), high, low)
    else:
        radius = rounded_radius(noise, np.maximum(unit, 0.0))
    return (*_abstain(np, votes, noise, label, radius, is_above), round_down(p_lower))


@partial(jax.jit, static_argnames=("alpha", "bound"))
def _decide_traced(votes: Votes, noise: Noise, *, alpha: float, bound: Bound) -> tuple[Any, Any, Any]:
    """Return what `_decide_host` does, from tables over all counts from 0 to n."""
    label = jnp.argmax(votes.selection, axis=-1).astype(jnp.int32)
    k = at_label(jnp, votes.counts, label)
    # float32 arithmetic is not sound here: compiled code looks up what the host computed in float64 for every count.
    if bound == "cohen":
        bounds = lower_bounds(votes.n, alpha)
        unit = unit_radii(noise, bounds)
        high, low = (jnp.asarray(table)[k] for table in split_radii(noise, np.maximum(unit, 0.0)))
        is_above = jnp.asarray(unit >= 0)[k]
    else:
        bounds = lower_bounds(votes.n, alpha / 2)
        rival = largest_rival(jnp, votes.counts, label, votes.n)
        if isinstance(noise, Ablation):
            lower = jnp.asarray(round_down(bounds))
            unit = _runner_up_changes(jnp, noise, lower[k], lower[votes.n - rival])
            is_above = unit >= 0
            high = jnp.maximum(unit, 0).astype(jnp.float32)
            low = jnp.zeros_like(high)
        else:
            quantiles = jnp.asarray(_quantile(bounds))
            high, low = _runner_up_radius(jnp, quantiles[k], quantiles[votes.n - rival])
            is_above = high > 0
    radius = scaled_radius(jnp.asarray(noise.scale, jnp.float32), high, low)
    p_lower = jnp.asarray(round_down(bounds))[k]
    # Traced counts could not be refused: a row of more than n votes abstains.
    is_above = is_above & fit_samples(votes.counts, votes.n)
    return (*_abstain(jnp, votes, noise, label, radius, is_above), p_lower)


def _quantile(bounds: np.ndarray) -> np.ndarray:
    """Return Phi^-1 of lower bounds, rounded down to float32."""
    return round_down(special.ndtri(bounds))


def _runner_up_radius(xp: Any, top: Any, rival: Any) -> tuple[Any, Any]:
    """Return (Phi^-1(L) - Phi^-1(U)) / 2 from float32 values of Phi^-1(L) and Phi^-1(1 - U), as two parts."""
    down = np.float32(-np.inf)
    # One step down for the rounding of the sum, and one for a scale that float32 rounded up.
    safe = xp.nextafter(xp.nextafter(top + rival, down), down) / 2
    return xp.maximum(safe, np.float32(0)), xp.zeros_like(safe)


def _runner_up_changes(xp: Any, noise: Ablation, top: Any, rival: Any) -> Any:
    """Return the largest r with L - D_r > U + D_r from float32 values of L and 1 - U; -1 where there is none.

    D_r is the probability that one of r changed positions is kept. The inequality is 1/2 + (L - U) / 2 - D_r > 1/2,
    which is that of a lower bound of 1/2 + (L - U) / 2 without a runner-up.
    """
    # One step down for the rounding of the sum. The thresholds are stepped up to float32.
    middle = xp.nextafter((top + rival) / 2, xp.zeros_like(top))
    least = xp.asarray(-round_down(-noise.least_probabilities()))
    return xp.searchsorted(least, middle, side="right") - 1


def _abstain(xp: Any, votes: Votes, noise: Noise, label: Any, radius: Any, is_above: Any) -> tuple[Any, Any]:
    """Return label and radius, abstaining where the bound, the counts or the scale do not support a radius."""
    # A traced scale that is too small, or not finite, could not be refused.
    certified = is_above & (xp.asarray(noise.scale, np.float32) >= LEAST_SCALE) & xp.isfinite(radius)
    label = xp.where(certified, label, ABSTAIN)
    radius = xp.where(certified, radius, np.float32(0))
    if votes.lost is not None:
        label, radius = reduced(xp, label, radius, votes.lost)
    return label, radius
