"""The class that the smoothed classifier predicts, from vote counts."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsmooth.bounds import binomial_p_value, passing_counts
from jaxsmooth.checks import check_alpha, check_counts, check_integer
from jaxsmooth.types import ABSTAIN, Classifier, Noise, Prediction
from jaxsmooth.votes import count_votes


def predict(
    f: Classifier,
    noise: Noise,
    key: jax.Array,
    x: ArrayLike,
    *,
    n: int = 1000,
    alpha: float = 1e-3,
    batch_size: int = 256,
    ids: ArrayLike | None = None,
) -> Prediction:
    """Predict with the smoothed classifier: `count_votes`, then `prediction`.

    A returned class differs from the most probable class of f(x + noise) with probability at most `alpha`, for each
    input (Cohen et al. 2019, arXiv:1902.02918, Proposition 2). An abstention is never wrong.

    Args:
        f, noise, key, x, n, batch_size, ids: as for `count_votes`.
        alpha: failure probability for each input, static, in (0, 1).

    Returns:
        A `Prediction` of `label i32[N]`, `p_value f32[N]`, `counts i32[N, K]`.

    Raises:
        ValueError, TypeError: as `count_votes` and `prediction`, before f is called.

    Example:
        >>> from jaxsmooth import Gaussian
        >>> f = lambda x: jnp.stack([x.sum(-1), -x.sum(-1)], -1)
        >>> predict(f, Gaussian(1.0), jax.random.key(0), jnp.array([[2.0, 0.0], [0.0, 0.0], [-2.0, 0.0]])).label
        Array([ 0, -1,  1], dtype=int32)
    """
    alpha = check_alpha(alpha)
    return prediction(count_votes(f, noise, key, x, n=n, batch_size=batch_size, ids=ids), n=n, alpha=alpha)


def prediction(counts: ArrayLike, *, n: int, alpha: float = 1e-3) -> Prediction:
    """Decide the class of each input from its vote counts.

    The label is the class with most votes (the lowest index in a tie) if the exact two-sided binomial test of its
    votes against those of its rival rejects 1/2 at level `alpha` (Hung & Fithian 2019, arXiv:1610.03944), and
    `ABSTAIN` otherwise. The rival is the second class, or the votes for no class, whichever are more.

    Args:
        counts: `[N, K]` integers, K >= 2; a row adds up to at most n.
        n: number of samples behind each row, static, at least 1.
        alpha: level of the test, static, in (0, 1).

    Returns:
        A `Prediction`. `p_value` has a relative error below 1e-4; the decision is exact and not read off it.

    Raises:
        ValueError, TypeError: an argument is not as described. A traced row of more than n votes abstains.

    Example:
        >>> prediction(jnp.array([[80, 20], [55, 45], [30, 0]]), n=100).label
        Array([ 0, -1, -1], dtype=int32)
    """
    n, alpha = check_integer("n", n, 1, 2**30), check_alpha(alpha)
    return _prediction(check_counts("counts", counts, n), n=n, alpha=alpha)


@partial(jax.jit, static_argnames=("n", "alpha"))
def _prediction(counts: jax.Array, *, n: int, alpha: float) -> Prediction:
    label, top = jnp.argmax(counts, axis=1).astype(jnp.int32), counts.max(axis=1)
    classes = jnp.arange(counts.shape[1], dtype=jnp.int32)[None, :]
    invalid = n - counts.sum(axis=1, dtype=jnp.int32)
    rival = jnp.maximum(jnp.where(classes == label[:, None], 0, counts).max(axis=1), invalid)
    passes = (invalid >= 0) & (top >= jnp.asarray(passing_counts(n, alpha))[top + rival])
    return Prediction(jnp.where(passes, label, ABSTAIN), binomial_p_value(top, rival, n), counts)
