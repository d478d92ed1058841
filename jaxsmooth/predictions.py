"""The class that the smoothed classifier predicts: PREDICT of Cohen et al. 2019 (arXiv:1902.02918, section 3.2.1)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxsmooth._checks import as_batch_size, as_n, as_votes, refuse_stopped
from jaxsmooth._sampling import as_task, scan_votes
from jaxsmooth.arguments import as_alpha, as_flag, is_traced, refuse_uncallable
from jaxsmooth.bounds import (
    binomial_p_value,
    fit_samples,
    largest_rival,
    passes_binomial_test,
    passing_counts,
    per_input,
    two_sided_p_value,
)
from jaxsmooth.types import ABSTAIN, Classifier, Noise, Prediction, RandomClassifier, Votes
from jaxsmooth.votes import stream_votes

__all__ = ["predict", "prediction"]


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
    compiled: bool = True,
) -> Prediction:
    """Predict with the smoothed classifier: `count_votes`, then `prediction`.

    A returned class differs from the most probable class of f(x + noise) with probability at most `alpha`, for each
    input (Cohen et al. 2019, arXiv:1902.02918, Proposition 2). An abstention is never wrong.

    Args:
        f, noise, key, x, batch_size, ids: as for `certify`.
        n: number of samples for each input, static, at least 1.
        alpha: failure probability for each input, static, in [1e-12, 0.5).
        compiled: count in one compiled scan. If false, by `stream_votes`: f may then be any function of a JAX array.

    Returns:
        A `Prediction`.

    Raises:
        ValueError, TypeError: as `count_votes` and `prediction`, before f is called.

    Example:
        >>> from jaxsmooth import Gaussian
        >>> f = lambda x: jnp.stack([x.sum(-1), -x.sum(-1)], -1)
        >>> predict(f, Gaussian(1.0), jax.random.key(0), jnp.array([[2.0, 0.0], [0.0, 0.0], [-2.0, 0.0]])).label
        Array([ 0, -1,  1], dtype=int32)
    """
    alpha = as_alpha(alpha)
    n = as_n(n)
    # counts <- SampleUnderNoise(f, x, n, sigma)
    if as_flag("compiled", compiled):
        refuse_uncallable(f)
        counts = scan_votes(f, as_task(noise, key, x, ids), (n,), as_batch_size(batch_size))[:, 0]
    else:
        counts = stream_votes(f, noise, key, x, n=n, batch_size=batch_size, ids=ids)
    drawn_in = as_batch_size(batch_size) if isinstance(f, RandomClassifier) and f.of_batch else None
    return _decide(Votes(counts=counts, n=n, batch_size=drawn_in), alpha)


def prediction(votes: Votes, *, alpha: float = 1e-3) -> Prediction:
    """Decide the class of each input from its votes.

    The label is the class with most votes (the lowest index in a tie) if the exact two-sided binomial test of its
    votes against those of its rival rejects 1/2 at level `alpha` (Hung & Fithian 2019, arXiv:1610.03944), and
    `ABSTAIN` otherwise. The rival is the second class, or the votes for no class, whichever are more. With C
    components, each is tested at level alpha / C.

    Args:
        votes: of the rule "fixed"; their selection votes are not used. Their `n` is static under `jax.jit`.
        alpha: level of the test, static, in (0, 1).

    Returns:
        A `Prediction`, of JAX arrays where the counts are, else of NumPy arrays. `p_value` has a relative error below
        1e-4; the decision is exact and not read off it.

    Raises:
        ValueError, TypeError: an argument is not as described: the sampling stopped because of the votes. A traced row
            of more than n votes abstains.

    Example:
        >>> from jaxsmooth import Votes
        >>> prediction(Votes(counts=jnp.array([[80, 20], [55, 45], [30, 0]]), n=100)).label
        Array([ 0, -1, -1], dtype=int32)
    """
    alpha = as_alpha(alpha)
    votes = as_votes(votes)
    refuse_stopped(votes)
    return _decide(votes, alpha)


def _decide(votes: Votes, alpha: float) -> Prediction:
    alpha = alpha / votes.components
    if any(map(is_traced, jax.tree.leaves(votes))):
        if not isinstance(votes.n, int):
            raise TypeError("votes.n must be one static int under jax.jit: it decides which table is compiled")
        label, p_value = _decide_traced(votes, alpha=alpha)
        return Prediction(label, p_value, votes)
    counts = np.asarray(votes.counts)
    # cA, cB <- top two indices in counts, nA, nB <- their counts
    label = counts.argmax(axis=-1).astype(np.int32)
    top = counts.max(axis=-1)
    rival = largest_rival(np, counts, label, per_input(votes.n, label.ndim))
    # if BinomPValue(nA, nA + nB, 0.5) <= alpha return cA else ABSTAIN
    label = np.where(passes_binomial_test(top, rival, alpha), label, ABSTAIN)
    p_value = np.maximum(two_sided_p_value(top, top + rival), np.finfo(np.float32).tiny).astype(np.float32)
    if isinstance(votes.counts, jax.Array):
        label, p_value = jax.device_put((label, p_value))
    return Prediction(label, p_value, votes)


@partial(jax.jit, static_argnames="alpha")
def _decide_traced(votes: Votes, *, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Return label and p-value, the label from a table over all totals from 0 to n."""
    counts = votes.counts
    n = votes.n
    label = jnp.argmax(counts, axis=-1).astype(jnp.int32)
    top = counts.max(axis=-1)
    rival = largest_rival(jnp, counts, label, n)
    # Traced counts could not be refused: a row of more than n votes abstains.
    passes = fit_samples(counts, n) & (top >= jnp.asarray(passing_counts(n, alpha))[top + rival])
    return jnp.where(passes, label, ABSTAIN), binomial_p_value(top, rival, n)
