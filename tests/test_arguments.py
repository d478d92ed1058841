"""Bad arguments: every public function refuses them by name, before the model is called."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsmooth import (
    Gaussian,
    Laplace,
    Uniform,
    Votes,
    certificate,
    certify,
    certify_radii,
    certify_within,
    count_votes,
    predict,
    prediction,
    smooth,
    stream_votes,
)
from tests.classifiers import first_features, inputs

RUNS = {"count_votes": count_votes, "stream_votes": stream_votes, "predict": predict, "certify": certify}
TRACED = {name: run for name, run in RUNS.items() if name != "stream_votes"}


class Opaque:
    """A noise in all but that JAX cannot look into it."""

    norm, scale = 2, 1.0
    sample, unit_radius = Gaussian.sample, Gaussian.unit_radius


def call(run, **changes):
    """Call with good arguments but for the changes; a model call before the refusal is an error of its own."""

    def f(_):
        raise AssertionError("the model was called")

    arguments = {"f": f, "noise": Gaussian(1.0), "key": jax.random.key(0), "x": inputs(2), "n": 10, **changes}
    positional = [arguments.pop(name) for name in ("f", "noise", "key", "x")]
    return run(*positional, **arguments)


@pytest.mark.parametrize("value", ["no", "False", None, 2, np.zeros(2), 0.0])
def test_a_flag_that_is_no_truth_value_is_refused(value):
    for run in (certify, predict, certify_radii, certify_within):
        changes = {"radii": [0.5]} if run is certify_radii else {}
        changes |= {"n": 100}
        with pytest.raises(TypeError, match="compiled must be True or False, got"):
            call(run, compiled=value, **changes)
    for run in (certify, stream_votes):
        with pytest.raises(TypeError, match="progress must be True or False, got"):
            call(run, progress=value)
    with pytest.raises(TypeError, match="hard must be True or False, got"):
        smooth(lambda x: x, Gaussian(1.0), n=10, estimator="score", hard=value)


@pytest.mark.parametrize(
    ("alpha", "message"),
    [(0.999, "below 0.5, got 0.999: did you mean 0.001"), (0.5, "below 0.5"), (1e-13, "alpha must be at least 1e-12")],
)
def test_a_level_that_is_a_confidence_or_beyond_float64_is_refused(alpha, message):
    for run in (certify, predict, certify_within):
        with pytest.raises(ValueError, match=message):
            call(run, alpha=alpha)
    with pytest.raises(ValueError, match=message):
        call(certify_radii, radii=[0.5], alpha=alpha)


def test_an_array_in_an_error_is_described_and_not_printed():
    long = np.zeros((40, 50))
    for changes in ({"n": long}, {"alpha": long}, {"f": long}, {"noise": long}, {"compiled": long}):
        with pytest.raises(TypeError) as raised:
            call(certify, **changes)
        assert "an ndarray of shape (40, 50) and dtype float64" in str(raised.value)
        assert len(str(raised.value)) < 200


BAD = [
    ({"f": "model"}, TypeError, "f must be a callable"),
    ({"noise": 0.5}, TypeError, "noise must be an instance of Gaussian"),
    ({"noise": Opaque()}, TypeError, "noise must be a pytree of numbers and arrays"),
    ({"noise": Gaussian}, TypeError, "noise must be an instance of Gaussian"),
    ({"noise": Gaussian(0.0)}, ValueError, "scale of Gaussian must be positive and finite"),
    ({"noise": Uniform(-1.0)}, ValueError, "scale of Uniform must be positive and finite"),
    ({"noise": Gaussian(1e-31)}, ValueError, "scale of Gaussian must be at least 1e-30"),
    ({"noise": Gaussian(np.nan)}, ValueError, "scale of Gaussian must be positive and finite"),
    ({"noise": Gaussian(np.ones(2))}, ValueError, "scale of Gaussian must be a scalar"),
    ({"noise": Gaussian(None)}, TypeError, "scale of Gaussian must be a positive number"),
    ({"key": 0}, TypeError, "key must be one Threefry key"),
    ({"key": np.zeros(2, np.int32)}, TypeError, "key must be one Threefry key"),
    ({"key": jax.random.split(jax.random.key(0))}, ValueError, "key must be one Threefry key"),
    ({"key": jax.random.key(0, impl="rbg")}, ValueError, "key must be one Threefry key"),
    ({"key": np.zeros(4, np.uint32)}, ValueError, "key must be one Threefry key"),
    ({"x": "image"}, TypeError, "x must be a batch"),
    ({"x": np.zeros((2, 3), np.uint8)}, TypeError, "x must be a batch"),
    ({"x": np.zeros((2, 3), complex)}, TypeError, "x must be a batch"),
    ({"x": np.ma.masked_array(np.zeros((2, 3)), True)}, TypeError, "x must be a batch .*: a masked array"),
    ({"x": jax.random.split(jax.random.key(0))[None]}, TypeError, "x must be a batch .*: an array of keys"),
    ({"x": np.zeros(3)}, ValueError, "x must be a batch"),
    ({"x": 1.0}, ValueError, "x must be a batch"),
    ({"x": np.zeros((2, 0))}, ValueError, "at least one feature"),
    ({"x": np.array([[0.0, 1.0], [np.nan, 0.0]])}, ValueError, "x must be finite, .* the first at index 1"),
    ({"x": np.array([[np.inf, 1.0]])}, ValueError, "x must be finite"),
    ({"n": 0}, ValueError, "n must be an integer in"),
    ({"n": -5}, ValueError, "n must be an integer in"),
    ({"n": 10.0}, TypeError, "n must be an integer in"),
    ({"n": True}, TypeError, "n must be an integer in"),
    ({"n": 2**31}, ValueError, "n must be an integer in"),
    ({"batch_size": 0}, ValueError, "batch_size must be an integer in"),
    ({"batch_size": None}, TypeError, "batch_size must be an integer in"),
    ({"ids": [0]}, ValueError, "ids must have one entry for each of the 2 inputs"),
    ({"ids": [0.0, 1.0]}, TypeError, "ids must be integers"),
    ({"ids": [-1, 0]}, ValueError, "ids must lie in"),
    ({"ids": [2**32, 0]}, ValueError, "ids must lie in"),
]


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize(("changes", "error", "message"), BAD, ids=lambda value: str(value)[:40])
def test_refused_before_the_model_is_called(run, changes, error, message):
    with pytest.raises(error, match=message):
        call(run, **changes)


@pytest.mark.parametrize("run", [predict, certify])
@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 2.0, np.nan])
def test_alpha_must_lie_between_0_and_a_half(run, alpha):
    with pytest.raises(ValueError, match=r"alpha must be a number in \(0, 0.5\)"):
        call(run, alpha=alpha)


@pytest.mark.parametrize("run", [predict, certify])
@pytest.mark.parametrize("alpha", ["0.1", None, True, [0.1]])
def test_alpha_must_be_a_number(run, alpha):
    with pytest.raises(TypeError, match="alpha must be a number"):
        call(run, alpha=alpha)


@pytest.mark.parametrize(("n0", "error"), [(0, ValueError), (1.5, TypeError)])
def test_n0_must_be_a_positive_integer(n0, error):
    with pytest.raises(error, match="n0 must be an integer in"):
        call(certify, n0=n0)


@pytest.mark.parametrize("run", [count_votes, stream_votes])
@pytest.mark.parametrize(
    ("first", "error"),
    [
        (-1, ValueError),
        (2**32 - 9, ValueError),
        (jnp.int32(-1), ValueError),
        (0.5, TypeError),
        (jnp.ones(2), TypeError),
    ],
)
def test_first_must_leave_room_for_n_samples(run, first, error):
    with pytest.raises(error, match="first must be an integer"):
        call(run, first=first)


@pytest.mark.parametrize("run", TRACED.values(), ids=TRACED)
@pytest.mark.parametrize("name", ["n", "batch_size"])
def test_sizes_must_be_static(run, name):
    with pytest.raises(TypeError, match=f"{name} must be a static Python integer"):
        jax.jit(lambda value: call(run, **{name: value}))(10)


def test_alpha_must_be_static():
    with pytest.raises(TypeError, match="alpha must be a static Python float"):
        jax.jit(lambda alpha: call(predict, alpha=alpha))(0.1)


SCORES = [
    (lambda x: x[:, :1], ValueError, "K >= 2 classes, got shape"),
    (lambda x: x[:, 0], ValueError, "K >= 2 classes, got shape"),
    (lambda x: x[:-1], ValueError, "f must return real scores of shape"),
    (lambda x: x[:, :3] * 1j, TypeError, "got dtype complex64"),
]


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize(("f", "error", "message"), SCORES)
def test_scores_must_be_real_and_of_two_classes_at_least(run, number, f, error, message):
    with pytest.raises(error, match=message):
        call(run, f=f, x=jnp.zeros((number, 5)))


@pytest.mark.parametrize("run", TRACED.values(), ids=TRACED)
def test_scores_must_be_an_array(run):
    with pytest.raises(TypeError, match="f must return real scores"):
        call(run, f=lambda x: (x, x))


@pytest.mark.parametrize("run", TRACED.values(), ids=TRACED)
def test_an_unhashable_callable_is_refused(run):
    class Model:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, x):
            return first_features(x)

    with pytest.raises(TypeError, match="f must be hashable apart from the arrays in it"):
        call(run, f=Model())


DECIDE = [
    pytest.param(prediction, id="prediction"),
    pytest.param(lambda votes, **settings: certificate(votes, Gaussian(1.0), **settings), id="certificate"),
]


def votes(**changes):
    """Return good votes of one input but for the changes."""
    return Votes(**{"counts": np.array([[90, 10]]), "n": 100, "selection": np.array([[9, 1]]), **changes})


COUNTS = [
    ("votes", TypeError, "must be integer vote counts"),
    (np.zeros((2, 3)), TypeError, "must be integer vote counts"),
    (np.zeros(3, int), ValueError, "must be integer vote counts"),
    (np.zeros((2, 1), int), ValueError, "K >= 2 classes"),
    (np.array([[-1, 2]]), ValueError, "must not be negative"),
    (np.array([[60, 41]]), ValueError, "must add up to at most n = 100"),
]


@pytest.mark.parametrize("decide", DECIDE)
@pytest.mark.parametrize(("counts", "error", "message"), COUNTS)
def test_counts_are_checked(decide, counts, error, message):
    with pytest.raises(error, match=message):
        decide(votes(counts=counts))


VOTES = [
    ({"n": 0}, ValueError, "n must be an integer"),
    ({"n": 10.0}, TypeError, "n must be an integer"),
    ({"n": True}, TypeError, "n must be an integer"),
    ({"n": 2**30 + 1}, ValueError, "n must be an integer"),
    ({"n": np.array([100, 100])}, ValueError, "one for each of the 1 inputs"),
    ({"n": np.array([-1])}, ValueError, "n must lie in"),
    ({"n": np.array([100.0])}, TypeError, "n must be an integer or integers"),
    ({"n": np.array([9])}, ValueError, "counts must add up to at most n = 9"),
    ({"selection": np.zeros((2, 2), int)}, ValueError, "selection and counts must have one shape"),
    ({"selection": np.zeros((1, 2))}, TypeError, "selection must be integer vote counts"),
    ({"selection": np.array([[-1, 2]])}, ValueError, "selection must not be negative"),
    ({"lost": "lost"}, TypeError, "lost must be"),
    ({"lost": np.zeros(2)}, ValueError, "lost must have one radius for each of the 1 inputs"),
    ({"lost": np.array([-0.1])}, ValueError, "lost must not be negative"),
    ({"lost": np.array([np.nan])}, ValueError, "lost must not be negative or NaN"),
    ({"rule": "grid"}, ValueError, "votes must be of the rule 'fixed', got 'grid'"),
    ({"rule": "anytime"}, ValueError, "votes must be of the rule 'fixed', got 'anytime'"),
    ({"rule": 3}, (ValueError, TypeError), "rule"),
    ({"rule": np.array(["fixed", "grid"])}, (ValueError, TypeError), "rule"),
    (
        {"rule": "other"},
        ValueError,
        "rule must be one of fixed, grid, anytime, levels, changed, splitting, got 'other'",
    ),
]


@pytest.mark.parametrize("decide", DECIDE)
@pytest.mark.parametrize(("changes", "error", "message"), VOTES, ids=lambda value: str(value)[:40])
def test_votes_are_checked(decide, changes, error, message):
    with pytest.raises(error, match=message):
        decide(votes(**changes))


@pytest.mark.parametrize("decide", DECIDE)
def test_naked_counts_are_no_votes(decide):
    for naked in (np.eye(2, dtype=int), (np.eye(2, dtype=int), 100), None):
        with pytest.raises(TypeError, match=r"votes must be jaxsmooth\.Votes"):
            decide(naked)


def test_votes_without_selection_certify_nothing():
    with pytest.raises(ValueError, match="votes must have selection votes"):
        certificate(votes(selection=None), Gaussian(1.0))
    assert prediction(votes(selection=None)).label[0] == 0


@pytest.mark.parametrize("decide", DECIDE)
def test_decisions_check_alpha(decide):
    for alpha in (0.0, 1.0, -0.1, np.nan):
        with pytest.raises(ValueError, match="alpha must be a number"):
            decide(votes(), alpha=alpha)
    with pytest.raises(TypeError, match="alpha must be a number"):
        decide(votes(), alpha="0.1")


@pytest.mark.parametrize("decide", DECIDE)
def test_n_must_be_static_under_jit(decide):
    with pytest.raises(TypeError, match=r"votes\.n must be one static int under jax\.jit"):
        jax.jit(lambda counts: decide(votes(counts=counts, n=np.array([100]))).label)(np.array([[90, 10]]))


def test_nothing_is_printed_or_warned_and_arguments_stay_as_they_were(capsys):
    x = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
    before = x.copy()
    x.flags.writeable = False
    certify(first_features, Gaussian(1.0), jax.random.key(0), x, n=10)
    np.testing.assert_array_equal(x, before)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("kind", [Gaussian, Laplace, Uniform])
def test_inputs_that_float32_cannot_hold_are_refused(kind):
    seconds = np.array([[1.7e9 + 60.0], [1.7e9]])  # float32 knows the first to 128

    def f(_):
        raise AssertionError("f was called")

    with pytest.raises(ValueError, match=r"rounding moves input 0 by 60, over 1/10 of the scale 30 of the noise"):
        certify(f, kind(scale=30.0), jax.random.key(0), seconds)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, 224, 224)) / 255
    assert count_votes(lambda x: x[:, :2, 0, 0], kind(scale=0.12), jax.random.key(0), pixels, n=2).shape == (1, 2)
