"""The PyTorch class beyond one call: layers, saved states, settings, fresh weights."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from tests.bridges.test_pytorch_classifier import SHAPE, inputs, labels, network, smoothed, torch_gradient, trainable


def test_activations_of_every_layer_by_name_and_index():
    classifier, x = smoothed(preprocessing=(0.5, 2.0)), inputs()
    value = torch.tensor((x - 0.5) / 2)
    assert classifier.layer_names == ["0", "1", "2", "3"]
    for index, part in enumerate(classifier.model):
        value = part(value)
        expected = value.detach().numpy()
        for layer in (index, index - 4, str(index), np.int64(index)):
            np.testing.assert_allclose(
                classifier.get_activations(x, layer, batch_size=4), expected, rtol=1e-5, atol=1e-7
            )
    tensor = classifier.get_activations(x, 1, framework=True)
    assert isinstance(tensor, torch.Tensor)
    assert tensor.requires_grad
    assert not any(part._forward_hooks for part in classifier.model.modules())


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        (None, ValueError, r"layer must name one of \['0', '1', '2', '3'\]"),
        ("conv", ValueError, r"layer must be one of \['0', '1', '2', '3'\], got 'conv'"),
        (4, IndexError, "layer must be an index into the 4 layers"),
        (-5, IndexError, "layer must be an index into the 4 layers"),
        (1.5, TypeError, "layer must be a name or an index"),
    ],
)
def test_layers_that_are_not_there(layer, error, message):
    with pytest.raises(error, match=message):
        smoothed().get_activations(inputs(), layer)


def test_custom_loss_gradients():
    classifier, x, y = smoothed(preprocessing=(0.5, 2.0)), inputs(), inputs(seed=1)

    def difference(leaf):
        a, b = (classifier.model[:2]((v - 0.5) / 2) for v in (leaf, torch.tensor(y)))
        return a - b

    squared = torch_gradient(lambda leaf: difference(leaf).square().sum(), x)
    norm = torch_gradient(lambda leaf: difference(leaf).norm(), x)
    forms = [
        (lambda a, b: (a - b).square().sum(), squared),
        (lambda d: d.square().sum(), squared),
        (torch.norm, norm),
    ]
    for loss, expected in forms:
        gradient = classifier.custom_loss_gradient(loss, x, y, "1")
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="x and y must be as many inputs, got 6 and 5"):
        classifier.custom_loss_gradient(torch.norm, x, y[1:], "1")


def test_what_is_saved_is_loaded(tmp_path):
    classifier, x = trainable(), inputs()
    classifier.fit(x, labels(), nb_epochs=1)
    classifier.save("net", tmp_path / "new" / "folder")
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == ["net.model", "net.optimizer"]
    other = trainable()
    assert (other.compute_loss(x, labels()) != classifier.compute_loss(x, labels())).any()
    other.load("net", tmp_path / "new" / "folder")
    np.testing.assert_array_equal(other.compute_loss(x, labels()), classifier.compute_loss(x, labels()))
    assert len(other.optimizer.state) == len(classifier.optimizer.state) > 0


def test_loading_changes_all_or_nothing(tmp_path):
    classifier, x = trainable(), inputs()
    other = smoothed(model := network(), optimizer=torch.optim.SGD(list(model.parameters())[:1], 0.1))
    other.save("other", tmp_path)
    classifier.fit(x, labels(), nb_epochs=1)
    before = classifier.compute_loss(x, labels())
    with pytest.raises(ValueError, match="parameter group"):
        classifier.load("other", tmp_path)
    np.testing.assert_array_equal(classifier.compute_loss(x, labels()), before)


def test_save_goes_to_the_working_directory_by_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    smoothed().save("net")
    assert [path.name for path in tmp_path.iterdir()] == ["net.model"]


def test_loading_executes_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("harm").touch, ())

    torch.save({"weights": Evil()}, tmp_path / "net.model")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        smoothed().load("net", tmp_path)
    assert not (tmp_path / "harm").exists()


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 16))
        self.norm = nn.BatchNorm1d(16)
        self.inner = nn.Sequential(nn.Linear(16, 16), nn.MultiheadAttention(16, 2))

    def forward(self, x):
        return self.inner[0](self.norm(x.flatten(1))) @ self.weight.T


def test_reset_draws_every_weight_anew():
    model = Bare()
    classifier = smoothed(model, optimizer=torch.optim.Adam(model.parameters()))
    classifier.fit(inputs(), labels(), nb_epochs=1)
    states = [copy.deepcopy(model.state_dict())]
    for _ in range(2):
        classifier.reset()
        states.append(copy.deepcopy(model.state_dict()))
    for name in ("weight", "inner.0.weight", "inner.0.bias", "inner.1.in_proj_weight"):
        assert (states[0][name] != states[1][name]).any()
        assert (states[1][name] != states[2][name]).any()
    assert torch.equal(states[1]["norm.running_mean"], torch.zeros(16))
    assert len(classifier.optimizer.state) == 0


def test_clone_for_refitting_shares_settings_and_nothing_else():
    model = network()
    groups = [{"params": model[1].parameters(), "lr": 0.5}, {"params": model[3].parameters()}]
    classifier = smoothed(model, optimizer=torch.optim.SGD(groups, lr=0.1, momentum=0.9), n0=7, scale=0.3)
    model[1].weight.requires_grad_(False)
    clone = classifier.clone_for_refitting()
    assert type(clone) is type(classifier)
    assert isinstance(clone.optimizer, torch.optim.SGD)
    assert [group["lr"] for group in clone.optimizer.param_groups] == [0.5, 0.1]
    assert (clone.n0, clone.scale, clone.sample_size, clone.alpha) == (7, 0.3, 50, 0.01)
    assert [p.requires_grad for p in clone.model.parameters()] == [False, True]
    assert (clone.model[3].weight != model[3].weight).any()
    assert not {id(p) for p in clone.model.parameters()} & {id(p) for p in model.parameters()}
    own = {id(p) for p in clone.model.parameters()}
    assert {id(p) for group in clone.optimizer.param_groups for p in group["params"]} == own


def test_parameters_round_trip_and_change_all_or_none():
    classifier, x = trainable(preprocessing=(0.5, 2.0)), inputs()
    before, label = classifier.get_params(), classifier.certify(x, 100)
    classifier.set_params(**before)
    assert all(classifier.get_params()[name] is before[name] or name in _ARRAYS for name in before)
    np.testing.assert_array_equal(classifier.certify(x, 100), label)
    with pytest.raises(ValueError, match="alpha must be a number"):
        classifier.set_params(scale=3.0, sample_size=9, alpha=2.0)
    with pytest.raises(ValueError, match=r"unknown parameters \['sigma'\]"):
        classifier.set_params(scale=3.0, sigma=1.0)
    assert (classifier.scale, classifier.sample_size, classifier.alpha) == (0.5, 50, 0.01)
    classifier.set_params(scale=3.0, use_amp=True, opt_level="O2", preprocessing=(0.0, 1.0))
    assert (classifier.scale, classifier.use_amp, classifier.opt_level) == (3.0, True, "O2")
    assert classifier.preprocessing_operations == []
    classifier.fit(x, labels(), nb_epochs=1)
    assert classifier.model[1].weight.dtype == torch.float32


_ARRAYS = {"clip_values", "input_shape", "sample_size", "scale", "alpha", "preprocessing"}


def test_attributes_have_art_s_names_and_defaults():
    classifier = smoothed(clip_values=(0, 1), device_type="cpu")
    assert (classifier.device_type, classifier.device) == ("cpu", torch.device("cpu"))
    assert (classifier.use_amp, classifier.opt_level, classifier.loss_scale) == (False, "O1", "dynamic")
    assert (classifier.input_shape, classifier.nb_classes, classifier.channels_first) == (SHAPE, 3, True)
    np.testing.assert_array_equal(classifier.clip_values, np.float32([0, 1]))
    assert classifier.optimizer is None
    assert isinstance(classifier.loss, nn.CrossEntropyLoss)
