"""The PyTorch class beyond one call: layers, saved states, settings, fresh weights."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from tests.bridges.frameworks import PyTorch
from tests.bridges.reference import SHAPE, inputs, labels

network, smoothed = PyTorch.network, PyTorch.smoothed


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


def test_a_refused_setting_leaves_the_model_where_it_is():
    classifier = smoothed()
    for refused in ({"alpha": 2.0}, {"loss": 3}, {"optimizer": 0.1}, {"preprocessing": (0.0, 0.0)}):
        with pytest.raises((ValueError, TypeError)):
            classifier.set_params(device_type="meta", **refused)
        assert {p.device.type for p in classifier.model.parameters()} == {"cpu"}
        assert (classifier.device_type, classifier.device) == ("gpu", torch.device("cpu"))
        model = network()
        with pytest.raises((ValueError, TypeError)):
            smoothed(model, **{"device_type": "meta", **refused})
        assert {p.device.type for p in model.parameters()} == {"cpu"}
    classifier.set_params(device_type="meta")  # by itself it moves the model
    assert {p.device.type for p in classifier.model.parameters()} == {"meta"}


def test_mixed_precision_settings_are_parameters():
    classifier, x = smoothed(trainable=True), inputs()
    classifier.set_params(use_amp=True, opt_level="O2")
    assert (classifier.use_amp, classifier.opt_level, classifier.loss_scale) == (True, "O2", "dynamic")
    classifier.set_params(scale=3.0)
    assert (classifier.use_amp, classifier.opt_level, classifier.scale) == (True, "O2", 3.0)
    classifier.fit(x, labels(), nb_epochs=1)
    assert classifier.model[1].weight.dtype == torch.float32


def test_attributes_have_art_s_names_and_defaults():
    classifier = smoothed(clip_values=(0, 1), device_type="cpu")
    assert (classifier.device_type, classifier.device) == ("cpu", torch.device("cpu"))
    assert (classifier.use_amp, classifier.opt_level, classifier.loss_scale) == (False, "O1", "dynamic")
    assert (classifier.input_shape, classifier.nb_classes, classifier.channels_first) == (SHAPE, 3, True)
    np.testing.assert_array_equal(classifier.clip_values, np.float32([0, 1]))
    assert classifier.optimizer is None
    assert isinstance(classifier.loss, nn.CrossEntropyLoss)
