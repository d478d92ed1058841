"""Models that return more than their scores run as they are, or are asked what is meant."""

import copy

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
import tensorflow as tf
import torch
from flax import linen, nnx
from torch import nn

import bridges.flax
import bridges.pytorch
import bridges.tensorflow
import jaxsmooth
from bridges.flax import FlaxRandomizedSmoothing
from bridges.outputs import Reading
from bridges.pytorch import PyTorchRandomizedSmoothing
from bridges.tensorflow import TensorFlowV2RandomizedSmoothing
from tests.bridges.architectures import CLASSES, KERAS, SHAPE, TORCH, WithFeatures

SETTINGS = {"sample_size": 16, "scale": 0.1, "seed": 0}
IMAGES = np.random.default_rng(0).uniform(size=(4, *SHAPE)).astype(np.float32)
LAST = np.ascontiguousarray(IMAGES.transpose(0, 2, 3, 1))
LABELS = np.array([0, 1, 2, 3])


class Only(nn.Module):
    """The scores of a model, by hand: what the same model is compared with."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        result = self.model(x)
        if isinstance(result, torch.Tensor):
            return result
        return result["logits"] if hasattr(result, "keys") else result[0]


def torch_class(model, **changes):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    settings = {"optimizer": optimizer, **SETTINGS, **changes}
    return PyTorchRandomizedSmoothing(model, nn.CrossEntropyLoss(), SHAPE, CLASSES, **settings)


@pytest.mark.parametrize("name", TORCH)
def test_pytorch_architectures_run_as_they_are(name):
    model = TORCH[name]().eval()
    by_hand = Only(copy.deepcopy(model))
    x = torch.tensor(IMAGES, requires_grad=True)
    by_hand(x).logsumexp(1).sum().backward()

    f = bridges.pytorch.as_jax(model)
    with torch.no_grad():
        scores = by_hand(x).numpy()

    def total(x):
        return jax.nn.logsumexp(f(x), axis=1).sum()

    np.testing.assert_allclose(f(IMAGES), scores, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jax.jit(f)(IMAGES), scores, rtol=1e-4, atol=1e-5)
    for gradient in (jax.grad(total)(IMAGES), jax.jit(jax.grad(total))(IMAGES)):
        np.testing.assert_allclose(gradient, x.grad, rtol=1e-3, atol=1e-5)
    counts = jaxsmooth.count_votes(f, jaxsmooth.Gaussian(0.1), jax.random.key(0), IMAGES, n=50)
    np.testing.assert_array_equal(counts.sum(-1), 50)

    ours, expected = torch_class(model), torch_class(by_hand)
    for method in ("loss_gradient", "compute_loss"):
        found, wanted = (getattr(c, method)(IMAGES, LABELS) for c in (ours, expected))
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(ours.certify(IMAGES, 50), expected.certify(IMAGES, 50))
    for classifier in (ours, expected):
        torch.manual_seed(0)  # dropout of some of them
        classifier.fit(IMAGES, LABELS, batch_size=4, nb_epochs=2)
    np.testing.assert_allclose(f(IMAGES), Only(expected.model.model).eval()(torch.tensor(IMAGES)).detach(), atol=1e-4)


@pytest.mark.parametrize("name", KERAS)
def test_keras_models_of_two_outputs_run_as_they_are(name):
    keras.utils.set_random_seed(0)
    model = KERAS[name]()
    pick = (lambda r: r["logits"]) if name == "named outputs" else (lambda r: r[0])
    f = bridges.tensorflow.as_jax(model)
    x = tf.constant(LAST)
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(tf.reduce_logsumexp(pick(model(x)), axis=1))
    for run in (f, jax.jit(f)):
        np.testing.assert_allclose(run(LAST), pick(model(x)), rtol=1e-4, atol=1e-5)
    gradient = jax.jit(jax.grad(lambda x: jax.nn.logsumexp(f(x), axis=1).sum()))(LAST)
    np.testing.assert_allclose(gradient, tape.gradient(total, x), rtol=1e-3, atol=1e-5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    classifier = TensorFlowV2RandomizedSmoothing(
        model, CLASSES, LAST.shape[1:], loss, keras.optimizers.SGD(0.1), **SETTINGS
    )
    np.testing.assert_allclose(
        classifier.compute_loss(LAST, LABELS),
        keras.losses.sparse_categorical_crossentropy(LABELS, pick(model(x)), from_logits=True),
        rtol=1e-4,
    )
    before = pick(model(x)).numpy()
    classifier.fit(LAST, LABELS, batch_size=4, nb_epochs=1)
    assert np.abs(pick(model(x)).numpy() - before).max() > 1e-3
    assert classifier.certify(LAST, 50)[0].shape == (4,)


class LinenPair(linen.Module):
    kind: str = "dict"

    @linen.compact
    def __call__(self, x):
        features = linen.Dense(7)(x.reshape(len(x), -1))
        scores = linen.Dense(CLASSES)(features)
        return {"logits": scores, "features": features} if self.kind == "dict" else (scores, features)


class NNXPair(nnx.Module):
    def __init__(self):
        self.body = nnx.Linear(3 * 32 * 32, 7, rngs=nnx.Rngs(0))
        self.head = nnx.Linear(7, CLASSES, rngs=nnx.Rngs(1))

    def __call__(self, x):
        features = self.body(x.reshape(len(x), -1))
        return {"logits": self.head(features), "features": features}


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_flax_modules_that_return_mappings_run_as_they_are(kind):
    model = LinenPair() if kind == "linen" else NNXPair()
    variables = model.init(jax.random.key(0), jnp.zeros((1, *LAST.shape[1:]))) if kind == "linen" else None
    scores = (model.apply(variables, LAST) if kind == "linen" else model(jnp.asarray(LAST)))["logits"]
    f = bridges.flax.as_jax(model, variables)
    np.testing.assert_allclose(jax.jit(f)(LAST), scores, rtol=1e-3, atol=1e-5)
    loss = optax.softmax_cross_entropy_with_integer_labels
    classifier = FlaxRandomizedSmoothing(
        model, loss, LAST.shape[1:], CLASSES, optax.sgd(0.001), variables=variables, **SETTINGS
    )
    np.testing.assert_allclose(classifier.compute_loss(LAST, LABELS), loss(scores, LABELS), rtol=1e-3)
    classifier.fit(LAST, LABELS, batch_size=4, nb_epochs=1)
    assert classifier.compute_loss(LAST, LABELS).mean() < loss(scores, LABELS).mean()
    assert classifier.certify(LAST, 50)[0].shape == (4,)


def test_what_is_ambiguous_is_refused_with_what_came():
    model = WithFeatures("tuple")
    with pytest.raises(ValueError, match=r"WithFeatures returns a tuple of arrays of shapes \(2, 5\), \(2, 7\)"):
        bridges.pytorch.as_jax(model)(IMAGES)
    expected = model(torch.tensor(IMAGES))[0].detach()
    np.testing.assert_allclose(bridges.pytorch.as_jax(model, output=lambda r: r[0])(IMAGES), expected, rtol=1e-4)
    # The classes know how many classes there are: the other matrix could not be the scores.
    assert torch_class(model).certify(IMAGES, 50)[0].shape == (4,)
    with pytest.raises(ValueError, match=r"shapes \(1, 7\), \(1, 5\).*model_output=lambda result: result\[0\]"):
        torch_class(WithFeatures("features first")).certify(IMAGES, 50)
    chosen = torch_class(WithFeatures("features first"), model_output=lambda r: r[1])
    assert chosen.certify(IMAGES, 50)[0].shape == (4,)
    with pytest.raises(ValueError, match=r"a dict with the keys 'scores', 'features'"):
        bridges.pytorch.as_jax(WithFeatures("dict"))(IMAGES)
    linen_pair = LinenPair("tuple")
    with pytest.raises(ValueError, match=r"returns a tuple of arrays of shapes \(2, 5\), \(2, 7\)"):
        bridges.flax.as_jax(linen_pair, linen_pair.init(jax.random.key(0), LAST[:1]))(LAST[:2])


def test_a_function_of_the_result_must_return_scores():
    f = bridges.pytorch.as_jax(WithFeatures("tuple"), output=lambda r: r)
    with pytest.raises(TypeError, match="output must return an array of scores, got a tuple"):
        f(IMAGES)
    for as_jax, model in ((bridges.pytorch.as_jax, nn.Linear(2, 2)), (bridges.tensorflow.as_jax, lambda x: x)):
        with pytest.raises(TypeError, match="output must be a function of what the mod"):
            as_jax(model, output="logits")
    with pytest.raises(TypeError, match=r"got a PyTorch module: bridges.pytorch.as_jax\(model\) takes it"):
        bridges.tensorflow.as_jax(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="model_output must be a function of what the model returns, got 0"):
        torch_class(WithFeatures("tuple"), model_output=0)


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (None, "must return an array of scores, or a mapping, tuple or list with one, got None"),
        ("scores", "got an instance of str"),
        ((), "got a tuple of nothing"),
        ((np.zeros(()), np.zeros((2, 3))), r"shapes \(\), \(2, 3\)"),
        ((np.zeros((2, 4, 7)), np.zeros((2, 3))), r"shapes \(2, 4, 7\), \(2, 3\)"),
        ({"logits": None, "loss": np.zeros(())}, "the keys 'logits', 'loss'"),
        ({"out": np.zeros((2, 3)), "aux": np.zeros((2, 3))}, "the keys 'out', 'aux'"),
        ((None, np.zeros((2, 3))), r"a tuple of None, an array of shape \(2, 3\)"),
    ],
)
def test_results_without_clear_scores(result, said):
    with pytest.raises((ValueError, TypeError), match=said):
        Reading()(result)


def test_two_functions_of_one_model_are_two_classifiers(tmp_path):
    """A run under the one does not go on under the other, and compiled code is not shared."""
    model = WithFeatures("tuple")
    first, last = (bridges.pytorch.as_jax(model, output=f) for f in (lambda r: r[0], lambda r: r[1]))
    assert first != last
    assert jax.jit(lambda x: first(x))(IMAGES).shape != jax.jit(lambda x: last(x))(IMAGES).shape
    settings = {"mode": jaxsmooth.Fixed(n0=10, n=20), "progress": False}
    data = [(image, 0) for image in IMAGES]
    jaxsmooth.certify_dataset(first, jaxsmooth.Gaussian(0.1), jax.random.key(0), data, tmp_path / "run", **settings)
    with pytest.raises(ValueError, match="classifier"):
        jaxsmooth.certify_dataset(last, jaxsmooth.Gaussian(0.1), jax.random.key(0), data, tmp_path / "run", **settings)
