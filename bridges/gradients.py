"""Gradients of the averaged class probability over noisy copies, for any backend, in constant memory."""

from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np

from bridges.backend import Backend
from bridges.preprocessing import Preprocessing

_LEAST_PROBABILITY = 1e-20

Samples = Iterable[tuple[jax.Array, jax.Array]]
"""Noisy batches with the row that each noisy input was made from, as `jaxsmooth.stream_samples` returns them."""


def smoothed_loss_gradient(
    backend: Backend,
    preprocessing: Preprocessing,
    draw: Callable[[np.ndarray], Samples],
    x: np.ndarray,
    labels: np.ndarray,
    n: int,
) -> np.ndarray:
    """Return the gradient in x of the mean over the batch of -log of the averaged probability of the label.

    The probability is averaged over n samples, and taken as 1e-20 where it is less (Salman et al. 2019,
    arXiv:1906.04584). Two passes over the samples: one for the average, one for its gradient.
    """
    own = np.zeros(len(x))
    for noisy, rows in _real(draw(x), len(x)):
        p = probabilities(backend.scores(preprocessing.before(noisy)[0]), backend.output)
        np.add.at(own, rows, p[np.arange(len(rows)), labels[rows]] / n)
    clipped = own <= _LEAST_PROBABILITY
    weights = np.where(clipped, 0.0, -1 / (len(x) * n * np.where(clipped, 1.0, own)))
    return weighted_gradient(backend, preprocessing, draw(x), x, labels, weights)


def weighted_gradient(
    backend: Backend,
    preprocessing: Preprocessing,
    samples: Samples,
    x: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    """Return, for each input, its weight times the sum over its samples of the gradient of p(label), `f32` like x."""
    total = np.zeros(x.shape)
    for noisy, rows in _real(samples, len(x)):
        prepared, _ = preprocessing.before(noisy)

        def cotangent(scores: np.ndarray, rows: np.ndarray = rows) -> np.ndarray:
            return weights[rows, None] * label_derivative(scores, labels[rows], backend.output)

        np.add.at(total, rows, preprocessing.gradient(noisy, backend.vjp(prepared, cotangent)))
    return total.astype(np.float32)


def probabilities(scores: np.ndarray, output: str) -> np.ndarray:
    """Return class probabilities from what the network returns.

    Example:
        >>> probabilities(np.log([[0.25, 0.75]]), "logits")
        array([[0.25, 0.75]])
    """
    if output == "probabilities":
        return scores
    if output == "log-probabilities":
        return np.exp(scores)
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def label_derivative(scores: np.ndarray, labels: np.ndarray, output: str) -> np.ndarray:
    """Return the derivative of each row's probability of its label in the row's scores.

    Example:
        >>> label_derivative(np.zeros((1, 2)), np.array([0]), "logits")
        array([[ 0.25, -0.25]])
    """
    chosen = np.eye(scores.shape[1])[labels]
    if output == "probabilities":
        return chosen
    p = probabilities(scores, output)
    own = (p * chosen).sum(axis=1, keepdims=True)
    return own * chosen if output == "log-probabilities" else own * (chosen - p)


def _real(samples: Samples, number: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Return the samples as NumPy arrays, without the padding."""
    for noisy, rows in samples:
        real = np.asarray(rows) < number
        yield np.asarray(noisy)[real], np.asarray(rows)[real]
