"""Faster ways to count votes: the same classifier, or one that says it is another; refusals; the chosen batch size."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from tests.bridges.frameworks import PyTorch
from tests.bridges.reference import SHAPE, calls, inputs

network, smoothed = PyTorch.network, PyTorch.smoothed


def convolutional():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def votes(classifier):
    classifier.output = "frequencies"
    return 50 * classifier.predict(inputs(20))


# torch.compile's own modules warn when they are loaded.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "ways", [("channels_last",), ("compile",), {"channels_last", "compile"}], ids=lambda ways: "+".join(sorted(ways))
)
def test_ways_that_keep_the_classifier(ways):
    classifier = smoothed(convolutional(), acceleration=ways)
    assert (classifier.acceleration, classifier.certified_dtype) == (frozenset(ways), "float32")
    # 1,000 votes; rounding may move one whose two best scores are within 1e-6.
    assert np.abs(votes(classifier) - votes(smoothed(convolutional()))).sum() <= 2
    copies = copy.deepcopy(classifier), pickle.loads(pickle.dumps(classifier))
    expected = votes(classifier)
    for again in copies:
        np.testing.assert_array_equal(votes(again), expected)
        assert again.acceleration == frozenset(ways)
    before = classifier.acceleration
    classifier.set_params(alpha=0.02)
    assert classifier.acceleration == before


def test_bfloat16_is_another_classifier_and_says_so():
    model = convolutional()
    classifier, x = smoothed(model, acceleration=["bfloat16"]), inputs()
    assert classifier.certified_dtype == "bfloat16 autocast"
    label, radius = classifier.certify(x, 100)
    expected = smoothed(model).certify(x, 100)
    np.testing.assert_array_equal(label, expected[0])
    np.testing.assert_allclose(radius, expected[1], atol=0.2)
    y = label.clip(0)  # it may abstain
    np.testing.assert_array_equal(classifier.loss_gradient(x, y), smoothed(model).loss_gradient(x, y))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert smoothed(network().double()).certified_dtype == "float64"


def test_a_compiled_module_gets_batches_of_one_size(monkeypatch):
    """For another number of rows it would be compiled again."""
    sizes = []
    compiled = lambda module, **_: lambda x: (sizes.append(len(x)), module(x))[1]  # noqa: E731
    monkeypatch.setattr(torch, "compile", compiled)
    classifier = smoothed(network(), acceleration=["compile"])
    classifier.certify(inputs(3), 333)
    classifier.predict(inputs(5))
    assert len(set(sizes)) == 1
    del sizes[:]
    classifier.certify(inputs(3), 333, batch_size=100)  # what the caller asks for is one size, too
    assert set(sizes) == {100}


@pytest.mark.parametrize(("width", "samples", "chosen"), [(16, 2000, 4096), (2**13, 50, 128), (2**17, 20, 32)], ids=str)
def test_batches_hold_what_a_cache_holds_of_the_widest_layer(width, samples, chosen):
    model, seen = PyTorch.watch(nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.Linear(width, 3)))
    classifier = smoothed(model, sample_size=samples, check=False)
    classifier.predict(inputs())
    assert len(calls(seen)[0]) == 1  # tells how wide the layers are
    for asked in (None, 8, 5000):
        classifier.predict(inputs(), batch_size=asked)
        rows = list(map(len, calls(seen)))
        assert max(rows) == min(chosen, asked or chosen)
        assert sum(rows) == 6 * samples


@pytest.mark.parametrize(
    ("ways", "error"), [("compile", TypeError), (3, TypeError), (["fast"], ValueError), (["compile", "x"], ValueError)]
)
def test_other_ways_are_refused(ways, error):
    with pytest.raises(error, match="acceleration must"):
        smoothed(input_shape=SHAPE, acceleration=ways)
