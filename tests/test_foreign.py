"""Objects of other frameworks where a JAX function belongs, small floats, and functions that JAX cannot trace."""

from functools import partial

import jax
import jax.numpy as jnp
import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
import torch
from flax import linen, nnx
from jax.tree_util import Partial
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

import bridges.flax
import jaxsmooth
from jaxsmooth import Fixed, Gaussian, LatticeGaussian, certify, certify_dataset, check_classifier, predict, smooth
from tests.classifiers import inputs

KEY, NOISE = jax.random.key(0), Gaussian(0.2)
X = inputs(4)


class Dropout(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([nnx.Linear(5, 8, rngs=rngs), nnx.Dropout(0.5, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)])

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


OBJECTS = {
    "torch": (lambda: torch.nn.Linear(5, 3), r"a PyTorch module, Linear: bridges\.pytorch\.as_jax\(model\) takes it"),
    "keras": (lambda: keras.Sequential([keras.layers.Dense(3)]), r"a Keras model, Sequential: bridges\.tensorflow"),
    "tf.Module": (lambda: tf.Module(), r"a TensorFlow module, Module: bridges\.tensorflow\.as_jax"),
    "tf.function": (lambda: tf.function(lambda x: x), r"a TensorFlow function"),
    "linen": (lambda: linen.Dense(3), r"a flax\.linen module, Dense: bridges\.flax\.as_jax\(module, variables\)"),
    "nnx": (Dropout, r"an nnx module, Dropout, in training mode \(its Dropout\): bridges\.flax\.as_jax\(module\)"),
    "sklearn": (LogisticRegression, r"a scikit-learn estimator.*predict_proba\(.*compiled=False"),
    "array": (lambda: np.zeros(3), "got an ndarray"),
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_objects_of_other_frameworks_are_named(kind, tmp_path):
    make, message = OBJECTS[kind]
    f = make()
    calls = {
        "certify": lambda: certify(f, NOISE, KEY, X),
        "host": lambda: certify(f, NOISE, KEY, X, compiled=False),
        "predict": lambda: predict(f, NOISE, KEY, X),
        "radii": lambda: jaxsmooth.certify_radii(f, NOISE, KEY, X, [0.1]),
        "smooth": lambda: smooth(f, NOISE, n=10),
        "check": lambda: check_classifier(f, X),
        "run": lambda: certify_dataset(f, NOISE, KEY, [(X[0], 0)], tmp_path / "run"),
        "loss": lambda: jaxsmooth.losses.gaussian(f, NOISE, KEY, X, jnp.zeros(4, int)),
    }
    for call in calls.values():
        with pytest.raises(TypeError, match=message):
            call()


def test_an_nnx_module_in_evaluation_mode_runs_as_it_is(tmp_path):
    module = Dropout()
    f = bridges.flax.as_jax(module)
    module.eval()
    assert (certify(module, NOISE, KEY, X, n=50).radius == certify(f, NOISE, KEY, X, n=50).radius).all()
    data = [(np.asarray(row), 0) for row in X]
    settings = {"mode": Fixed(n0=10, n=50), "progress": False}
    rows = [certify_dataset(c, NOISE, KEY, data, tmp_path / name, **settings) for c, name in ((module, "m"), (f, "f"))]
    assert [row.radius for row in rows[0]] == [row.radius for row in rows[1]]


def by_numpy(x):
    return np.asarray(x)[:, :3]


def by_branch(x):
    return x[:, :3] if x.sum() > 0 else -x[:, :3]


@pytest.mark.parametrize("f", [by_numpy, by_branch])
def test_what_jax_cannot_trace_is_told_how_it_is_called(f):
    for call in (certify, predict, jaxsmooth.count_votes):
        with pytest.raises(TypeError, match=r"f must be a function that JAX can trace.*compiled=False"):
            call(f, NOISE, KEY, X, n=100)
    with pytest.raises(TypeError, match="f must be a function that JAX can trace"):
        smooth(f, NOISE, n=10)(KEY, X)
    assert certify(f, NOISE, KEY, X, n=100, compiled=False).label.shape == (4,)
    assert predict(f, NOISE, KEY, X, n=100, compiled=False).label.shape == (4,)


def test_a_scikit_learn_estimator_on_real_digits():
    digits = load_digits()
    x = (digits.data / 16).astype(np.float32)
    model = LogisticRegression(max_iter=300).fit(x[:1000], digits.target[:1000])
    f = lambda x: model.predict_proba(np.asarray(x))  # noqa: E731
    result = certify(f, Gaussian(0.1), KEY, x[1000:1020], n=1000, compiled=False)
    assert (result.label == digits.target[1000:1020]).mean() > 0.8
    assert (result.radius > 0.1).mean() > 0.6


def test_an_onnx_session_on_the_host():
    """A linear network, written by hand: its votes are those of the same function in JAX."""
    weights = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    session = onnxruntime.InferenceSession(linear_onnx(weights), providers=["CPUExecutionProvider"])
    (name,) = [argument.name for argument in session.get_inputs()]
    with pytest.raises(TypeError, match=r"an ONNX Runtime session.*session\.run\(None"):
        certify(session, NOISE, KEY, X)
    f = lambda x: session.run(None, {name: np.asarray(x)})[0]  # noqa: E731
    counts = jaxsmooth.stream_votes(f, NOISE, KEY, X, n=200)
    expected = jaxsmooth.stream_votes(lambda x: np.asarray(x) @ weights, NOISE, KEY, X, n=200)
    np.testing.assert_array_equal(counts, expected)


def linear_onnx(weights):
    """Return the bytes of a model `x @ weights`, which is all that the protocol's encoding needs to hold."""

    def number(value):
        parts = []
        while value > 127:
            parts.append(value & 127 | 128)
            value >>= 7
        return bytes([*parts, value])

    def entry(field, value):
        if isinstance(value, int):
            return number(field << 3) + number(value)
        value = value.encode() if isinstance(value, str) else value
        return number(field << 3 | 2) + number(len(value)) + value

    def tensor_type(*sizes):
        shape = b"".join(entry(1, entry(2, s) if isinstance(s, str) else entry(1, s)) for s in sizes)
        return entry(1, entry(1, 1) + entry(2, shape))

    node = entry(1, "x") + entry(1, "w") + entry(2, "y") + entry(4, "MatMul")
    weight = b"".join(entry(1, size) for size in weights.shape)
    weight += entry(2, 1) + entry(8, "w") + entry(9, weights.tobytes())
    ends = [entry(1, name) + entry(2, tensor_type("B", size)) for name, size in zip("xy", weights.shape, strict=True)]
    graph = entry(1, node) + entry(2, "linear") + entry(5, weight) + entry(11, ends[0]) + entry(12, ends[1])
    return entry(1, 8) + entry(7, graph) + entry(8, entry(1, "") + entry(2, 13))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=lambda dtype: dtype.__name__)
def test_small_floats_run_through_every_function(dtype, tmp_path):
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), dtype)
    f = jax.tree_util.Partial(lambda w, x: x.astype(w.dtype) @ w, weights)
    x, y = X.astype(dtype), jnp.array([0, 1, 2, 0])
    result = certify(f, NOISE, KEY, x, n=100)
    assert (result.votes.counts.sum(-1) == 100).all()
    host = certify(f, NOISE, KEY, x, n=100, compiled=False)
    np.testing.assert_array_equal(host.radius, result.radius)
    assert jaxsmooth.certify_radii(f, NOISE, KEY, x, [0.1], n=200).radius.shape == (4,)
    assert jaxsmooth.certify_within(f, NOISE, KEY, x, precision=0.2).radius.shape == (4,)
    on_grid = jnp.round(x * 8) / 8
    assert certify(f, LatticeGaussian(0.5, 0.125), KEY, on_grid, n=50).radius.shape == (4,)
    for estimator in ("pathwise", "score"):
        g = smooth(f, NOISE, n=50, estimator=estimator)
        gradient = jax.grad(lambda x, g=g: g(KEY, x)[0, 0])(x)
        assert gradient.dtype == dtype
        assert jnp.isfinite(gradient).all()
    attacked = [partial(getattr(jaxsmooth.losses, name), clip_values=None) for name in ("smoothadv", "smoothmix")]
    for loss in (jaxsmooth.losses.macer, *attacked):
        (gradient,) = jax.grad(lambda f, loss=loss: loss(f, NOISE, KEY, x, y))(f).args
        assert gradient.dtype == dtype
        assert jnp.isfinite(gradient).all()
    data = [(np.asarray(row), 0) for row in x]
    rows = certify_dataset(f, NOISE, KEY, data, tmp_path / "run", mode=Fixed(n0=100, n=100), progress=False)
    np.testing.assert_allclose([row.radius for row in rows], result.radius, atol=1e-6)


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (torch.nn.Linear, "got the class Linear: make an instance of it"),
        (lambda x: torch.nn.Linear(5, 3)(x), r"goes through bridges.<framework>.as_jax\(model\)"),
        (linen.Dense(3).bind({"params": {}}), r"bridges.flax.as_jax\(\*module.unbind\(\)\)"),
        (LinearSVC(), "decision_function"),
    ],
)
def test_messages_name_what_works(f, message):
    with pytest.raises(TypeError, match=message):
        certify(f, NOISE, KEY, inputs(2), n=10)


def test_a_program_is_not_used_for_another_number_that_is_equal():
    def signed(flag, x):
        return x[:, :3] if flag is True else -x[:, :3]

    x = jnp.array([[5.0, 0.0, -5.0]])
    votes = [jaxsmooth.count_votes(Partial(signed, flag), NOISE, KEY, x, n=10).argmax() for flag in (True, 1)]
    assert votes == [0, 2]
