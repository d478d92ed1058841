"""Training objectives against slow NumPy transcriptions of their formulas, on a linear classifier."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy import special, stats

from jaxsmooth import Gaussian, losses

NOISE, K, N, D = Gaussian(0.4), 3, 5, 4
Y = np.array([0, 1, 2, 1, 0])
OBJECTIVES = ["gaussian", "stability", "consistency", "smoothadv", "macer", "smoothmix"]


def linear(weights, x):
    return x.reshape(len(x), -1) @ weights


def weights(scale=1.0):
    return np.asarray(np.random.default_rng(2).normal(size=(D, K)) * scale, np.float32)


def points():
    return np.asarray(np.random.default_rng(3).normal(size=(N, D)), np.float32)


def noise_of(key, m):
    return np.asarray(NOISE.sample(key, (m, N, D)), np.float64)


def log_p(x):
    return special.log_softmax(np.asarray(x, np.float64) @ weights().astype(np.float64), axis=-1)


def divergence(log_a, log_b):
    return sum(np.exp(a) * (a - b) for a, b in zip(log_a, log_b, strict=True))


def ascent(x, e, y):
    """The gradient in x of -log of the averaged probability, and the averages, input by input."""
    gradients, averages = [], []
    for i in range(N):
        p = np.exp(log_p(x[i] + e[:, i]))
        each = [p[s, y[i]] * (weights()[:, y[i]] - weights() @ p[s]) for s in range(len(e))]
        averages.append(p.mean(0))
        gradients.append(-np.mean(each, axis=0) / p[:, y[i]].mean())
    return np.array(gradients), np.array(averages)


def unit(v):
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def gaussian(key):
    e = noise_of(key, 1)[0]
    return np.mean([-log_p(points()[i] + e[i])[Y[i]] for i in range(N)])


def stability(key, lambda_=2.0):
    e, x = noise_of(key, 1)[0], points()
    extra = [divergence(log_p(x[i]), log_p(x[i] + e[i])) for i in range(N)]
    return gaussian(key) + lambda_ * np.mean(extra)


def consistency(key, m=3, lambda_=10.0, eta=0.5):
    e, x, total = noise_of(key, m), points(), 0.0
    for i in range(N):
        each = [log_p(x[i] + e[s, i]) for s in range(m)]
        mean = np.log(np.mean(np.exp(each), axis=0))
        total += np.mean([-a[Y[i]] for a in each]) + lambda_ * np.mean([divergence(mean, a) for a in each])
        total -= eta * np.sum(np.exp(mean) * mean)
    return total / N


def smoothadv(key, m=3, epsilon=0.5, steps=3, attack="pgd"):
    e, x, delta, norm = noise_of(key, m), points().astype(float), np.zeros((N, D)), np.full(N, epsilon)
    for _ in range(steps):
        gradient, p = ascent(x + delta, e, Y)
        delta = delta + 2 * epsilon / steps * unit(gradient)
        if attack == "ddn":
            norm = np.minimum(norm * np.where(p.argmax(1) != Y, 0.95, 1.05), epsilon)
            delta = norm[:, None] * unit(delta)
        delta *= np.minimum(1, epsilon / np.linalg.norm(delta, axis=1))[:, None]
    return np.mean([-log_p(x[i] + delta[i] + e[s, i])[Y[i]] for i in range(N) for s in range(m)])


def macer(key, m=4, lambda_=12.0, beta=2.0, gamma=8.0):
    e, x, total, counted = noise_of(key, m), points(), 0.0, 0
    for i in range(N):
        total -= np.log(np.mean([np.exp(log_p(x[i] + e[s, i]))[Y[i]] for s in range(m)]))
        p = np.mean([special.softmax(beta * (x[i] + e[s, i]) @ weights().astype(float)) for s in range(m)], axis=0)
        if p.argmax() == Y[i]:
            counted += 1
            gap = stats.norm.ppf(p[Y[i]]) - stats.norm.ppf(np.sort(p)[-2])
            total += lambda_ * NOISE.sigma / 2 * max(0, gamma - gap)
    assert 0 < counted < N
    return total / N


def smoothmix(key, m=3, eta=5.0, alpha=0.7, steps=2):
    e, x, total = noise_of(key, m), points().astype(float), 0.0
    adversarial = x
    for _ in range(steps):
        adversarial = adversarial + alpha * unit(ascent(adversarial, e, Y)[0])
    mixing = np.asarray(jax.random.uniform(jax.random.fold_in(key, 1), (N,), maxval=0.5), float)
    for i in range(N):
        each = np.array([log_p(x[i] + e[s, i]) for s in range(m)])
        target = (1 - mixing[i]) * np.exp(each).mean(0) + mixing[i] / K
        mixture = (1 - mixing[i]) * x[i] + mixing[i] * adversarial[i]
        mixed = [-target @ log_p(mixture + e[s, i]) for s in range(m)]
        total += np.mean(-each[:, Y[i]]) + eta * np.mean(mixed)
    return total / N


SETTINGS = [
    (gaussian, {}),
    (stability, {"lambda_": 3.0}),
    (consistency, {"m": 3}),
    (smoothadv, {"m": 3, "steps": 3}),
    (smoothadv, {"m": 2, "steps": 4, "attack": "ddn"}),
    (macer, {"m": 4, "beta": 2.0}),
    (macer, {"m": 4, "beta": 2.0, "gamma": 0.5}),
    (smoothmix, {"m": 3, "alpha": 0.7, "steps": 2}),
]


@pytest.mark.parametrize(("formula", "settings"), SETTINGS)
def test_objectives_are_their_formulas(key, formula, settings):
    f = Partial(linear, jnp.asarray(weights()))
    ours = partial(getattr(losses, formula.__name__), **settings)
    value = ours(f, NOISE, key, jnp.asarray(points()), jnp.asarray(Y))
    # Float32 against float64: rounding of 1e-7, times the gradient through a few steps.
    np.testing.assert_allclose(value, formula(key, **settings), rtol=2e-5)
    np.testing.assert_allclose(jax.jit(ours)(f, NOISE, key, points(), Y), value, rtol=1e-5)


NEUTRAL = {
    "stability": {"lambda_": 0.0},
    "consistency": {"m": 1, "lambda_": 0.0, "eta": 0.0},
    "smoothadv": {"m": 1, "epsilon": 0.0},
    "macer": {"m": 1, "lambda_": 0.0},
    "smoothmix": {"m": 1, "eta": 0.0},
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_settings_give_the_gaussian_objective_and_gradient(key, name):
    f, x, y = Partial(linear, jnp.asarray(weights())), jnp.asarray(points()), jnp.asarray(Y)
    expected = jax.value_and_grad(losses.gaussian)(f, NOISE, key, x, y)
    ours = jax.value_and_grad(partial(getattr(losses, name), **NEUTRAL[name]))(f, NOISE, key, x, y)
    chex.assert_trees_all_close(ours, expected, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_are_finite_where_the_formulas_are_singular(key, name, scale):
    """No slope at all, and probabilities of exactly 0 and 1."""
    f = Partial(linear, jnp.asarray(weights(scale)))
    value, gradient = jax.value_and_grad(getattr(losses, name))(f, NOISE, key, jnp.asarray(points()), jnp.asarray(Y))
    assert jnp.isfinite(value)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_attacks_stay_in_their_ball(key):
    """At the true class's own margin, moving by epsilon costs at most epsilon times the largest slope."""
    f, x, y = Partial(linear, jnp.asarray(weights())), jnp.asarray(points()), jnp.asarray(Y)
    slope = max(np.linalg.norm(weights()[:, a] - weights()[:, b]) for a in range(K) for b in range(K))
    for attack in ("pgd", "ddn"):
        clean = losses.smoothadv(f, NOISE, key, x, y, epsilon=0.0)
        attacked = losses.smoothadv(f, NOISE, key, x, y, epsilon=0.3, steps=8, attack=attack)
        assert clean < attacked <= clean + 0.3 * slope


def test_an_unknown_attack_is_refused(key):
    with pytest.raises(ValueError, match="attack must"):
        losses.smoothadv(Partial(linear, jnp.asarray(weights())), NOISE, key, points(), Y, attack="fgsm")


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"f": 3}, TypeError, "f must be"),
        ({"noise": 0.5}, TypeError, "noise must be"),
        ({"key": 0}, TypeError, "key must be"),
        ({"x": np.zeros((4, 3), int)}, TypeError, "x must be a batch"),
        ({"x": np.full((4, 3), np.nan)}, ValueError, "x must be finite"),
        ({"x": np.zeros((0, 3)), "y": np.zeros(0, int)}, ValueError, "x must have at least one input"),
        ({"y": np.zeros(3, int)}, ValueError, "y must have one label for each of the 4 inputs"),
        ({"y": np.array([0, 1, 2, 3])}, ValueError, r"y must lie in \[0, 3\), got values from 0 to 3"),
        ({"y": np.eye(4)}, TypeError, "y must hold integers"),
        ({"f": lambda x: x[:, 0]}, ValueError, "f must return"),
    ],
)
def test_bad_arguments_are_refused_by_name(name, changes, error, message):
    good = {"f": lambda x: x, "noise": Gaussian(0.5), "key": jax.random.key(0), "x": np.zeros((4, 3))}
    with pytest.raises(error, match=message):
        getattr(losses, name)(**{**good, "y": np.array([0, 1, 2, 0]), **changes})


@pytest.mark.parametrize("setting", [{"m": 0}, {"m": 1.5}, {"steps": -1}])
def test_bad_numbers_of_copies_and_steps_are_refused_by_name(setting):
    with pytest.raises((ValueError, TypeError), match=f"{next(iter(setting))} must be an integer"):
        losses.smoothadv(
            lambda x: x, Gaussian(0.5), jax.random.key(0), np.zeros((4, 3)), np.array([0, 1, 2, 0]), **setting
        )
