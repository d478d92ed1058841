"""How outputs are read, and what a loss is: one answer for every framework, with the framework's own as the oracle."""

import functools

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import jaxsmooth
from bridges.inputs import input_ids
from jaxsmooth import Stream
from tests.bridges.frameworks import NNX, PyTorch, TensorFlow
from tests.bridges.reference import inputs, labels, reference

READ = {
    "logits": jax.nn.softmax,
    "probabilities": lambda scores: scores,
    "log-probabilities": jnp.exp,
    "one logit": lambda scores: jnp.concatenate([jax.nn.sigmoid(-scores), jax.nn.sigmoid(scores)], axis=1),
    "one probability": lambda scores: jnp.concatenate([1 - scores, scores], axis=1),
}


def sampled_gradient(classifier, x, y, network, read):
    """Differentiate the mean of -log of the averaged probability, written out in JAX."""
    key = jaxsmooth.stream_key(classifier.key, Stream.GRADIENTS)
    noise, n = jaxsmooth.Gaussian(classifier.scale), classifier.sample_size
    batches = jaxsmooth.stream_samples(noise, key, x, n=n, batch_size=len(x) * n, ids=input_ids(x))
    ((noisy, _),) = list(batches)
    shifts = np.asarray(noisy).reshape(len(x), n, *x.shape[1:]) - x[:, None]

    def loss(x):
        p = jax.vmap(lambda shift: read(network(x + shift)), 1)(jnp.asarray(shifts)).mean(axis=0)
        return -jnp.log(p[jnp.arange(len(x)), y]).mean()

    return jax.grad(loss)(jnp.asarray(x))


def own_loss(*pair):
    """A loss that says nothing of what it takes."""
    one, two = pair
    return ((one - two) ** 2)[:, 0]


LAST = {None: lambda s: s, "softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}
CASES = [
    ("binary logits", 1, None, None, "one logit"),
    ("binary probabilities", 1, "sigmoid", None, "one probability"),
    ("probabilities", 3, "softmax", None, "probabilities"),
    ("logits", 3, None, None, "logits"),
    (own_loss, 3, "softmax", None, "probabilities"),
    (own_loss, 3, None, None, "logits"),
    (own_loss, 3, "softmax", True, "logits"),
    (own_loss, 1, "sigmoid", None, "one probability"),
    (own_loss, 1, None, True, "one logit"),
    (own_loss, 1, "sigmoid", False, "one probability"),
]


@pytest.mark.parametrize(("loss", "outputs", "last", "from_logits", "kind"), CASES)
def test_sampled_gradients_read_outputs_as_what_they_are(framework, loss, outputs, last, from_logits, kind):
    x, classes = inputs(4), 3 if outputs == 3 else 2
    y = labels(4) % classes
    classifier = framework.smoothed(
        framework.network(outputs, last), loss, nb_classes=classes, from_logits=from_logits, sample_size=20
    )
    expected = sampled_gradient(classifier, x, y, lambda x: LAST[last](reference(x, outputs)), READ[kind])
    found = classifier.loss_gradient(x, y, sampling=True)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-6)
    # The gradients of the classes add up to nothing, as their probabilities add up to one.
    if kind != "probabilities":
        total = classifier.class_gradient(x, sampling=True).sum(axis=1)
        assert np.abs(total).max() < 1e-6


class OwnBCE(nn.BCELoss):
    pass


class OwnNLL(nn.NLLLoss):
    pass


class OwnSparse(keras.losses.SparseCategoricalCrossentropy):
    pass


class LogSoftmaxed(nn.Module):
    """Log-probabilities by a function, where no layer shows it."""

    def __init__(self):
        super().__init__()
        self.scores = PyTorch.network()

    def forward(self, x):
        return functional.log_softmax(self.scores(x), dim=1).reshape(len(x), 3)


@pytest.mark.parametrize(
    ("framework", "model", "loss", "kind"),
    [
        (PyTorch, lambda: PyTorch.network(3, "softmax"), OwnBCE(), "probabilities"),
        (PyTorch, LogSoftmaxed, OwnNLL(), "log-probabilities"),
        (PyTorch, LogSoftmaxed, functools.partial(functional.nll_loss, reduction="sum"), "log-probabilities"),
        (PyTorch, LogSoftmaxed, own_loss, "log-probabilities"),
        (TensorFlow, TensorFlow.network, OwnSparse(from_logits=True), "logits"),
        (TensorFlow, lambda: TensorFlow.network(3, "softmax"), OwnSparse(), "probabilities"),
        (
            TensorFlow,
            lambda: keras.Sequential([TensorFlow.network(), keras.layers.Softmax()]),
            own_loss,
            "probabilities",
        ),
    ],
)
def test_subclasses_partials_and_functions_are_known(framework, model, loss, kind):
    x, y = inputs(4), labels(4)
    classifier = framework.smoothed(model(), loss, sample_size=20)
    last = {"logits": None, "probabilities": "softmax", "log-probabilities": "log_softmax"}[kind]
    expected = sampled_gradient(classifier, x, y, lambda x: reference(x, last=last), READ[kind])
    np.testing.assert_allclose(classifier.loss_gradient(x, y, sampling=True), expected, rtol=2e-4, atol=1e-6)
    assert np.isfinite(classifier.compute_loss(x, y)).all()


def test_an_output_that_nothing_explains_is_refused(framework):
    for loss in (own_loss, "logits"):
        classifier = framework.smoothed(framework.network(1), loss, nb_classes=2, from_logits=None)
        with pytest.raises(ValueError, match="a model with one output needs"):
            classifier.predict(inputs(2))


def test_what_contradicts_the_loss_is_refused(framework):
    with pytest.raises(ValueError, match=r"from_logits must be True or None for .*, which takes logits"):
        framework.smoothed(loss="logits", from_logits=False)


W = torch.tensor([1.0, 20.0, 0.3])
WEIGHTED = [
    nn.CrossEntropyLoss(weight=W),
    nn.CrossEntropyLoss(weight=W, label_smoothing=0.2),
    nn.CrossEntropyLoss(ignore_index=1),
    nn.CrossEntropyLoss(reduction="sum"),
    nn.NLLLoss(weight=W),
    nn.MultiMarginLoss(weight=W),
    functools.partial(functional.cross_entropy, weight=W),
]


@pytest.mark.parametrize("loss", WEIGHTED, ids=lambda value: getattr(value, "name", type(value).__name__))
def test_the_mean_of_a_loss_is_its_own_in_pytorch(loss):
    x, y = inputs(8), labels(8)
    classifier = PyTorch.smoothed(loss=loss)
    outputs = classifier.model(torch.tensor(x)).detach()
    kind = functools.partial(loss) if isinstance(loss, functools.partial) else None
    for reduction in ("none", "mean", "sum"):
        if kind is None:
            before, loss.reduction = loss.reduction, reduction
            expected = loss(outputs, torch.tensor(y))
            loss.reduction = before
        else:
            expected = kind(outputs, torch.tensor(y), reduction=reduction)
        np.testing.assert_allclose(classifier.compute_loss(x, y, reduction), expected, rtol=1e-5)
        np.testing.assert_allclose(
            classifier.compute_loss_from_predictions(outputs.numpy(), y, reduction), expected, rtol=1e-5
        )


def test_the_mean_of_a_loss_is_its_own_in_tensorflow():
    x, y = inputs(8), labels(8)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=1)
    classifier = TensorFlow.smoothed(loss=loss)
    outputs = classifier.model(x)
    np.testing.assert_allclose(classifier.compute_loss(x, y, "mean"), loss(y, outputs), rtol=1e-5)
    assert loss.reduction == "sum_over_batch_size"


SOFT = np.float32([[1 / 3, 1 / 3, 1 / 3], [0.9, 0.05, 0.05], [0, 1, 0], [0.2, 0.2, 0.6]])


def test_soft_labels_are_the_framework_s(framework):
    """Under a cross-entropy of rows the loss is the sum of -q log p; its gradient is that of the sum."""
    loss = "logits" if framework is PyTorch else "function"
    classifier, x = framework.smoothed(loss=loss), inputs(4)
    expected = -(SOFT * jax.nn.log_softmax(reference(x))).sum(axis=1)
    np.testing.assert_allclose(classifier.compute_loss(x, SOFT), expected, rtol=1e-5)
    gradient = jax.grad(lambda x: -(SOFT * jax.nn.log_softmax(reference(x))).sum(axis=1).mean())(jnp.asarray(x))
    np.testing.assert_allclose(classifier.loss_gradient(x, SOFT), gradient, rtol=1e-4, atol=1e-7)


def test_soft_labels_train_as_such_in_pytorch():
    x = inputs(4)
    model = PyTorch.network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    classifier = PyTorch.smoothed(model, scale=1e-6, optimizer=optimizer)
    classifier.fit(x, SOFT, batch_size=4, nb_epochs=1)
    own = PyTorch.network()
    nn.CrossEntropyLoss()(own(torch.tensor(x)), torch.tensor(SOFT)).backward()
    for trained, start in zip(model.parameters(), own.parameters(), strict=True):
        np.testing.assert_allclose(trained.detach(), (start - 0.1 * start.grad).detach(), atol=1e-5)


@pytest.mark.parametrize(
    ("framework", "loss"),
    [(PyTorch, nn.NLLLoss()), (TensorFlow, "logits"), (NNX, "logits")],
    ids=["pytorch", "tensorflow", "flax"],
)
def test_soft_labels_are_refused_by_a_loss_of_indices(framework, loss):
    classifier = framework.smoothed(loss=loss, trainable=True)
    for call in (classifier.compute_loss, classifier.loss_gradient, classifier.fit):
        with pytest.raises(ValueError, match="y must hold class indices or one-hot rows"):
            call(inputs(4), SOFT)


class Clamped(nn.Module):
    """Probabilities whose last operation shows nothing."""

    def __init__(self):
        super().__init__()
        self.scores = PyTorch.network()

    def forward(self, x):
        return functional.softmax(self.scores(x), dim=1).clamp(1e-7, 1)


def test_outputs_are_read_by_their_numbers_where_nothing_says_it():
    x, y = inputs(4), labels(4)
    for model, kind, read in ((Clamped(), "softmax", "probabilities"), (PyTorch.network(), None, "logits")):
        classifier = PyTorch.smoothed(model, own_loss, sample_size=20)
        expected = sampled_gradient(classifier, x, y, functools.partial(reference, last=kind), READ[read])
        np.testing.assert_allclose(classifier.loss_gradient(x, y, sampling=True), expected, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize(
    "end", [jax.nn.log_sigmoid, lambda s: jnp.exp(-jnp.abs(s)), jnp.tanh], ids=["log_sigmoid", "exp", "tanh"]
)
def test_one_output_that_is_no_sigmoid_is_refused_in_flax(end):
    model = NNX.network(1)
    model["model"].layers.append(end)
    classifier = NNX.smoothed(model, own_loss, nb_classes=2, from_logits=None)
    with pytest.raises(ValueError, match="a model with one output needs"):
        classifier.certify(inputs(2), 100)


def test_soft_labels_of_one_output_are_not_hardened(framework):
    x, y = inputs(4), np.float32([[0.3, 0.7], [1, 0], [0.5, 0.5], [0.9, 0.1]])
    classifier = framework.smoothed(framework.network(1), "binary logits", nb_classes=2)
    s = np.asarray(reference(x, 1))[:, 0]
    expected = -(y[:, 1] * jax.nn.log_sigmoid(s) + y[:, 0] * jax.nn.log_sigmoid(-s))
    np.testing.assert_allclose(classifier.compute_loss(x, y), expected, rtol=1e-4)
    with pytest.raises(ValueError, match="one class for each input"):
        classifier.loss_gradient(x, y, sampling=True)


class Inner(nn.Module):
    """A loss with a reduction of its own that it never uses."""

    def __init__(self, inner):
        super().__init__()
        self.reduction, self.inner = "mean", inner

    def forward(self, outputs, rows):
        return self.inner(outputs, rows.argmax(1))


@pytest.mark.parametrize(
    "loss",
    [
        Inner(nn.CrossEntropyLoss()),
        Inner(nn.CrossEntropyLoss(weight=W)),
        functools.partial(nn.CrossEntropyLoss(weight=W)),
    ],
)
def test_a_loss_that_gives_one_number_has_rows_a_mean_and_a_sum(loss):
    x, y = inputs(8), labels(8)
    classifier = PyTorch.smoothed(loss=loss)
    outputs, targets = classifier.model(torch.tensor(x)).detach(), torch.tensor(y)
    inner = loss.inner if isinstance(loss, Inner) else loss.func
    np.testing.assert_allclose(classifier.compute_loss(x, y, "mean"), inner(outputs, targets), rtol=1e-5)
    rows = classifier.compute_loss(x, y)
    assert rows.shape == (8,)
    if isinstance(loss, Inner):  # a weight cancels in the mean of one row
        np.testing.assert_allclose(rows, functional.cross_entropy(outputs, targets, reduction="none"), rtol=1e-5)
    np.testing.assert_allclose(classifier.compute_loss(x, y, "sum"), rows.sum(), rtol=1e-5)


class OwnSum(keras.losses.Loss):
    def __call__(self, y_true, y_pred, sample_weight=None):  # noqa: ARG002
        return keras.ops.sum(keras.losses.categorical_crossentropy(y_true, y_pred, from_logits=True))


def test_a_keras_loss_that_gives_one_number_has_rows_a_mean_and_a_sum():
    x, y = inputs(8), labels(8)
    classifier = TensorFlow.smoothed(loss=OwnSum())
    expected = -np.asarray(jax.nn.log_softmax(reference(x)))[np.arange(8), y]
    for reduction, value in (("none", expected), ("mean", expected.mean()), ("sum", expected.sum())):
        np.testing.assert_allclose(classifier.compute_loss(x, y, reduction), value, rtol=1e-4)
