"""The attacks of SmoothAdv and SmoothMix on a smoothed classifier, in the steps of their authors' code.

They maximise -log of the class probability averaged over fixed noise e `[m, N, *event]`. Each step is compiled by
itself, so that a network of another framework may compute the scores in between.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsmooth._labels import LEAST_PROBABILITY, along_rows, at_labels
from jaxsmooth.networks import Network

Bounds = tuple[jax.Array, jax.Array] | None
"""The least and the greatest value of an input, None where there are none."""

LEVELS = 255.0
"""DDN rounds its points to 8-bit pixels."""


def pgd(
    network: Network,
    e: jax.Array,
    x: jax.Array,
    y: jax.Array,
    key: jax.Array,
    bounds: Bounds,
    epsilon: float,
    steps: int,
) -> jax.Array:
    """Return x, in float32, after `steps` steps of length 2 epsilon / steps, each projected onto the L2 ball.

    Salman et al. 2019, arXiv:1906.04584; `PGD_L2` in their code.
    """
    dtype = x.dtype
    x = x.astype(jnp.float32)
    delta = jnp.zeros_like(x)
    for i in range(steps):
        _, gradient = _ascend(network, e, x + delta, y, dtype)
        delta = _pgd_step(delta, gradient, x, key, i, bounds, epsilon, steps)
    return x + delta


@jax.jit
def _pgd_step(
    delta: jax.Array,
    gradient: jax.Array,
    x: jax.Array,
    key: jax.Array,
    i: jax.Array,
    bounds: Bounds,
    epsilon: jax.Array,
    steps: jax.Array,
) -> jax.Array:
    delta = delta + 2 * epsilon / steps * _direction(gradient, key, i)
    return _into_ball(_clip(x + delta, bounds) - x, epsilon)


class _Point(NamedTuple):
    """Where DDN stands.

    Attributes:
        delta: the perturbation `[N, *event]`.
        norm: what the next one is scaled to `[N]`.
        found: the smallest adversarial perturbation so far, zero where there is none.
        length: its length, or how far any point within the bounds can be.
    """

    delta: jax.Array
    norm: jax.Array
    found: jax.Array
    length: jax.Array


def ddn(
    network: Network,
    e: jax.Array,
    x: jax.Array,
    y: jax.Array,
    key: jax.Array,
    bounds: Bounds,
    epsilon: float,
    steps: int,
) -> jax.Array:
    """Return x, in float32, moved by the smallest adversarial perturbation that DDN finds, or not where it finds none.

    Rony et al. 2019, arXiv:1811.09600; `DDN` in the code of Salman et al. 2019, with its initial norm epsilon.
    """
    dtype = x.dtype
    x = x.astype(jnp.float32)
    point = _start_ddn(x, bounds, epsilon)
    for i in range(steps):
        scores, gradient = _ascend(network, e, x + point.delta, y, dtype)
        point = _ddn_step(point, scores, gradient, x, y, key, i, bounds, steps)
    return _end_ddn(point.found, x, bounds, epsilon)


@jax.jit
def _start_ddn(x: jax.Array, bounds: Bounds, epsilon: jax.Array) -> _Point:
    zero = jnp.zeros_like(x)
    return _Point(zero, jnp.full(len(x), epsilon, jnp.float32), zero, _farthest(x, bounds))


@jax.jit
def _ddn_step(
    point: _Point,
    scores: jax.Array,
    gradient: jax.Array,
    x: jax.Array,
    y: jax.Array,
    key: jax.Array,
    i: jax.Array,
    bounds: Bounds,
    steps: jax.Array,
) -> _Point:
    is_adversarial = _most_frequent(scores, len(y)) != y
    is_better = is_adversarial & (_length(point.delta) < point.length)
    found = jnp.where(along_rows(is_better, x), point.delta, point.found)
    length = jnp.where(is_better, _length(point.delta), point.length)
    # Cosine schedule of the step from 1 to 0.01; the authors advance it before their first step.
    rate = 0.01 + 0.99 * (1 + jnp.cos(jnp.pi * (i + 1) / steps)) / 2
    delta = point.delta + rate * _direction(gradient, key, i)
    norm = point.norm * jnp.where(is_adversarial, 0.95, 1.05)
    norm = jnp.minimum(norm, _farthest(x, bounds))
    delta = along_rows(norm, delta) * _unit(delta)
    return _Point(_clip(_to_levels(x + delta, bounds), bounds) - x, norm, found, length)


@jax.jit
def _end_ddn(found: jax.Array, x: jax.Array, bounds: Bounds, epsilon: jax.Array) -> jax.Array:
    found = _into_ball(found, epsilon)
    if bounds is not None:
        low, high = bounds
        found = jnp.round(found * LEVELS / (high - low)) * (high - low) / LEVELS
    return x + found


def smoothmix(
    network: Network,
    e: jax.Array,
    x: jax.Array,
    y: jax.Array,
    bounds: Bounds,
    alpha: float,
    steps: int,
    mix_step: int,
    maxnorm_s: float | None,
    maxnorm: float | None,
) -> tuple[jax.Array, jax.Array]:
    """Return the clean and the adversarial end of SmoothMix's mixtures, in float32.

    Jeong et al. 2021, arXiv:2111.09277; `SmoothMix_PGD` in their code. The clean end is the point before step
    `mix_step`, within `maxnorm_s` of x; the adversarial end the one after all steps of length alpha, within `maxnorm`.
    """
    dtype = x.dtype
    x = x.astype(jnp.float32)
    clean = x
    adversarial = x
    for i in range(steps):
        if i == mix_step:
            clean = adversarial
        _, gradient = _ascend(network, e, adversarial, y, dtype)
        adversarial = _smoothmix_step(adversarial, gradient, x, bounds, alpha, maxnorm)
    return _near(clean, x, bounds, maxnorm_s), adversarial


@jax.jit
def _smoothmix_step(
    point: jax.Array, gradient: jax.Array, x: jax.Array, bounds: Bounds, alpha: jax.Array, maxnorm: jax.Array | None
) -> jax.Array:
    step = gradient / along_rows(_length(gradient) + 1e-8, gradient)
    return _near(point + alpha * step, x, bounds, maxnorm)


@jax.jit
def _near(point: jax.Array, x: jax.Array, bounds: Bounds, maxnorm: jax.Array | None) -> jax.Array:
    if maxnorm is not None:
        point = x + _into_ball(point - x, maxnorm)
    return _clip(point, bounds)


def _ascend(network: Network, e: jax.Array, x: jax.Array, y: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Return the scores of the noisy copies of x, and the gradient in x of -log of the averaged probability of y."""
    scores, gradient = network.pull_back(noisy_copies(x, e, dtype), _weights, y)
    return scores, _over_copies(gradient, len(e))


@functools.partial(jax.jit, static_argnums=2)
def noisy_copies(x: jax.Array, e: jax.Array, dtype: Any) -> jax.Array:
    """Return x + e in a dtype, `[m N, *event]`: the copies of all inputs under the first noise come first."""
    noisy = (x[None].astype(e.dtype) + e).astype(dtype)
    return noisy.reshape(-1, *x.shape[1:])


@functools.partial(jax.jit, static_argnums=1)
def _over_copies(gradient: jax.Array, m: int) -> jax.Array:
    return jnp.asarray(gradient).astype(jnp.float32).reshape(m, -1, *gradient.shape[1:]).sum(axis=0)


@jax.jit
def _weights(scores: jax.Array, y: jax.Array) -> jax.Array:
    """Return the gradient in the scores of the sum over inputs of -log of the averaged probability of y."""

    def loss(scores: jax.Array) -> jax.Array:
        return -at_labels(log_mean(log_probabilities(scores, len(y))), y).sum()

    return jax.grad(loss)(jnp.asarray(scores).astype(jnp.float32))


def log_probabilities(scores: jax.Array, inputs: int) -> jax.Array:
    """Return `log_softmax`, `[m N, K] -> f32[m, N, K]`."""
    return jax.nn.log_softmax(jnp.asarray(scores).astype(jnp.float32)).reshape(-1, inputs, scores.shape[-1])


def log_mean(log_p: jax.Array) -> jax.Array:
    """Return the log of the mean probabilities, at least 1e-20, `[m, N, K] -> [N, K]`."""
    mean = jax.nn.logsumexp(log_p, axis=0) - math.log(len(log_p))
    return jnp.maximum(mean, math.log(LEAST_PROBABILITY))


def _most_frequent(scores: jax.Array, inputs: int) -> jax.Array:
    """Return the class that most copies of an input get, the smallest of those, `[m N, K] -> [N]`."""
    classes = scores.shape[-1]
    votes = jax.nn.one_hot(scores.argmax(axis=-1).reshape(-1, inputs), classes).sum(axis=0)
    return votes.argmax(axis=-1)


def _direction(gradient: jax.Array, key: jax.Array, i: jax.Array) -> jax.Array:
    """Return each gradient at length 1; normal numbers where it is zero, as the authors draw them."""
    zero = _length(gradient) == 0
    drawn = jax.lax.cond(
        zero.any(),
        lambda: jax.random.normal(jax.random.fold_in(key, i), gradient.shape, gradient.dtype),
        lambda: jnp.zeros_like(gradient),
    )
    return jnp.where(along_rows(zero, gradient), drawn, _unit(gradient))


def _farthest(x: jax.Array, bounds: Bounds) -> jax.Array:
    """Return how far from each input a point within the bounds can be."""
    if bounds is None:
        return jnp.full(len(x), jnp.inf, jnp.float32)
    low, high = bounds
    return _length(jnp.maximum(x - low, high - x))


def _into_ball(delta: jax.Array, radius: jax.Array) -> jax.Array:
    length = _length(delta)
    return delta * along_rows(jnp.minimum(1.0, radius / jnp.where(length > 0, length, 1.0)), delta)


def _clip(x: jax.Array, bounds: Bounds) -> jax.Array:
    return x if bounds is None else jnp.clip(x, *bounds)


def _to_levels(x: jax.Array, bounds: Bounds) -> jax.Array:
    if bounds is None:
        return x
    low, high = bounds
    step = (high - low) / LEVELS
    return low + jnp.round((x - low) / step) * step


def _length(x: jax.Array) -> jax.Array:
    """Return the L2 norm of each input."""
    return jnp.sqrt((x**2).reshape(len(x), -1).sum(axis=1))


def _unit(x: jax.Array) -> jax.Array:
    """Return each input divided by its L2 norm, zero where that is zero."""
    length = _length(x)
    return x / along_rows(jnp.where(length > 0, length, 1.0), x)
