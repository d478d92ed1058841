"""The PyTorch class, beyond what every framework's class does."""

import copy
from functools import partial

import flax.linen as linen
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.tree_util import Partial
from torch import nn

import jaxsmooth
from bridges.inputs import input_ids
from bridges.pytorch import as_jax
from bridges.pytorch.backend import TorchBackend
from tests.bridges.frameworks import PyTorch
from tests.bridges.reference import inputs, labels

network, smoothed = PyTorch.network, PyTorch.smoothed


def test_an_equivalent_flax_module_gets_the_same_noise_and_votes():
    torch.manual_seed(0)
    linears = nn.Linear(16, 8), nn.Linear(8, 3)
    model, x = nn.Sequential(nn.Flatten(), linears[0], nn.ReLU(), linears[1]), inputs(20)
    classifier = smoothed(model, sample_size=500, output="frequencies")
    module = linen.Sequential([lambda v: v.reshape(len(v), -1), linen.Dense(8), linen.relu, linen.Dense(3)])
    layers = {
        f"layers_{i}": {"kernel": jnp.asarray(layer.weight.detach().T), "bias": jnp.asarray(layer.bias.detach())}
        for i, layer in zip((1, 3), linears, strict=True)
    }
    f = Partial(module.apply, {"params": layers})
    key, sizes = jaxsmooth.stream_key(classifier.key, jaxsmooth.Stream.PREDICTION), {"n": 500, "ids": input_ids(x)}
    by_flax, by_torch = (
        jaxsmooth.count_votes(g, jaxsmooth.Gaussian(0.5), key, x, **sizes) for g in (f, as_jax(classifier.model))
    )
    by_class = np.rint(500 * classifier.predict(x))
    np.testing.assert_array_equal(by_class, by_torch)
    # Of 10,000 votes, one may flip whose two best scores are as close as the two frameworks' rounding.
    assert np.abs(np.asarray(by_flax) - by_torch).sum() <= 4


def test_batch_normalisation_by_the_statistics_of_the_batch_is_refused():
    """In evaluation mode, too, without running statistics."""
    torch.manual_seed(0)
    normalised = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), network())
    with pytest.raises(ValueError, match="f must be a function of each row, but its scores depend on the batch"):
        smoothed(normalised).certify(inputs(), 50)
    assert smoothed(normalised, check=False).certify(inputs(), 50)[0].shape == (len(inputs()),)
    smoothed(nn.Sequential(nn.BatchNorm2d(1), network())).certify(inputs(), 50)


def test_log_probabilities_are_not_normalised_again():
    x, y = inputs(), labels()
    log = nn.Sequential(network(), nn.LogSoftmax(1))
    for sampling in (True, False):
        np.testing.assert_allclose(
            smoothed(log, nn.NLLLoss()).loss_gradient(x, y, sampling=sampling),
            smoothed().loss_gradient(x, y, sampling=sampling),
            rtol=1e-4,
            atol=1e-7,
        )
    np.testing.assert_allclose(
        smoothed(log, nn.NLLLoss()).class_gradient(x, sampling=True),
        smoothed().class_gradient(x, sampling=True),
        rtol=1e-4,
        atol=1e-7,
    )


def test_a_network_that_writes_to_its_input_changes_nobody_s_array():
    model = network()
    classifier, other = (smoothed(nn.Sequential(nn.ReLU(inplace=inplace), model)) for inplace in (True, False))
    x = inputs()
    before = x.copy()
    for certified, expected in zip(classifier.certify(x, 500), other.certify(x, 500), strict=True):
        np.testing.assert_array_equal(certified, expected)
    for options in ({}, {"sampling": True}):
        gradient, expected = (c.loss_gradient(x, labels(), **options) for c in (classifier, other))
        np.testing.assert_array_equal(gradient, expected)
    classifier.compute_loss(x, labels())
    np.testing.assert_array_equal(x, before)


def test_noisy_inputs_reach_the_network_without_a_copy(monkeypatch):
    drawn, places = [], []
    on_host = TorchBackend.on_host
    monkeypatch.setattr(TorchBackend, "on_host", lambda self, noisy: (drawn.append(noisy), on_host(self, noisy))[1])
    classifier = smoothed(check=False)
    classifier.predict(inputs())
    assert len(drawn) == 1
    classifier.model.register_forward_pre_hook(lambda _, arguments: places.append(arguments[0].data_ptr()))
    classifier.predict(inputs())
    classifier.certify(inputs(2), 3000, batch_size=1000)
    # Each call of the network gets rows of a batch that was drawn, where they are. Batches that are kept do not move.
    batches = [
        range(noisy.unsafe_buffer_pointer(), noisy.unsafe_buffer_pointer() + noisy.nbytes) for noisy in drawn[1:]
    ]
    assert len(batches) >= 2
    assert {batch.start for batch in batches} <= set(places)
    assert all(any(place in batch for batch in batches) for place in places)


class Purifies:
    """A defence that descends a loss, as purification by diffusion or energy models does."""

    apply_fit = apply_predict = True

    def __call__(self, x, y=None):
        leaf = torch.tensor(np.asarray(x), requires_grad=True)
        (gradient,) = torch.autograd.grad((leaf**2).sum() / 2, leaf)
        return np.asarray(x) - 0.5 * gradient.numpy(), y

    def estimate_gradient(self, _, grad):
        return grad / 2


def test_a_defence_may_take_gradients_while_votes_are_counted():
    x, halved = inputs(), smoothed(preprocessing=(0.0, 2.0))
    np.testing.assert_array_equal(smoothed(preprocessing_defences=Purifies()).certify(x, 200), halved.certify(x, 200))


@pytest.mark.parametrize("ambient", [torch.inference_mode, partial(torch.autocast, "cpu", dtype=torch.bfloat16)])
def test_votes_do_not_inherit_the_modes_of_the_caller(ambient):
    x, expected = inputs(), smoothed().certify(inputs(), 200)
    with ambient():
        np.testing.assert_array_equal(smoothed().certify(x, 200), expected)
        assert torch.is_grad_enabled() != torch.is_inference_mode_enabled()


def test_the_model_comes_out_as_it_went_in():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8, 3)).train()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    classifier = smoothed(model)
    classifier.predict(inputs())
    classifier.loss_gradient(inputs(), labels())
    classifier.class_gradient(inputs(), sampling=True)
    assert [part.training for part in model] == [True, False, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_set_batchnorm_and_dropout_govern_training_mode():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8, 3)).eval()
    classifier, x, y = smoothed(model), inputs(), labels()
    evaluated = classifier.loss_gradient(x, y)
    assert (classifier.loss_gradient(x, y, training_mode=True) != evaluated).any()
    classifier.set_batchnorm(False)
    classifier.set_dropout(False)
    np.testing.assert_array_equal(classifier.loss_gradient(x, y, training_mode=True), evaluated)
    classifier.set_dropout(True)
    assert (classifier.loss_gradient(x, y, training_mode=True) != evaluated).any()


def test_a_last_batch_of_one_under_batch_norm_is_explained():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    classifier = smoothed(model, optimizer=torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(ValueError, match="drop_last=True leaves it out"):
        classifier.fit(inputs(5), labels(5), batch_size=4, nb_epochs=1)
    classifier.fit(inputs(5), labels(5), batch_size=4, nb_epochs=1, drop_last=True)


def test_an_optimizer_of_another_model_is_refused():
    optimizer = torch.optim.Adam(PyTorch.network().parameters())
    classifier = PyTorch.smoothed(optimizer=optimizer)
    with pytest.raises(ValueError, match="the optimizer must be of the model's parameters"):
        classifier.fit(inputs(), labels(), nb_epochs=1)
