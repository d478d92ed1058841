"""`check_classifier` names what makes a classifier no function of each row, and passes what is one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxsmooth import Gaussian, Laplace, LatticeGaussian, check_classifier
from tests.classifiers import first_features, inputs

WEIGHTS = jax.random.normal(jax.random.key(1), (5, 4))


def network(x):
    return jnp.tanh(x @ WEIGHTS)


def batch_normalised(x):
    hidden = x @ WEIGHTS
    return (hidden - hidden.mean(axis=0, keepdims=True)) / hidden.std(axis=0, keepdims=True)


class Dropout:
    def __init__(self):
        self.rng = np.random.default_rng(0)

    def __call__(self, x):
        return np.asarray(network(x)) * (self.rng.uniform(size=(len(x), 4)) > 0.5)


class Running:
    """A state that the rows of the calls before have moved: constant while the batch is the same."""

    def __init__(self):
        self.last = None

    def __call__(self, x):
        mean = 0.0 if self.last is None else self.last
        self.last = float(np.asarray(x).mean())
        return np.asarray(network(x)) + np.array([[mean, 0, 0, 0]])


class Remembering:
    """A state that one other batch changes for good."""

    def __init__(self):
        self.seen = set()

    def __call__(self, x):
        self.seen.add(np.asarray(x).tobytes())
        return np.asarray(network(x)) * (1 if len(self.seen) == 1 else -1)


@pytest.mark.parametrize("noise", [None, Gaussian(0.5), Laplace(0.1), LatticeGaussian(0.5, 1 / 255)])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("f", [first_features, jax.jit(network), Partial(lambda w, x: x @ w, WEIGHTS), np.asarray])
def test_functions_of_each_row_pass(f, noise, dtype):
    # Scores of few bits may tie: that is found elsewhere.
    wide = f if dtype == np.float32 else lambda x: f(x.astype(np.float32))
    x = inputs(6).astype(dtype)
    assert check_classifier(wide, x, noise=noise) is None


@pytest.mark.parametrize(
    ("f", "fault"),
    [
        (batch_normalised, "its scores depend on the batch: those of 6 of 6 rows"),
        (lambda x: x - x[:1], "its scores depend on the batch"),
        (lambda x: x + jnp.arange(len(x))[:, None], "its scores depend on the batch"),
        (Dropout(), "it is random, or has a state, .* where chance is meant, certificates hold if .* check=False"),
        (Running(), "it is random, or has a state"),
        (Remembering(), "it has a state: scores changed after another batch"),
        (lambda x: x.at[2, 0].set(jnp.nan), "its scores are not finite in 1 of 12 rows"),
        (lambda x: jnp.where(x > 1, jnp.inf, x), "its scores are not finite in"),
    ],
    ids=["batch norm", "first row", "place", "dropout", "running", "remembering", "NaN", "infinity"],
)
def test_faults_are_named(f, fault):
    with pytest.raises(ValueError, match=f"f must be a function of each row, but .*{fault}"):
        check_classifier(f, inputs(6))


def test_one_input_is_enough_to_see_the_batch():
    with pytest.raises(ValueError, match="depend on the batch"):
        check_classifier(batch_normalised, np.zeros((1, 5), np.float32))


def test_all_faults_are_named_at_once():
    f = Dropout()
    with pytest.raises(ValueError, match=r"it has 4 classes, not 10; .* not finite .*; it is random"):
        check_classifier(lambda x: np.where(f(x) > 0.9, np.nan, f(x)), inputs(20), classes=10)


def test_scores_of_few_bits_that_tie_are_named():
    x = np.linspace(-1, 1, 400, dtype=np.float32).reshape(80, 5)

    def close(x):
        return jnp.stack([x[:, 0], x[:, 0] + 1e-4], axis=1)

    check_classifier(close, x)
    with pytest.raises(ValueError, match="its scores in bfloat16 tie at the top in"):
        check_classifier(lambda x: close(x).astype(jnp.bfloat16), x)


def test_inputs_of_few_bits_whose_votes_are_others_are_named():
    x = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float16)

    def fine(x):  # reads what float16 rounds away
        scaled = x.astype(jnp.float32)[:, :1] * 2.0**14
        return jnp.concatenate([scaled - jnp.floor(scaled) - 0.25, jnp.zeros_like(scaled)], axis=1)

    with pytest.raises(ValueError, match=r"the votes of \d+ of 100 rows change for inputs in float32"):
        check_classifier(fine, x, noise=Gaussian(0.5))


def test_a_class_that_is_masked_hides_no_fault():
    x = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)

    def masked(scores):
        return jnp.concatenate([scores, jnp.full((len(scores), 1), -1e9)], axis=1)

    check_classifier(masked, x)
    with pytest.raises(ValueError, match="its scores depend on the batch"):
        check_classifier(lambda x: masked(x - x.mean(axis=0, keepdims=True)), x)


def test_rounding_and_ties_at_other_places_pass():
    """What kernels do at another place of a batch: another last bit, which may decide a tie."""

    def rounds(x):
        base = jnp.zeros((len(x), 3)).at[:, 0].set(1.0)
        return base + 1e-6 * jnp.arange(len(x))[:, None] * jnp.array([[0.0, 1.0, -1.0]])

    check_classifier(rounds, inputs(6))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"f": 3}, TypeError, "f must be a callable"),
        ({"x": np.zeros((0, 5))}, ValueError, "x must have at least one input"),
        ({"x": np.zeros(5)}, ValueError, "x must be a batch"),
        ({"noise": 0.5}, TypeError, "noise must be an instance"),
        ({"classes": 1}, ValueError, "classes must be an integer"),
        ({"f": lambda x: x[:1]}, ValueError, r"f must return real scores of shape \[12, \*components, K\]"),
        ({"f": lambda x: (x, x)}, ValueError, r"f must return real scores of shape \[12, \*components, K\]"),
    ],
)
def test_arguments_are_checked(changes, error, message):
    arguments = {"f": first_features, "x": inputs(6), **changes}
    with pytest.raises(error, match=message):
        check_classifier(arguments.pop("f"), arguments.pop("x"), **arguments)


def test_what_the_classifier_raises_is_raised():
    def broken(_):
        raise RuntimeError("the model's own words")

    with pytest.raises(RuntimeError, match="the model's own words"):
        check_classifier(broken, inputs(6))
