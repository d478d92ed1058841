"""Gradients of the averaged class probability over noisy copies, for any backend, in constant memory."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from bridges.backend import Backend
from bridges.preprocessing import Preprocessing

LEAST_PROBABILITY = 1e-20
"""What a probability is taken as where it is less, before its logarithm."""


class Copies(NamedTuple):
    """The noisy copies that gradients average over, the same in every pass.

    Attributes:
        x: inputs.
        n: copies of each.
        at_once: how many go through the network at once: all copies of some inputs, or a part of the copies of one.
        draw: returns batches of that many rows, those of the first input first, the last batch filled up; JAX arrays
            where they stay on an accelerator.
    """

    x: np.ndarray
    n: int
    at_once: int
    draw: Callable[[], Iterable[np.ndarray | jax.Array]]

    def batches(self) -> Iterator[tuple[np.ndarray | jax.Array, np.ndarray]]:
        """Return the batches without what fills up the last one, with the row that each copy was made from."""
        for start, noisy in zip(itertools.count(step=self.at_once), self.draw(), strict=False):
            rows = np.arange(start, min(start + self.at_once, len(self.x) * self.n)) // self.n
            yield noisy[: len(rows)], rows


def smoothed_loss_gradient(
    backend: Backend, preprocessing: Preprocessing, copies: Copies, labels: np.ndarray
) -> np.ndarray:
    """Return the gradient in x of the mean over the batch of -log of the averaged probability of the label.

    The probability is averaged over the copies, and taken as 1e-20 where it is less (Salman et al. 2019,
    arXiv:1906.04584). One pass over batches that hold all copies of an input; over others two, the first one for the
    average.
    """
    number = len(copies.x)

    def weigh(own: np.ndarray, rows: np.ndarray) -> np.ndarray:
        average = np.bincount(rows, own, number) / copies.n
        # The derivative of -log(max(average, least)), 0 where the average is less.
        return (average > LEAST_PROBABILITY) / (-number * copies.n * np.maximum(average, LEAST_PROBABILITY))

    if copies.at_once % copies.n == 0:
        return weighted_gradient(backend, preprocessing, copies, labels, lambda own, rows: weigh(own, rows)[rows])
    passed = list[tuple[np.ndarray, np.ndarray]]()
    with backend.scoring() as scores:
        for noisy, rows in copies.batches():
            p = probabilities(scores(preprocessing.before(noisy)[0]), backend.loss_function.output)
            passed.append((p[np.arange(len(rows)), labels[rows]], rows))
    weights = weigh(*map(np.concatenate, zip(*passed, strict=True)))
    return weighted_gradient(backend, preprocessing, copies, labels, lambda _, rows: weights[rows])


def weighted_gradient(
    backend: Backend,
    preprocessing: Preprocessing,
    copies: Copies,
    labels: np.ndarray,
    weigh: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Return, for each input, the weighted sum over its copies of the gradient of p(label), `f32` like x.

    `weigh(own, rows)` returns the weights of a batch from its p(label) and the rows that it was made from.
    """
    total = np.zeros(copies.x.shape)
    for noisy, rows in copies.batches():
        prepared, _ = preprocessing.before(noisy)
        refuse_versions(prepared, noisy)

        def cotangent(scores: np.ndarray, rows: np.ndarray = rows) -> np.ndarray:
            p = probabilities(scores, backend.loss_function.output)
            place = (np.arange(len(rows)), labels[rows])
            return label_derivative(p, place, backend.loss_function.output, weigh(p[place], rows))

        counts = np.bincount(rows - rows[0])  # in order, the copies of an input together
        even = bool((counts == counts[0]).all())  # as all copies of some inputs are
        # The network's framework sums what it can, since the sums are less to move.
        together = int(counts[0]) if even and preprocessing.is_affine else 1
        gradient = preprocessing.gradient(noisy, backend.vjp(prepared, cotangent, copies=together))
        if even:  # several times faster
            sums = gradient.reshape(len(counts), -1, *gradient.shape[1:]).sum(axis=1, dtype=np.float64)
        else:
            sums = np.add.reduceat(gradient, np.cumsum(counts) - counts, axis=0, dtype=np.float64)
        total[rows[0] : rows[-1] + 1] += sums
    return total.astype(np.float32)


def refuse_versions(prepared: Any, x: Any) -> None:
    """Refuse a defence that makes several versions of each input, for a gradient that knows of one."""
    if len(prepared) != len(x):
        raise ValueError(
            f"a preprocessing defence makes {len(prepared)} inputs of {len(x)}: only loss_gradient with sampling=False "
            "averages over such versions"
        )


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
    columns = np.ascontiguousarray(scores.T)  # NumPy is slow at many sums of few numbers
    exponentials = np.exp(columns - columns.max(axis=0))
    return (exponentials / exponentials.sum(axis=0)).T


def label_derivative(
    p: np.ndarray, place: tuple[np.ndarray, np.ndarray], output: str, weights: np.ndarray
) -> np.ndarray:
    """Return the derivative of each row's weighted probability of its label in what the network returns.

    The place of the labels is their rows and columns.

    Example:
        >>> label_derivative(np.array([[0.5, 0.5]]), (np.array([0]), np.array([0])), "logits", np.array([2.0]))
        array([[ 0.5, -0.5]])
    """
    own = weights if output == "probabilities" else weights * p[place]
    derivative = p * -own[:, None] if output == "logits" else np.zeros_like(p)
    derivative[place] += own
    return derivative
