"""Functions that decide, sum up, or make noise and losses: no classifier runs for a vote."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

import jaxsmooth
from jaxsmooth import Gaussian, Votes, losses, training
from tests.bad_input.arrays import COUNTS, LEVELS, LOST, WORDS, N, X, counts, inputs, scores
from tests.bad_input.harness import Same, Subject
from tests.bad_input.sampling import are_certificates, are_finite, are_predictions
from tests.bad_input.values import ANYTHING, CLASSIFIERS, INTEGERS, KEYS, NOISES, constants

VECTORS = [
    *ANYTHING,
    *constants([1, 2], [[1, 2, 3]], [1.5, 0.5, 0.1], [np.nan] * 3, [-1.0] * 3, [np.inf] * 3, [10**400] * 3),
]
LABELS = [
    *ANYTHING,
    *constants([0, 1], [0, 1, 3], [0, 1, -1], [0.0, 1.0, 2.0], [[0], [1], [2]], ["0", "1", "2"]),
    lambda: Same([0, 1, 2]),
    lambda: Same(np.array([0, 1, 2], np.uint8)),
]


def are_shares(result):
    assert ((np.asarray(result) >= 0) & (np.asarray(result) <= 1)).all()


def is_a_radius(result):
    assert isinstance(result, float)
    assert result >= 0


def is_a_number(result):
    assert isinstance(result, int)
    assert 0 <= result <= 10


def is_noise(result):
    """A sample of the shape that is asked for, in a floating dtype, and a radius that is not negative."""
    sample, radius = result
    assert sample.shape == (2, 3)
    assert jnp.issubdtype(sample.dtype, jnp.floating)
    assert np.isfinite(np.asarray(sample, np.float64)).all()
    assert radius >= 0


def is_a_loss(result):
    assert result.shape == ()
    assert np.isfinite(float(result))


def is_an_error(result):
    """A squared error, which may be too large for float32."""
    assert result.shape == ()
    assert float(result) >= 0


def are_ends(result):
    lower, upper = result
    assert (lower <= upper).all()


def are_finite_radii(result):
    assert ((result.radius >= 0) & np.isfinite(result.radius)).all()
    assert result.label.shape == result.radius.shape == (3,)


def is_zero(result):
    assert int(result) == 0


def of_votes(decide):
    """Return a function that takes the fields of the votes by name, and decides."""

    def run(counts, n, selection=None, lost=None, rule="fixed", **settings):
        given = Votes(counts=counts, n=n, selection=selection, lost=lost, rule=rule)
        return decide(given, **settings)

    return run


def deciding() -> Iterator[Subject]:
    several = constants(np.array([10, 10, 10]), [10, 10, 10], np.array([10, 9, 10]), np.array([10, 10, 2]))
    odd = {"counts": COUNTS, "n": [*N, *several], "alpha": LEVELS, "lost": LOST}
    odd["rule"] = [*constants("grid", "anytime", "other", Same("fixed")), *ANYTHING]
    votes = {"counts": counts(), "n": 10, "lost": np.zeros(3)}
    words = {**WORDS, "n": ("counts",), "selection": ("counts",)}
    yield Subject("prediction", of_votes(jaxsmooth.prediction), lambda: dict(votes), odd, are_predictions, words)
    bounds = [*constants("other", Same("cohen"), "runner_up"), *ANYTHING]
    odd = {**odd, "selection": COUNTS, "noise": NOISES, "bound": bounds}

    def both():
        return {**votes, "selection": counts(), "noise": Gaussian(0.5)}

    yield Subject("certificate", of_votes(jaxsmooth.certificate), both, odd, are_certificates, words)
    odd = {**odd, "k": constants(0, 3, 1.5, "1", None, True, [1], -1), "labels": LABELS}
    del odd["bound"]
    words |= {
        "counts": ("k must", "labels", "selection", "lost"),
        "selection": ("counts", "labels", "k must"),
        "k": ("counts",),
    }

    def best():
        return {**both(), "k": 2, "labels": [0, 1, 2]}

    best_of = of_votes(lambda votes, noise, k, **settings: jaxsmooth.top_k_certificate(votes, noise, k, **settings))
    yield Subject("top_k_certificate", best_of, best, odd, are_certificates, words)
    together = {name: values for name, values in odd.items() if name not in ("k", "labels")}
    together["tau"] = constants(0.5, 1.0, np.nan, "0.75", None, [0.75], Same(np.float64(0.75)), True)

    def joint():
        return {**both(), "tau": 0.75}

    def ends(votes, thresholds, noise, radius, **settings):
        found = jaxsmooth.regression_interval(votes, thresholds, noise, radius, **settings)
        return found.lower, found.upper

    def outputs():
        counts = np.array([[[9, 1], [9, 1], [10, 0]], [[0, 10], [5, 5], [9, 1]]], np.int32)
        return {"counts": counts, "thresholds": [0.0, 1.0, 2.0], "n": 10, "noise": Gaussian(0.5), "radius": 0.1}

    of_outputs = of_votes(ends)
    odd_outputs = {"noise": NOISES, "radius": LEVELS, "percentile": LEVELS, "alpha": LEVELS}
    odd_outputs["thresholds"] = constants([1.0, 1.0, 2.0], [0.0, 1.0], "012", None, [0.0, np.nan, 1.0])
    yield Subject("regression_interval", of_outputs, outputs, odd_outputs, are_ends, WORDS)

    def places():
        return {"counts": counts(), "n": 10, "levels": 255}

    def split(counts, n, levels, rule="splitting"):
        return jaxsmooth.splitting_certificate(jaxsmooth.Votes(counts=counts, n=n, rule=rule), levels)

    odd_places = {"levels": INTEGERS, "counts": COUNTS, "n": INTEGERS, "rule": constants("fixed", "grid", None, 1)}
    words_of = {"counts": ("votes", "n must"), "n": ("counts", "votes"), "rule": ("votes",)}
    yield Subject("splitting_certificate", split, places, odd_places, are_finite_radii, words_of)

    decided = of_votes(lambda votes, noise, tau, **more: jaxsmooth.components_certificate(votes, noise, tau, **more))
    yield Subject("components_certificate", decided, joint, together, are_certificates, words)
    of_truth = of_votes(jaxsmooth.true_class_bounds)
    odd = {name: odd[name] for name in ("counts", "n", "alpha", "rule")} | {"truth": VECTORS}
    words |= {"counts": ("truth", "lost"), "truth": ("counts",)}

    def known():
        return {**votes, "truth": [0, 1, 2]}

    yield Subject("true_class_bounds", of_truth, known, odd, are_shares, words)
    odd = {
        "count": [*ANYTHING, *constants(-1, 11, 0.5, [5, 11])],
        "n": [*constants(0, -1, 9, 2.5, "10", None, [10, 10], 10**400), *ANYTHING],
        "alpha": LEVELS,
    }

    def successes():
        return {"count": np.array([0, 5, 10]), "n": 10, "alpha": 0.01}

    yield Subject("anytime_lower_bound", jaxsmooth.anytime_lower_bound, successes, odd, are_shares)


def summing_up() -> Iterator[Subject]:
    columns = {"predicted": np.array([1, 0, -1]), "radius": np.array([0.5, 0.2, 0.0]), "truth": np.array([1, 1, 0])}
    odd, words = dict.fromkeys(columns, VECTORS), dict.fromkeys(columns, tuple(columns))
    radii = [*ANYTHING, *constants([np.nan], [None], [10**400])]

    def subject(function, odd, **more):
        return Subject(function.__name__, function, lambda: {**columns, **more}, odd, are_shares, words)

    yield subject(jaxsmooth.certified_accuracy, {**odd, "radii": radii}, radii=[0.1, 0.3])
    bound = {**odd, "radii": radii, "alpha": LEVELS, "delta": LEVELS}
    yield subject(jaxsmooth.certified_accuracy_bound, bound, radii=[0.1], alpha=0.01)
    average = jaxsmooth.average_certified_radius
    yield Subject("average_certified_radius", average, lambda: dict(columns), odd, is_a_radius, words)
    predicted = {"predicted": np.array([1, -1])}
    yield Subject("abstention_rate", jaxsmooth.abstention_rate, lambda: predicted, {"predicted": VECTORS}, are_shares)
    odd = {"number": N, "alpha": LEVELS, "delta": LEVELS}
    of_ten = {"number": 10, "alpha": 0.01}
    yield Subject("most_false_certificates", jaxsmooth.most_false_certificates, lambda: of_ten, odd, is_a_number)


def noises() -> Iterator[Subject]:
    dtypes = constants("i4", complex, np.float16, "f8", "x", None, 3)
    for kind in (jaxsmooth.Gaussian, jaxsmooth.Laplace, jaxsmooth.Uniform):
        (scale,) = kind._fields

        def sample(_kind=kind, _scale=scale, **arguments):
            noise = _kind(arguments.pop(_scale))
            return noise.sample(**arguments), noise.unit_radius(0.7)

        def good(_scale=scale):
            return {_scale: 0.5, "key": jax.random.key(7), "shape": (2, 3)}

        odd = {scale: LEVELS, "key": KEYS, "dtype": dtypes}
        words = {scale: ("scale",), "dtype": ("data type",)}
        yield Subject(f"{kind.__name__}.sample", sample, good, odd, is_noise, words)

    def lattice(**arguments):
        return jaxsmooth.LatticeGaussian(**arguments).sample(jax.random.key(0), (3,))

    odd, words = {"sigma": LEVELS, "step": LEVELS}, {"step": ("sigma",), "sigma": ("step",)}
    yield Subject("LatticeGaussian", lattice, lambda: {"sigma": 0.5, "step": 1 / 255}, odd, are_finite, words)


def training_functions() -> Iterator[Subject]:
    def shares():
        return {"probabilities": jnp.full((3, 3), 1 / 3), "y": np.arange(3)}

    def good():
        x = inputs()
        return {"f": scores, "noise": Gaussian(0.5), "key": jax.random.key(7), "x": x, "y": np.arange(3)}

    yield Subject("cross_entropy", jaxsmooth.cross_entropy, shares, {"y": LABELS}, are_finite)
    for name in ("gaussian", "stability", "consistency", "smoothadv", "macer", "smoothmix"):
        odd = {"f": CLASSIFIERS[:8], "noise": NOISES, "key": KEYS, "x": X, "y": LABELS}
        odd |= {} if name in ("gaussian", "stability") else {"m": INTEGERS}
        words = {**WORDS, "x": ("y", "f must")}
        # Inputs of any size: the objectives that attack take pixels in [0, 1] by default.
        settings = {"clip_values": None} if name in ("smoothadv", "smoothmix") else {}
        run = partial(in_order, partial(getattr(losses, name), **settings))
        yield Subject(f"losses.{name}", run, good, odd, is_a_loss, words)
    odd = {"f": CLASSIFIERS[:8], "noise": NOISES, "key": KEYS, "x": X}
    words = {**WORDS, "f": ("denoiser",), "x": ("denoiser", "classifier", "f must")}

    def restored(x):
        return 0.5 * x

    def denoising():
        return {name: value for name, value in good().items() if name != "y"} | {"f": restored}

    yield Subject("losses.denoising", losses.denoising, denoising, odd, is_an_error, words)
    stability = partial(losses.denoising_stability, classifier=scores)
    yield Subject("losses.denoising_stability", stability, denoising, odd, is_a_loss, words)
    parameters = Partial(lambda w, x: x[:, :3] * w, jnp.ones((1, 3)))
    odd = {
        "f": [*ANYTHING, lambda: scores, lambda: Partial(scores, np.zeros(3, int))],
        "optimizer": LEVELS,
    }

    def steps(**arguments):
        return training.init_train_state(**arguments).step

    yield Subject("init_train_state", steps, lambda: {"f": parameters, "optimizer": optax.sgd(0.1)}, odd, is_zero)


def in_order(function, f, noise, key, x, y, **settings):
    return function(f, noise, key, x, y, **settings)
