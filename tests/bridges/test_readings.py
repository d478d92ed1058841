"""What losses and networks say of labels and outputs, and what several threads do to them."""

import copy
import functools
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from flax import nnx
from torch import nn
from torch.nn.utils import prune

from bridges.flax import FlaxRandomizedSmoothing
from bridges.pytorch import PyTorchRandomizedSmoothing
from bridges.tensorflow import TensorFlowV2RandomizedSmoothing

X = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
Y = np.arange(8) % 3
WEIGHTS = torch.tensor([1.0, 20.0, 0.3])
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def linear(outputs=3):
    torch.manual_seed(0)
    return nn.Linear(5, outputs)


def torch_class(model, loss, classes=3, **changes):
    return PyTorchRandomizedSmoothing(model, loss, (5,), classes, **{"scale": 0.1, "seed": 0, **changes})


def keras_class(model, loss=CROSS_ENTROPY, optimizer=None, classes=3, **changes):
    return TensorFlowV2RandomizedSmoothing(
        model, classes, (5,), loss, optimizer, **{"scale": 0.1, "seed": 0, **changes}
    )


def flax_class(loss, classes=3, outputs=3, **changes):
    model = nnx.Linear(5, outputs, rngs=nnx.Rngs(0))
    return FlaxRandomizedSmoothing(model, loss, (5,), classes, **{"scale": 0.1, "seed": 0, **changes}), model


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.loss = nn.CrossEntropyLoss(weight=WEIGHTS)

    def forward(self, outputs, labels):
        return self.loss(outputs, labels)


class OfRows(nn.CrossEntropyLoss):
    """Derived from a loss of indices, and of rows itself."""

    def forward(self, outputs, rows):
        return -(rows * outputs.log_softmax(1)).sum(1).mean()


LOSSES = {
    "wrapped": Wrapped(),
    "method": nn.CrossEntropyLoss(weight=WEIGHTS).forward,
    "lambda": lambda outputs, labels: F.cross_entropy(outputs, labels, weight=WEIGHTS),
    "partial": functools.partial(F.cross_entropy, weight=WEIGHTS),
    "lambda of indices": lambda outputs, labels: F.nll_loss(outputs.log_softmax(1), labels),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_a_loss_within_another_function_gets_class_indices(kind):
    """A weighted mean over indices is another one than over one-hot rows."""
    model, loss = linear(), LOSSES[kind]
    x = torch.tensor(X, requires_grad=True)
    expected = loss(model(x), torch.tensor(Y))
    expected.backward()
    classifier = torch_class(model, loss)
    for y in (Y, np.eye(3)[Y]):
        np.testing.assert_allclose(classifier.compute_loss(X, y, "mean"), expected.item(), rtol=1e-5)
        np.testing.assert_allclose(classifier.loss_gradient(X, y), x.grad, atol=1e-6)


def test_a_subclass_that_takes_rows_gets_rows():
    model = linear()
    expected = OfRows()(model(torch.tensor(X[:3])), torch.eye(3)[[1, 0, 2]]).item()
    np.testing.assert_allclose(torch_class(model, OfRows()).compute_loss(X[:3], [1, 0, 2], "mean"), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "loss", [optax.softmax_cross_entropy_with_integer_labels, lambda o, y: -o[y[0], 0] * 0 + o.sum()]
)
def test_functions_of_integer_labels_get_them_in_flax(loss):
    known = optax.softmax_cross_entropy_with_integer_labels
    own = jax.jit(known) if loss is known else (lambda outputs, labels: known(outputs, labels).mean())
    classifier, model = flax_class(own)
    np.testing.assert_allclose(
        classifier.compute_loss(X, Y, "mean"), known(model(jnp.asarray(X)), jnp.asarray(Y)).mean(), rtol=1e-4
    )


def test_uniform_rows_are_soft_labels():
    model = linear()
    y = np.full((8, 3), 1 / 3, np.float32)
    y[4:] = np.eye(3)[[0, 1, 2, 0]]
    x = torch.tensor(X, requires_grad=True)
    expected = F.cross_entropy(model(x), torch.tensor(y))
    expected.backward()
    classifier = torch_class(model, nn.CrossEntropyLoss())
    np.testing.assert_allclose(classifier.compute_loss(X, y, "mean"), expected.item(), rtol=1e-5)
    np.testing.assert_allclose(classifier.loss_gradient(X, y), x.grad, atol=1e-6)
    # Constant rows are what ART's attacks make of a prediction that abstains: a loss of indices takes them.
    of_indices = flax_class(optax.softmax_cross_entropy_with_integer_labels)[0]
    assert np.isfinite(of_indices.compute_loss(X, y)).all()
    with pytest.raises(ValueError, match="y must hold class indices or one-hot rows"):
        of_indices.compute_loss(X, np.eye(3)[Y] * 0.7 + 0.1)
    assert np.isfinite(classifier.compute_loss(X, np.zeros((8, 3)))).all()


def test_the_own_mean_of_weighted_functions():
    """Two rows of which one has twenty times the weight: the mean is nearer to the sum of both."""
    rows = np.array([[0, -9, 0, 0, 0], [9, 0, 0, 0, 0]], np.float32)
    scores = rows[:, :3]

    def weighted(outputs, labels):
        return F.cross_entropy(outputs, labels.argmax(1), weight=WEIGHTS)

    model = nn.Linear(5, 3)
    nn.init.eye_(model.weight)
    nn.init.zeros_(model.bias)
    expected = weighted(torch.tensor(scores), torch.eye(3)[[1, 0]]).item()
    np.testing.assert_allclose(torch_class(model, weighted).compute_loss(rows, [1, 0], "mean"), expected, rtol=1e-5)

    def weighted_jax(outputs, labels):
        own = labels @ jnp.asarray(WEIGHTS.numpy())
        return (own * optax.softmax_cross_entropy(outputs, labels)).sum() / own.sum()

    classifier, module = flax_class(weighted_jax)
    module.kernel.set_value(jnp.eye(5, 3))
    np.testing.assert_allclose(classifier.compute_loss(rows, [1, 0], "mean"), expected, rtol=1e-4)

    def weighted_keras(labels, outputs):
        own = keras.ops.matmul(labels, WEIGHTS.numpy()[:, None])[:, 0]
        each = keras.losses.categorical_crossentropy(labels, outputs, from_logits=True)
        return keras.ops.sum(own * each) / keras.ops.sum(own)

    dense = keras.layers.Dense(3, kernel_initializer=keras.initializers.Constant(np.eye(5, 3)))
    found = keras_class(keras.Sequential([keras.Input((5,)), dense]), weighted_keras).compute_loss(rows, [1, 0], "mean")
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_ignored_rows_have_no_loss():
    def ignoring(outputs, rows):
        return F.cross_entropy(outputs, rows.argmax(1), ignore_index=1)

    model = linear()
    expected = F.cross_entropy(model(torch.tensor(X)), torch.tensor(Y), ignore_index=1, reduction="none").detach()
    np.testing.assert_allclose(torch_class(model, ignoring).compute_loss(X, Y), expected, rtol=1e-5)


def test_losses_of_signs_get_signs():
    signs = np.array([-1, 1] * 4, np.float32)
    model = linear(1)
    classifier = torch_class(model, nn.SoftMarginLoss(), 2, from_logits=True)
    scores = model(torch.tensor(X))
    expected = F.soft_margin_loss(scores[:, 0], torch.tensor(signs), reduction="none").detach()
    np.testing.assert_allclose(classifier.compute_loss(X, [0, 1] * 4), expected, rtol=1e-5)
    classifier, module = flax_class(optax.hinge_loss, 2, 1, from_logits=True)
    expected = optax.hinge_loss(module(jnp.asarray(X))[:, 0], jnp.asarray(signs))
    np.testing.assert_allclose(classifier.compute_loss(X, [0, 1] * 4), expected, rtol=1e-4)
    assert (np.abs(classifier.loss_gradient(X, [0, 1] * 4)).sum(1) > 0).sum() == (np.asarray(expected) > 0).sum()


def test_divergences():
    model, soft = linear(), np.random.default_rng(0).dirichlet(np.ones(3), 8).astype(np.float32)
    network = nn.Sequential(model, nn.LogSoftmax(1))
    outputs = network(torch.tensor(X)).detach()
    classifier = torch_class(network, nn.KLDivLoss(reduction="batchmean"))
    expected = F.kl_div(outputs, torch.tensor(soft), reduction="none").sum(1)
    np.testing.assert_allclose(classifier.compute_loss(X, soft), expected, rtol=1e-4)
    np.testing.assert_allclose(classifier.compute_loss(X, soft, "mean"), expected.mean(), rtol=1e-4)
    with pytest.raises(ValueError, match="y must hold rows of log-probabilities"):
        torch_class(network, nn.KLDivLoss(log_target=True)).compute_loss(X, Y)
    with pytest.raises(ValueError, match="y must hold rows of log-probabilities"):
        flax_class(optax.losses.kl_divergence_with_log_targets)[0].compute_loss(X, Y)


def focal(outputs, rows):
    p = outputs.log_softmax(1)
    return -(rows * (1 - p.exp()) ** 2 * p).sum(1).mean()


def test_outputs_are_read_again_once_weights_change():
    """Constant log-probabilities of a head that was not trained say nothing of it afterwards."""
    head = linear()
    nn.init.zeros_(head.weight)
    head.bias.data = torch.log(torch.tensor([0.7, 0.2, 0.1]))
    classifier = torch_class(head, focal, optimizer=torch.optim.Adam(head.parameters(), 0.1), scale=0.3)
    classifier.predict(X)
    classifier.fit(X, Y, nb_epochs=20)
    expected = torch_class(head, focal, from_logits=True, scale=0.3).loss_gradient(X, Y, sampling=True)
    np.testing.assert_array_equal(classifier.loss_gradient(X, Y, sampling=True), expected)
    head.weight.data *= 0
    head.weight.data += 1
    classifier.reset()
    assert classifier.loss_gradient(X, Y, sampling=True).shape == X.shape


class OfLogarithms(nn.Module):
    """Runs on positive inputs only, of at most four rows, and returns probabilities."""

    def __init__(self):
        super().__init__()
        self.layer = linear()
        self.rows = []

    def forward(self, x):
        self.rows.append(len(x))
        return self.layer(torch.log(x)).softmax(1)


def test_outputs_are_read_on_the_caller_s_inputs_within_its_batch_size():
    x = np.random.default_rng(0).uniform(0.4, 0.6, (4, 5)).astype(np.float32)
    model = OfLogarithms()
    found = torch_class(model, nn.MSELoss(), scale=0.01).loss_gradient(x, Y[:4], sampling=True)
    expected = torch_class(model, nn.MSELoss(), scale=0.01, from_logits=False).loss_gradient(x, Y[:4], sampling=True)
    np.testing.assert_array_equal(found, expected)
    model.rows.clear()
    torch_class(model, nn.MSELoss(), scale=0.01, check=False).predict(x, batch_size=2)
    assert max(model.rows) <= 2


def moved(optimizer, ours, regulariser=None):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3, kernel_regularizer=regulariser)])
    before = model.get_weights()[0]
    if ours:
        keras_class(model, optimizer=optimizer, scale=1e-6).fit(X, Y, batch_size=8, nb_epochs=1)
    else:
        model.compile(optimizer, CROSS_ENTROPY)
        model.fit(X, Y, batch_size=8, verbose=0)
    return model.get_weights()[0] - before


@pytest.mark.parametrize("kind", ["plain", "scaled", "wrapped", "regularised"])
def test_a_training_step_is_that_of_keras(kind):
    def optimizer():
        if kind == "wrapped":
            return keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
        return keras.optimizers.SGD(0.1, loss_scale_factor=1024.0 if kind == "scaled" else None)

    regulariser = keras.regularizers.L2(1.0) if kind == "regularised" else None
    found, expected = (moved(optimizer(), ours, regulariser) for ours in (True, False))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_what_is_frozen_between_two_trainings_stays():
    model = keras.Sequential([keras.Input((5,)), keras.layers.BatchNormalization(), keras.layers.Dense(3)])
    classifier = keras_class(model, optimizer=keras.optimizers.SGD(0.1))
    classifier.fit(X, Y, nb_epochs=1)
    model.layers[0].trainable = False
    before = [weight.copy() for weight in model.layers[0].get_weights()]
    classifier.fit(X, Y, nb_epochs=1)
    for old, new in zip(before, model.layers[0].get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


def test_statistics_of_the_data_are_no_weights():
    normalisation = keras.layers.Normalization()
    normalisation.adapt(10 * X + 5)
    model = keras.Sequential([keras.Input((5,)), normalisation, keras.layers.Dense(3)])
    classifier = keras_class(model)
    expected = normalisation(10 * X + 5).numpy()
    clone = classifier.clone_for_refitting()
    classifier.reset()
    for other in (classifier, clone, copy.deepcopy(clone)):
        np.testing.assert_allclose(other.model.layers[0](10 * X + 5), expected, atol=1e-5)


def test_pruned_weights_are_drawn_again_under_their_mask():
    layer = linear()
    prune.l1_unstructured(layer, "weight", 0.4)
    classifier = torch_class(layer, nn.CrossEntropyLoss())
    before = layer.weight.detach().clone()
    classifier.reset()
    classifier.predict(X)
    kept = layer.weight_mask.bool()
    assert (layer.weight[kept] != before[kept]).all()
    assert (layer.weight[~kept] == 0).all()


def test_optimizers_that_ask_for_the_loss():
    model = linear()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=5)
    classifier = torch_class(model, nn.CrossEntropyLoss(), optimizer=optimizer)
    before = classifier.compute_loss(X, Y, "mean")
    classifier.fit(X, Y, nb_epochs=3)
    assert classifier.compute_loss(X, Y, "mean") < before
    classifier, _ = flax_class(optax.softmax_cross_entropy_with_integer_labels, optimizer=optax.lbfgs())
    before = classifier.compute_loss(X, Y, "mean")
    classifier.fit(X, Y, nb_epochs=3)
    assert classifier.compute_loss(X, Y, "mean") < before


def test_outputs_of_a_binary_network_are_predictions():
    model = linear(1)
    classifier = torch_class(model, nn.BCEWithLogitsLoss(), 2)
    outputs = model(torch.tensor(X)).detach().numpy()
    np.testing.assert_allclose(
        classifier.compute_loss_from_predictions(outputs, Y % 2), classifier.compute_loss(X, Y % 2), rtol=1e-5
    )


def test_training_mode_in_one_thread_changes_no_certificate_of_another():
    """Without a gate between them dropout was active in all of ten certificates."""
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.9), nn.Linear(8, 3))
    classifier = torch_class(model, nn.CrossEntropyLoss(), scale=0.01)
    expected, losses = classifier.certify(X, 500), classifier.compute_loss(X, Y)
    buffers = [buffer.clone() for buffer in model.buffers()]

    def trains(_):
        for _ in range(20):
            classifier.loss_gradient(X, Y, training_mode=True)

    def evaluates(_):
        np.testing.assert_array_equal(classifier.compute_loss(X, Y), losses)
        np.testing.assert_array_equal(classifier.certify(X, 500), expected)

    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(run, 0) for run in (trains, evaluates) * 5]
        for job in jobs:
            job.result(timeout=120)
    for buffer, value in zip(model.buffers(), buffers, strict=True):
        assert (buffer == value).all()
    assert all(part.training for part in model.modules())


@pytest.mark.parametrize("framework", ["pytorch", "keras"])
def test_activations_of_several_threads_are_their_own(framework):
    if framework == "pytorch":
        classifier = torch_class(nn.Sequential(nn.Linear(5, 64), nn.Linear(64, 3)), nn.CrossEntropyLoss())
    else:
        layers = [keras.Input((5,)), keras.layers.Dense(64), keras.layers.Dense(3)]
        classifier = keras_class(keras.Sequential(layers))
    inputs = [X, -X]
    expected = [classifier.get_activations(x, 0) for x in inputs]

    def check(place):
        np.testing.assert_allclose(classifier.get_activations(inputs[place % 2], 0), expected[place % 2], atol=1e-5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(check, range(100)))
    if framework == "keras":
        assert not any("call" in vars(layer) for layer in classifier.model.layers)


def test_the_first_predictions_of_several_threads():
    for _ in range(4):
        layers = [keras.Input((5,)), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(3)]
        classifier = keras_class(keras.Sequential(layers))
        with ThreadPoolExecutor(8) as pool:
            assert len(list(pool.map(lambda _, c=classifier: c.predict(X), range(16)))) == 16
        assert not any("call" in vars(layer) for layer in classifier.model.layers)


class Centre:
    """A step after the network that looks at the whole batch."""

    apply_fit, apply_predict = False, True

    def __call__(self, scores):
        return scores - scores.mean(0)


class RandomStep(Centre):
    def __call__(self, scores):
        return scores + np.random.default_rng().normal(size=scores.shape)


def test_a_step_after_the_network_that_mixes_rows_is_refused():
    with pytest.raises(ValueError, match="its scores depend on the batch"):
        torch_class(linear(), nn.CrossEntropyLoss(), postprocessing_defences=Centre()).certify(X, 50)
    # Random numbers that are new for each row are sound.
    torch_class(linear(), nn.CrossEntropyLoss(), postprocessing_defences=RandomStep()).certify(X, 50)


def test_a_setting_that_is_assigned_holds():
    classifier = torch_class(linear(), nn.CrossEntropyLoss())
    before = classifier.compute_loss(X, Y)
    classifier.preprocessing = (0.5, 0.1)
    expected = torch_class(linear(), nn.CrossEntropyLoss(), preprocessing=(0.5, 0.1)).compute_loss(X, Y)
    np.testing.assert_array_equal(classifier.compute_loss(X, Y), expected)
    assert (expected != before).all()
    with pytest.raises(AttributeError, match="append"):
        classifier.preprocessing_operations.append(1)
    with pytest.raises(ValueError, match="preprocessing must be"):
        classifier.preprocessing = (1, 2, 3)
    assert classifier.preprocessing == (0.5, 0.1)


def test_reduced_labels_are_what_the_loss_takes():
    soft = np.full((8, 3), 1 / 3)
    classifier = torch_class(linear(), nn.CrossEntropyLoss())
    assert classifier.reduce_labels(soft) is soft
    np.testing.assert_array_equal(classifier.reduce_labels(np.eye(3)[Y]), Y)


class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.jit.script(nn.Sequential(nn.Linear(5, 4), nn.Tanh()))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.body(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripts_within_modules_vote_and_their_copies_train():
    model = Scripted()
    settings = {"optimizer": torch.optim.Adam(model.parameters(), 0.1)}
    classifier = torch_class(model, nn.CrossEntropyLoss(), **settings)
    classifier.fit(X, Y, nb_epochs=2)
    assert classifier.certify(X, 50)[0].shape == (8,)
    with pytest.raises(ValueError, match="layer must not be TorchScript"):
        classifier.get_activations(X, "body")
    twin, clone = copy.deepcopy(classifier), classifier.clone_for_refitting()
    before = [parameter.clone() for parameter in clone.model.parameters()]
    for other in (classifier, twin, clone):
        other.fit(X, Y, nb_epochs=3)
    for mine, theirs in zip(model.parameters(), twin.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)  # the moments of the optimizer went along
    assert all((old != new).any() for old, new in zip(before, clone.model.parameters(), strict=True))


def test_messages_name_the_argument():
    classifier = torch_class(linear(), nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match=r"label must have shape \(8,\)"):
        classifier.class_gradient(X, [0, 1])
    with pytest.raises(ValueError, match="label must hold class indices from 0 to 2"):
        classifier.class_gradient(X, [0, 1, 2, 9] * 2)
    with pytest.raises(ValueError, match="because the loss, or sampling=True, takes one class"):
        classifier.loss_gradient(X, np.eye(3)[Y] * 0.7 + 0.1, sampling=True)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    with pytest.raises(TypeError, match=r"must be a function of labels and outputs, such as keras\.losses\.get"):
        keras_class(model, "sparse_categorical_crossentropy")
    with pytest.raises(TypeError, match=r"^a loss_object is needed"):
        keras_class(model, None).loss_gradient(X, Y)
    with pytest.raises(ValueError, match=r"for nb_classes, got \[N, 3\]"):
        keras_class(model, classes=4).predict(X)
