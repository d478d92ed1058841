"""Functions that run a classifier, or draw what it runs on."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import jaxsmooth
from jaxsmooth import Gaussian
from tests.bad_input.arrays import ALPHA, FIRST, IDS, LEVELS, SAMPLING, WORDS, N, X, inputs, scores
from tests.bad_input.harness import Same, Subject
from tests.bad_input.values import ANYTHING, CLASSIFIERS, INTEGERS, KEYS, NOISES, constants, forms_of_integer

DECIDED = {**SAMPLING, "alpha": ALPHA}
HOST = {name: odd for name, odd in DECIDED.items() if name != "n"}
RADII = [
    *constants((0.5, 0.5), (-1.0,), (float("nan"),), "0.1", 0.1, None, (), (1e400,), (0.2, 0.1), [None], {0.1: 1}),
    *ANYTHING,
]


def good(*without, **more):
    """Return good arguments, but for some and with others."""
    arguments = {
        "f": scores,
        "noise": Gaussian(0.5),
        "key": jax.random.key(7),
        "x": inputs(),
        "n": 10,
        "batch_size": 10,
    }
    return {name: value for name, value in {**arguments, **more}.items() if name not in without}


def in_order(function, f, noise, key, x, **settings):
    return function(f, noise, key, x, **settings)


def samples(**arguments):
    batches = list(jaxsmooth.stream_samples(**arguments))
    return [noisy for noisy, _ in batches], [rows for _, rows in batches]


def gradient(f, noise, key, x, **settings):
    g = jaxsmooth.smooth(f, noise, **settings)
    return g(key, x), jaxsmooth.class_gradients(g, key, x)


def first_certificate(f, noise, key, x, **settings):
    return next(jaxsmooth.certify_anytime(f, noise, key, x, **settings))


def are_votes(result):
    assert result.dtype == jnp.int32
    assert (result >= 0).all()
    assert (result.sum(axis=1) <= 10).all()


def are_certificates(result):
    radius, label = np.asarray(result.radius), np.asarray(result.label)
    assert np.isfinite(radius).all()
    assert (radius >= 0).all()
    assert ((label >= 0) | ((label == -1) & (radius == 0))).all()


def are_predictions(result):
    assert ((np.asarray(result.label) >= -1) & (np.asarray(result.label) < result.counts.shape[1])).all()
    assert ((result.p_value >= 0) & (result.p_value <= 1)).all()


def voting() -> Iterator[Subject]:
    drawing = {**{name: odd for name, odd in SAMPLING.items() if name != "f"}, "first": FIRST}
    for function in (jaxsmooth.count_votes, jaxsmooth.stream_votes):
        odd = {**SAMPLING, "first": FIRST}
        yield Subject(function.__name__, partial(in_order, function), good, odd, are_votes, WORDS)
    yield Subject("stream_samples", samples, partial(good, "f"), drawing, words=WORDS)
    estimators = [*constants("score", "other", Same("pathwise")), *ANYTHING]
    odd = {**SAMPLING, "first": FIRST, "estimator": estimators, "hard": constants(True)}
    words = {**WORDS, "hard": ("estimator",), "estimator": ("score", "noise")}
    yield Subject("smooth", gradient, good, odd, words=words)


def certifying() -> Iterator[Subject]:
    def subject(function, arguments, odd, holds=are_certificates):
        return Subject(function.__name__, partial(in_order, function), arguments, odd, holds, WORDS)

    predicted = {name: odd for name, odd in DECIDED.items() if name != "ids"}
    yield subject(jaxsmooth.predict, partial(good, alpha=0.01), predicted, are_predictions)
    odd = {**DECIDED, "n0": N, "bound": ANYTHING}
    yield subject(jaxsmooth.certify, partial(good, alpha=0.01, n0=10), odd)
    grid = partial(good, radii=(0.1, 0.3), n=100, n0=10, alpha=0.01, beta=0.01)
    odd = {**HOST, "radii": RADII, "beta": ALPHA, "n0": N, "state": ANYTHING[3:]}
    yield subject(jaxsmooth.certify_radii, grid, odd)
    odd = {**HOST, "precision": LEVELS, "n0": INTEGERS, "bound": ANYTHING}
    yield subject(jaxsmooth.certify_within, partial(good, precision=0.2, n=100, n0=20, alpha=0.01), odd)
    anytime = partial(good, "n", votes=10, n0=10, alpha=0.01)
    odd = {**HOST, "votes": N, "n0": N}
    yield Subject("certify_anytime", first_certificate, anytime, odd, are_certificates, WORDS)


def checking() -> Iterator[Subject]:
    odd = {"f": CLASSIFIERS, "x": X, "noise": NOISES, "classes": constants(1, 2.5, "3", 4, True)}
    words = {**WORDS, "classes": ("f must",)}
    yield Subject(
        "check_classifier", jaxsmooth.check_classifier, lambda: {"f": scores, "x": inputs()}, odd, words=words
    )
    tested = partial(good, "f", "batch_size", false_alarm=0.01)
    odd = {"noise": NOISES, "key": KEYS, "x": X, "ids": IDS, "false_alarm": ALPHA, "first": FIRST}
    odd["n"] = [*(make for make in INTEGERS if make() is not None), *forms_of_integer(10)]
    yield Subject("noise_report", jaxsmooth.noise_report, tested, odd, words=WORDS)
    yield Subject("decision_keys", jaxsmooth.decision_keys, lambda: {"key": jax.random.key(7)}, {"key": KEYS})
    odd = {"f": constants(None, "f", 3), "devices": constants([], "devices", 3, [None], [0])}

    def spread(**arguments):
        return jaxsmooth.over_devices(**arguments)(jnp.asarray(inputs()))

    yield Subject("over_devices", spread, lambda: {"f": scores}, odd)
