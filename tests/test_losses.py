"""Training objectives against their authors' code, transcribed (`tests/authors.py`), and at their edges."""

from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.tree_util import Partial

from jaxsmooth import Gaussian, Laplace, losses
from tests import authors

NOISE, K, N, D = Gaussian(0.4), 3, 24, 5
Y = np.random.default_rng(4).integers(0, K, N)
OBJECTIVES = ["gaussian", "stability", "consistency", "smoothadv", "macer", "smoothmix"]


def linear(weights, x):
    return x.reshape(len(x), -1) @ weights


def weights(scale=1.0):
    return np.asarray(np.random.default_rng(2).normal(size=(D, K)) * scale, np.float32)


def points():
    return np.asarray(np.random.default_rng(3).uniform(size=(N, D)), np.float32)


def perceptron(weights, x):
    return jnp.tanh(x @ weights["hidden"]) @ weights["out"]


def perceptron_weights():
    generator = np.random.default_rng(5)
    sizes = {"hidden": (D, 16), "out": (16, K)}
    return {name: np.asarray(generator.normal(size=size), np.float32) for name, size in sizes.items()}


# What ours and theirs are called with. The second of two settings moves every argument off its default.
SETTINGS = [
    ("gaussian", {}, {}),
    ("stability", {}, {}),
    ("stability", {"lambda_": 3.0}, {"lambda_": 3.0}),
    ("consistency", {}, {}),
    ("consistency", {"m": 3, "lambda_": 4.0, "eta": 0.7}, {"lambda_": 4.0, "eta": 0.7}),
    ("smoothadv", {}, {}),
    ("smoothadv", {"m": 3, "epsilon": 0.3, "steps": 5}, {"epsilon": 0.3, "steps": 5}),
    ("smoothadv", {"m": 1, "epsilon": 1.5, "steps": 3, "clip_values": (-0.5, 1.25)}, {"clip": (-0.5, 1.25)}),
    ("smoothadv", {"m": 2, "steps": 8, "attack": "ddn"}, {"steps": 8, "attack": authors.ddn}),
    (
        "smoothadv",
        {"m": 3, "steps": 20, "attack": "ddn", "epsilon": 4.0, "clip_values": (-1.0, 2.0)},
        {"attack": authors.ddn, "clip": (-1.0, 2.0)},
    ),
    ("macer", {"beta": 2.0}, {"beta": 2.0}),
    (
        "macer",
        {"m": 5, "beta": 2.0, "gamma": 0.5, "lambda_": 3.0},
        {"beta": 2.0, "gamma": 0.5, "lambda_": 3.0},
    ),
    ("smoothmix", {}, {}),
    (
        "smoothmix",
        {"m": 3, "eta": 2.0, "alpha": 0.3, "steps": 5, "mix_step": 2, "clip_values": (-0.25, 1.5)},
        {"clip": (-0.25, 1.5)},
    ),
    ("smoothmix", {"alpha": 0.4, "mix_step": 1, "maxnorm_s": 0.1, "maxnorm": 0.5}, {}),
]
DEFAULTS = {"smoothadv": 2, "consistency": 2, "macer": 16, "smoothmix": 2}


def theirs(name, key, ours, settings):
    """The authors' loss and its gradients in the weights, in float64, on the noise that ours draws."""
    m = ours.get("m", DEFAULTS.get(name, 1))
    noise = torch.tensor(np.asarray(NOISE.sample(key, (m, N, D)), np.float64))
    leaves = {k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in perceptron_weights().items()}
    shared = {k: v for k, v in ours.items() if k not in ("m", "attack", "clip_values")}
    settings = {**shared, **settings}
    if name == "macer":
        settings["sigma"] = NOISE.sigma
    if name == "smoothmix":
        drawn = jax.random.uniform(jax.random.fold_in(key, 1), (N,), maxval=0.5)
        settings["lam"] = torch.tensor(np.asarray(drawn, np.float64))

    def model(x):
        return torch.tanh(x @ leaves["hidden"]) @ leaves["out"]

    value = getattr(authors, name)(
        model, torch.tensor(points(), dtype=torch.float64), torch.tensor(Y), noise, **settings
    )
    value.backward()
    return value.item(), {k: v.grad.numpy() for k, v in leaves.items()}


def ours(name, key, settings):
    f = Partial(perceptron, jax.tree.map(jnp.asarray, perceptron_weights()))
    loss = partial(getattr(losses, name), **settings)
    value, gradient = jax.value_and_grad(loss)(f, NOISE, key, jnp.asarray(points()), jnp.asarray(Y))
    return value, gradient.args[0]


# Float32 against float64, through several steps of an attack.
TOLERANCE = 3e-5


@pytest.mark.parametrize(("name", "settings", "their_settings"), SETTINGS)
def test_objectives_and_their_gradients_are_their_authors_code(key, name, settings, their_settings):
    value, gradient = ours(name, key, settings)
    expected, slopes = theirs(name, key, settings, their_settings)
    np.testing.assert_allclose(value, expected, rtol=TOLERANCE)
    chex.assert_trees_all_close(
        gradient, slopes, rtol=TOLERANCE, atol=TOLERANCE * max(abs(v).max() for v in slopes.values())
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_compiled_objectives_have_the_same_values(key, name):
    f = Partial(perceptron, jax.tree.map(jnp.asarray, perceptron_weights()))
    loss = getattr(losses, name)
    value = loss(f, NOISE, key, points(), Y)
    np.testing.assert_allclose(jax.jit(loss)(f, NOISE, key, points(), Y), value, rtol=1e-5)


NEUTRAL = {
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


def at(name, key, x=None, y=None, **settings):
    f = Partial(perceptron, jax.tree.map(jnp.asarray, perceptron_weights()))
    return getattr(losses, name)(f, NOISE, key, points() if x is None else x, Y if y is None else y, **settings)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("smoothadv", {"epsilon": -0.5}),
        ("smoothadv", {"epsilon": np.nan}),
        ("smoothadv", {"epsilon": True}),
        ("smoothmix", {"alpha": -1.0}),
        ("smoothmix", {"maxnorm": -1.0}),
        ("smoothmix", {"maxnorm_s": -1.0}),
        ("smoothmix", {"eta": -1.0}),
        ("smoothmix", {"mix_step": 4}),
        ("macer", {"beta": -1.0}),
        ("macer", {"gamma": "8"}),
        ("consistency", {"lambda_": np.arange(5.0)}),
        ("stability", {"lambda_": -1.0}),
        ("smoothadv", {"clip_values": (-np.inf, np.inf)}),
        ("smoothadv", {"clip_values": (1.0, 0.0)}),
        ("smoothadv", {"clip_values": (0.0, np.ones(7))}),
        ("smoothmix", {"clip_values": 1.0}),
    ],
)
def test_settings_are_checked_by_name(key, name, settings):
    with pytest.raises((ValueError, TypeError), match=f"{next(iter(settings))} must be"):
        at(name, key, **settings)


def test_macer_is_for_gaussian_noise_and_counts_ties(key):
    with pytest.raises(TypeError, match="noise must be Gaussian"):
        losses.macer(lambda x: x, Laplace(0.5), key, points(), Y % D)
    # Two copies that disagree, saturated: the mean is a tie, whose first class is meant.
    sign = jnp.array([[1.0, -1.0]])

    class TwoCopies(NamedTuple):
        norm: int = 2
        scale: float = 0.5

        def sample(self, key, shape, dtype=jnp.float32):
            del key
            return jnp.asarray([9.0, -9.0], dtype).reshape(shape)

        def unit_radius(self, probability):
            return np.asarray(probability)

    def value(y):
        return losses.macer(lambda x: x * sign, TwoCopies(), key, np.zeros((1, 1), np.float32), np.array([y]), m=2)

    np.testing.assert_allclose(value(0), np.log(2) + 12 * 0.25 * 8, rtol=1e-5)
    np.testing.assert_allclose(value(1), np.log(2), rtol=1e-5)


def test_what_cannot_be_refused_under_jit_is_nan(key):
    """Labels that are no class, -1 and ABSTAIN among them, and inputs out of range: loss and gradient."""
    f = Partial(perceptron, jax.tree.map(jnp.asarray, perceptron_weights()))
    for name in OBJECTIVES:
        loss = jax.jit(jax.value_and_grad(getattr(losses, name)))
        for label in (-1, K):
            value, gradient = loss(f, NOISE, key, points(), np.where(np.arange(N) == 3, label, Y))
            assert jnp.isnan(value), (name, label)
            assert all(jnp.isnan(leaf).any() for leaf in jax.tree.leaves(gradient))
        value, _ = loss(f, NOISE, key, 255 * points(), Y)
        assert jnp.isnan(value) == (name in ("smoothadv", "smoothmix"))
        assert jnp.isfinite(loss(f, NOISE, key, points(), Y)[0])


def test_weights_may_be_traced(key):
    values = jax.vmap(lambda weight: at("macer", key, lambda_=weight))(jnp.array([0.0, 12.0]))
    np.testing.assert_allclose(values[1], at("macer", key), rtol=1e-5)
