"""Functions that run a classifier, or draw what it runs on."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import jaxsmooth
from jaxsmooth import Gaussian, Splitting
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


def noise_added(noise, key, x):
    return jaxsmooth.add_noise(noise, key, x)


def gradient(f, noise, key, x, **settings):
    g = jaxsmooth.smooth(f, noise, **settings)
    return g(key, x), jaxsmooth.class_gradients(g, key, x)


def first_certificate(f, noise, key, x, **settings):
    return next(jaxsmooth.certify_anytime(f, noise, key, x, **settings))


def adds_up(counts, n, most=0):
    """Check votes: of no more samples than there were, all of which are valid unless scores are not finite."""
    counts, n = np.asarray(counts), np.asarray(n)
    assert counts.dtype == np.int32
    assert counts.shape[-1] >= 2
    assert (counts >= 0).all()
    assert (counts.sum(axis=-1) <= n.reshape(-1, *(1,) * (counts.ndim - 2))).all()
    assert (n <= (most or n)).all()


def are_votes(result):
    adds_up(result, 10)


def are_samples(result):
    """Batches of one size; rows are those of x in order, then padding."""
    batches, rows = result
    assert len({noisy.shape for noisy in batches}) <= 1
    assert all(len(noisy) == len(row) for noisy, row in zip(batches, rows, strict=True))
    order = np.concatenate([np.asarray(row) for row in rows]) if rows else np.zeros(0, int)
    assert (np.diff(order) >= 0).all()
    assert (order >= 0).all()
    assert all(np.isfinite(np.asarray(noisy, np.float64)).all() for noisy in batches)


def are_certificates(result):
    label, radius, p_lower = (np.asarray(a, np.float64) for a in (result.label, result.radius, result.p_lower))
    votes = result.votes
    assert label.shape == radius.shape == p_lower.shape == votes.counts.shape[:-1]
    assert np.isfinite(radius).all()
    assert ((label >= 0) | ((label == -1) & (radius == 0))).all()
    assert ((label < votes.counts.shape[-1]) & (label >= -1)).all()
    assert (radius >= 0).all()
    assert ((p_lower >= 0) & (p_lower < 1)).all()
    assert (p_lower[label >= 0] > 0).all()
    adds_up(votes.counts, votes.n)
    assert np.asarray(result.rounded).shape == label.shape[:1]


def are_predictions(result):
    label, p_value = np.asarray(result.label), np.asarray(result.p_value)
    assert label.shape == p_value.shape == result.votes.counts.shape[:-1]
    assert ((label >= -1) & (label < result.votes.counts.shape[-1])).all()
    assert ((p_value > 0) & (p_value <= 1)).all()
    top = np.asarray(result.votes.counts).argmax(axis=-1)
    assert ((label == -1) | (label == top)).all()
    adds_up(result.votes.counts, result.votes.n)


def are_smoothed(result):
    """Shares of each class, which add up to at most 1, and finite gradients of their shape."""
    probabilities, gradients = (np.asarray(array, np.float64) for array in result)
    assert ((probabilities >= 0) & (probabilities <= 1 + 1e-5)).all()
    assert (probabilities.sum(axis=-1) <= 1 + 1e-5).all()
    assert gradients.shape[:2] == probabilities.shape
    assert np.isfinite(gradients).all()


def drawn_votes(f, noise, key, x, **settings):
    figure = jaxsmooth.draw_votes(f, noise, key, x, **settings)
    return [ax.get_title() for ax in figure.axes], [ax.get_xlabel() for ax in figure.axes]


def is_a_picture(result):
    titles, said = result
    assert any("radius" in text or text == "abstains" for text in said)
    assert titles.count("input") == sum(title.endswith(" votes") for title in titles) >= 1


def is_nothing(result):
    assert result is None


def is_report(result):
    assert result.samples >= 1
    assert result.features >= 1
    assert all(np.isfinite([s.value, s.limit]).all() and s.value >= 0 < s.limit for s in result.statistics)
    assert set(result.failed) <= {s.name for s in result.statistics}
    assert result.failed == ()


def are_keys(result):
    keys = list(result) if isinstance(result, tuple) else [result]
    assert all(str(jax.random.key_impl(key)) == "threefry2x32" and key.shape == () for key in keys)
    assert len({tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in keys}) == len(keys)


def are_finite(result):
    assert all(np.isfinite(np.asarray(leaf, np.float64)).all() for leaf in jax.tree.leaves(result))


def voting() -> Iterator[Subject]:
    drawing = {**{name: odd for name, odd in SAMPLING.items() if name != "f"}, "first": FIRST}
    for function in (jaxsmooth.count_votes, jaxsmooth.stream_votes):
        odd = {**SAMPLING, "first": FIRST}
        yield Subject(function.__name__, partial(in_order, function), good, odd, are_votes, WORDS)
    yield Subject("stream_samples", samples, partial(good, "f"), drawing, are_samples, WORDS)
    added = {name: SAMPLING[name] for name in ("noise", "key", "x")}
    yield Subject("add_noise", noise_added, partial(good, "f", "n", "batch_size"), added, are_finite, WORDS)
    estimators = [*constants("score", "other", Same("pathwise")), *ANYTHING]
    odd = {**SAMPLING, "first": FIRST, "estimator": estimators, "hard": constants(True)}
    words = {**WORDS, "hard": ("estimator",), "estimator": ("score", "noise")}
    yield Subject("smooth", gradient, good, odd, are_smoothed, words)


def certifying() -> Iterator[Subject]:
    def subject(function, arguments, odd, holds=are_certificates):
        return Subject(function.__name__, partial(in_order, function), arguments, odd, holds, WORDS)

    predicted = {name: odd for name, odd in DECIDED.items() if name != "ids"}
    yield subject(jaxsmooth.predict, partial(good, alpha=0.01), predicted, are_predictions)
    odd = {**DECIDED, "n0": N, "bound": ANYTHING}
    yield subject(jaxsmooth.certify, partial(good, alpha=0.01, n0=10), odd)
    drawn = {
        **odd,
        "copies": [*INTEGERS, *forms_of_integer(1), *constants(21)],
        "names": [*constants(["a"], "abc"), *ANYTHING],
        "y": [*ANYTHING[1:], *constants([0], [0, 1, -1], [0, 1, 99], [0.0, 1.0, 2.0])],
        "image": ANYTHING[1:],
    }
    shown = partial(good, alpha=0.01, n0=10, copies=1)
    yield Subject("draw_votes", drawn_votes, shown, drawn, is_a_picture, WORDS)
    grid = partial(good, radii=(0.1, 0.3), n=100, n0=10, alpha=0.01, beta=0.01)
    odd = {**HOST, "radii": RADII, "beta": ALPHA, "n0": N, "state": ANYTHING[3:]}
    yield subject(jaxsmooth.certify_radii, grid, odd)
    odd = {**HOST, "precision": LEVELS, "n0": INTEGERS, "bound": ANYTHING}
    yield subject(jaxsmooth.certify_within, partial(good, precision=0.2, n=100, n0=20, alpha=0.01), odd)
    anytime = partial(good, "n", votes=10, n0=10, alpha=0.01)
    odd = {**HOST, "votes": N, "n0": N}
    yield Subject("certify_anytime", first_certificate, anytime, odd, are_certificates, WORDS)


def enlarging() -> Iterator[Subject]:
    """Certificates of the k best, of another version of f, at a level of noise, behind a denoiser."""
    labels = [*ANYTHING, *constants([0, 1], [0, 1, 3], [0, 1, -1], [0.0, 1.0, 2.0], [[0], [1], [2]], ["0", "1", "2"])]
    odd = {**DECIDED, "n0": N, "k": constants(0, 3, 1.5, "1", None, True, [1], -1), "labels": labels}
    best = partial(good, k=2, labels=[0, 1, 2], n0=10, alpha=0.01)
    words = {**WORDS, "f": ("k must", "labels"), "x": ("k must", "labels", "f must"), "k": ("f must",)}
    yield Subject("certify_top_k", partial(in_order, jaxsmooth.certify_top_k), best, odd, are_certificates, words)

    def changed(f, changed, noise, key, x, votes, **settings):
        return jaxsmooth.certify_changed(f, changed, noise, key, x, votes, **settings)

    def versions():
        votes = jaxsmooth.certify(scores, Gaussian(0.5), jax.random.key(7), inputs(), n0=10, n=10, alpha=0.01).votes
        return good("n", changed=scores, votes=votes, m=10, alpha=0.01)

    names = ("f", "noise", "key", "x", "batch_size", "ids", "alpha")
    odd = {name: DECIDED[name] for name in names} | {"changed": CLASSIFIERS, "m": N, "alpha_zeta": LEVELS}
    odd["votes"] = ANYTHING
    words = {**WORDS, "x": ("votes", "f must"), "f": ("votes", "changed"), "changed": ("f must", "votes")}
    words |= {"alpha": ("alpha_zeta",), "m": ("n must",)}
    yield Subject("certify_changed", changed, versions, odd, are_certificates, words)

    def at_levels(selector, levels, noise, key, x, **settings):
        mode = jaxsmooth.Fixed(n0=10, n=10)
        return jaxsmooth.certify_levels(selector, levels, noise, key, x, mode=mode, **settings)

    def leveled():
        levels = [(scores, Gaussian(0.5)), (scores, Gaussian(1.0)), (scores, Gaussian(0.25))]
        return good("f", "n", selector=scores, levels=levels, alpha=0.01)

    names = ("noise", "key", "x", "batch_size", "ids", "alpha")
    several = constants(
        [(scores, Gaussian(0.5))], [scores] * 3, [(scores, 0.5)] * 3, [(scores, jaxsmooth.Laplace(1.0))] * 3
    )
    odd = {name: DECIDED[name] for name in names} | {"selector": CLASSIFIERS, "levels": [*several, *ANYTHING]}
    odd["alpha_selector"] = LEVELS
    words = {**WORDS, "selector": ("f must",), "levels": ("f must", "noise"), "x": ("f must", "selector")}
    words |= {"alpha": ("alpha_selector",)}
    yield Subject("certify_levels", at_levels, leveled, odd, are_certificates, words)

    def behind(x, **arguments):
        return jaxsmooth.denoised(**arguments)(jnp.asarray(x))

    def denoising():
        schedule = jaxsmooth.linear_schedule(100)
        return {"f": scores, "denoiser": _predict, "noise": Gaussian(0.5), "schedule": schedule, "x": inputs()}

    odd = {"f": CLASSIFIERS[:8], "denoiser": ANYTHING, "noise": NOISES}
    odd["schedule"] = [*ANYTHING, *constants([], [0.5], [0.5, 0.6], [2.0, 1.0], [[0.9, 0.5]], [np.nan, 0.5])]
    odd["prediction"] = [*constants("noise", Same("epsilon"), "sample"), *ANYTHING]
    odd["clip_values"] = constants((1, 0), (0, 0), 1, "01", None, (0, np.inf), (0, 1, 2), Same((0, 1)))
    words = {"f": ("denoiser",), "denoiser": ("f must",), "noise": ("the scale of", "sigma"), "schedule": ("noise",)}
    yield Subject("denoised", behind, denoising, odd, are_finite, words)


def answering() -> Iterator[Subject]:
    """Certificates of answers that are not one class."""
    tau = constants(0.5, 1.0, 0.0, np.nan, "0.75", None, [0.75], Same(np.float64(0.55)), True)
    odd = {**DECIDED, "n0": N, "tau": tau}
    together = partial(good, tau=0.55, n0=10, alpha=0.01)  # 10 votes are enough for this tau
    run = partial(in_order, jaxsmooth.certify_components)
    yield Subject("certify_components", run, together, odd, are_certificates, WORDS)

    def interval(f, noise, key, x, radius, **settings):
        found = jaxsmooth.certify_regression(f, noise, key, x, radius, **settings)
        return found.lower, found.estimate, found.upper

    odd = {**DECIDED, "f": CLASSIFIERS[:8], "radius": LEVELS, "percentile": LEVELS}
    real = partial(good, radius=0.1, alpha=0.01)
    yield Subject("certify_regression", interval, real, odd, are_ordered, {**WORDS, "x": ("f must",)})

    def split(f, noise, key, x, **settings):
        return jaxsmooth.certify_splitting(f, noise, key, x, **settings)

    def whole():
        given = good("n", noise=Splitting(0.5), levels=4)
        return {**given, "x": np.random.default_rng(0).integers(0, 5, (3, 5)) / 4}

    kinds = (Gaussian(0.5), Splitting, Splitting(0.0), Splitting(np.nan), Splitting(1e-9), Splitting(1e9), 0.5)
    odd = {"f": CLASSIFIERS[:8], "key": KEYS, "batch_size": N, "levels": [*INTEGERS, *constants(3, 2**16)]}
    odd |= {"noise": [*constants(*kinds, Same(Splitting(np.float64(0.5)))), *ANYTHING]}
    odd |= {"x": [*ANYTHING, *constants(np.full((3, 5), 0.3), np.full((3, 5), 2.0), np.ones((3, 5), int))]}
    words = {**WORDS, "levels": ("half_width", "x must"), "noise": ("half_width",), "x": ("f must",)}
    yield Subject("certify_splitting", split, whole, odd, are_certain, words)

    def ranks(n, percentile, shift, alpha):
        return jaxsmooth.interval_ranks(n, percentile, shift, alpha)

    numbers = {"n": 10, "percentile": 0.5, "shift": 0.2, "alpha": 0.01}
    odd = {"n": N, "percentile": LEVELS, "shift": LEVELS, "alpha": ALPHA}
    yield Subject("interval_ranks", ranks, lambda: dict(numbers), odd, are_finite)


def are_certain(result):
    """What `certify_splitting` gives: the radius follows from the votes, and may be 0."""
    counts = np.asarray(result.votes.counts)
    assert result.label.shape == result.radius.shape == counts.shape[:1]
    assert ((result.label >= -1) & (result.label < counts.shape[1])).all()
    top = np.sort(counts, axis=1)
    assert (result.radius <= np.maximum(top[:, -1] - top[:, -2], 0) / 2).all()
    assert (result.radius >= 0).all()
    assert (counts.sum(axis=1) <= result.votes.n).all()


def schedules() -> Iterator[Subject]:
    """The schedules of diffusion models, and their step for a noise."""
    for function in (jaxsmooth.linear_schedule, jaxsmooth.cosine_schedule):
        yield Subject(function.__name__, function, lambda: {"steps": 100}, {"steps": INTEGERS}, are_finite)

    def step(**arguments):
        return jaxsmooth.diffusion_step(**arguments).t

    def usual():
        return {"noise": Gaussian(0.5), "schedule": jaxsmooth.linear_schedule(100)}

    odd = {"noise": NOISES, "prediction": [*constants("noise", Same("epsilon")), *ANYTHING]}
    odd["schedule"] = [*ANYTHING, *constants([], [0.5, 0.6], [2.0, 1.0], [[0.9, 0.5]], [np.nan, 0.5])]
    odd["clip_values"] = constants((1, 0), (0, 0), 1, "01", None, (0, np.inf), (0, 1, 2), Same((0, 1)))
    words = {"noise": ("the scale of", "sigma"), "schedule": ("noise",)}
    yield Subject("diffusion_step", step, usual, odd, are_finite, words)


def are_ordered(result):
    """The ends of an interval, with the estimate between them. They may be infinite, and are no NaN."""
    lower, estimate, upper = result
    assert (lower <= estimate).all()
    assert (estimate <= upper).all()


def _predict(image, t):
    assert t.shape == (len(image),)
    return 0.1 * image


def checking() -> Iterator[Subject]:
    odd = {"f": CLASSIFIERS, "x": X, "noise": NOISES, "classes": constants(1, 2.5, "3", 4, True)}
    words = {**WORDS, "classes": ("f must",)}
    checked = {"f": scores, "x": inputs()}
    yield Subject("check_classifier", jaxsmooth.check_classifier, lambda: dict(checked), odd, is_nothing, words)
    tested = partial(good, "f", "batch_size", false_alarm=0.01)
    odd = {"noise": NOISES, "key": KEYS, "x": X, "ids": IDS, "false_alarm": ALPHA, "first": FIRST}
    odd["n"] = [*(make for make in INTEGERS if make() is not None), *forms_of_integer(10)]
    yield Subject("noise_report", jaxsmooth.noise_report, tested, odd, is_report, WORDS)
    keyed = {"key": jax.random.key(7)}
    yield Subject("decision_keys", jaxsmooth.decision_keys, lambda: dict(keyed), {"key": KEYS}, are_keys)
    yield Subject("key_of_seed", jaxsmooth.key_of_seed, lambda: {"seed": 7}, {"seed": [*INTEGERS, *KEYS]}, are_keys)
    odd = {"key": KEYS, "stream": [*INTEGERS, *constants(Same(np.int64(3)))], "turn": INTEGERS}
    streamed = {**keyed, "stream": 3, "turn": 2}
    yield Subject("stream_key", jaxsmooth.stream_key, lambda: dict(streamed), odd, are_keys)
    odd = {"f": constants(None, "f", 3), "devices": constants([], "devices", 3, [None], [0])}

    def spread(**arguments):
        return jaxsmooth.over_devices(**arguments)(jnp.asarray(inputs()))

    yield Subject("over_devices", spread, lambda: {"f": scores}, odd, are_finite)
