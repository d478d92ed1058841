"""The PyTorch class: the core's certificates, torch's gradients and losses, training that learns, refusals by name."""

import copy
import pickle
import subprocess
import sys
from types import SimpleNamespace

import flax.linen as linen
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.tree_util import Partial
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import jaxsmooth
from bridges.inputs import input_ids
from bridges.pytorch import PyTorchRandomizedSmoothing, as_jax
from bridges.smoothing import RandomizedSmoothingMixin

SHAPE = (1, 4, 4)


def network(outputs=3, last=None):
    torch.manual_seed(0)
    head = nn.Linear(8, outputs, bias=False)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8, bias=False), nn.ReLU(), head, *([last] if last else []))


def smoothed(model=None, loss=None, **changes):
    settings = {"input_shape": SHAPE, "nb_classes": 3, "sample_size": 50, "scale": 0.5, "alpha": 0.01, "seed": 1}
    return PyTorchRandomizedSmoothing(model or network(), loss or nn.CrossEntropyLoss(), **{**settings, **changes})


def inputs(number=6, seed=0):
    return np.random.default_rng(seed).normal(size=(number, *SHAPE)).astype(np.float32)


def labels(number=6):
    return np.arange(number) % 3


def torch_gradient(function, x):
    leaf = torch.tensor(x, requires_grad=True)
    (gradient,) = torch.autograd.grad(function(leaf), leaf)
    return gradient.numpy()


def test_certify_is_that_of_the_core_on_the_module():
    linear = nn.Linear(16, 3, bias=False)
    nn.init.eye_(linear.weight)
    classifier, x = smoothed(nn.Sequential(nn.Flatten(), linear), n0=40, scale=3.0), inputs(20)
    label, radius = classifier.certify(x, n=500)
    f, sizes = as_jax(classifier.model), {"n0": 40, "n": 500, "alpha": 0.01}
    expected = jaxsmooth.certify(f, jaxsmooth.Gaussian(3.0), classifier.key, x, ids=input_ids(x), **sizes)
    np.testing.assert_array_equal(label, expected.label)
    np.testing.assert_array_equal(radius, expected.radius)
    assert isinstance(classifier, RandomizedSmoothingMixin)
    assert -1 in label
    assert (label >= 0).any()


def test_an_equivalent_flax_module_gets_the_same_noise_and_votes():
    torch.manual_seed(0)
    linears = nn.Linear(16, 8), nn.Linear(8, 3)
    classifier, x = smoothed(nn.Sequential(nn.Flatten(), linears[0], nn.ReLU(), linears[1])), inputs(20)
    module = linen.Sequential([lambda v: v.reshape(len(v), -1), linen.Dense(8), linen.relu, linen.Dense(3)])
    layers = {
        f"layers_{i}": {"kernel": jnp.asarray(layer.weight.detach().T), "bias": jnp.asarray(layer.bias.detach())}
        for i, layer in zip((1, 3), linears, strict=True)
    }
    f = Partial(module.apply, {"params": layers})
    key, sizes = jaxsmooth.decision_keys(classifier.key)[1], {"n": 500, "ids": input_ids(x)}
    by_flax, by_torch = (
        jaxsmooth.count_votes(g, jaxsmooth.Gaussian(0.5), key, x, **sizes) for g in (f, as_jax(classifier.model))
    )
    by_class = classifier._count_votes(key, x, input_ids(x), 500, 32, False)
    np.testing.assert_array_equal(by_class, by_torch)
    # Of 10,000 votes, one may flip whose two best scores are as close as the two frameworks' rounding.
    assert np.abs(np.asarray(by_flax) - by_torch).sum() <= 4


def test_noise_comes_before_preprocessing_and_the_radius_is_in_units_of_x():
    """Scaling the inputs, the noise and the standardisation together scales the radii and nothing else."""
    x = inputs(20)
    label, radius = smoothed().certify(x, 500)
    scaled = smoothed(scale=128.0, preprocessing=(0.0, 256.0)).certify(256 * x, 500)
    assert (label >= 0).any()
    # Another input meets other noise: the radii agree as two estimates from 500 votes do, not to the bit.
    np.testing.assert_allclose(scaled[1] / 256, radius, atol=0.35)
    assert np.corrcoef(scaled[1], radius)[0, 1] > 0.9


@pytest.mark.parametrize("y", [labels(), labels()[:, None], np.eye(3)[labels()], torch.tensor(labels())])
def test_losses_and_gradients_are_those_of_torch(y):
    classifier, x = smoothed(preprocessing=(0.5, 2.0)), inputs()
    target = torch.tensor(labels())

    def loss(leaf, reduction="mean"):
        return nn.functional.cross_entropy(classifier.model((leaf - 0.5) / 2), target, reduction=reduction)

    expected = loss(torch.tensor(x), "none").detach().numpy()
    np.testing.assert_allclose(classifier.compute_loss(x, y), expected, rtol=1e-5)
    np.testing.assert_allclose(classifier.compute_loss(x, y, reduction="mean"), expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(classifier.compute_losses(x, y, reduction="sum")["total"], expected.sum(), rtol=1e-5)
    scores = classifier.model(torch.tensor((x - 0.5) / 2)).detach()
    np.testing.assert_allclose(classifier.compute_loss_from_predictions(scores, y), expected, rtol=1e-5)
    gradient = classifier.loss_gradient(x, y)
    assert (gradient.dtype, gradient.shape) == (np.float32, x.shape)
    np.testing.assert_allclose(gradient, torch_gradient(loss, x), rtol=1e-4, atol=1e-7)


def test_class_gradients_are_those_of_torch():
    classifier, x = smoothed(), inputs()
    expected = np.stack([torch_gradient(lambda leaf, c=c: classifier.model(leaf)[:, c].sum(), x) for c in range(3)], 1)
    np.testing.assert_allclose(classifier.class_gradient(x), expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(classifier.class_gradient(x, 2), expected[:, 2:], rtol=1e-5, atol=1e-7)
    own = expected[np.arange(6), labels()][:, None]
    np.testing.assert_allclose(classifier.class_gradient(x, labels()), own, rtol=1e-5, atol=1e-7)


LOSSES = [
    (nn.CrossEntropyLoss(), None, lambda s: s.softmax(1)),
    (nn.NLLLoss(), nn.LogSoftmax(1), torch.exp),
    (nn.BCELoss(), nn.Softmax(1), lambda s: s),
]


@pytest.mark.parametrize(("loss", "last", "read"), LOSSES)
def test_sampled_gradients_differentiate_the_averaged_probability(loss, last, read):
    classifier, x = smoothed(network(last=last), loss, preprocessing=(0.5, 2.0), sample_size=20), inputs()
    samples = list(classifier._gradient_samples(x))
    noise = np.concatenate([np.asarray(noisy)[np.asarray(rows) < 6] for noisy, rows in samples]).reshape(6, 20, *SHAPE)
    noise -= x[:, None]

    def average(leaf):
        noisy = (leaf[:, None] + torch.tensor(noise)).reshape(-1, *SHAPE)
        return read(classifier.model((noisy - 0.5) / 2)).reshape(6, 20, 3).mean(1)

    def objective(leaf):
        return -average(leaf)[torch.arange(6), torch.tensor(labels())].log().mean()

    expected = torch_gradient(objective, x)
    np.testing.assert_allclose(classifier.loss_gradient(x, labels(), sampling=True), expected, rtol=2e-3, atol=1e-6)
    by_class = np.stack([torch_gradient(lambda leaf, c=c: average(leaf)[:, c].sum(), x) for c in range(3)], 1)
    np.testing.assert_allclose(classifier.class_gradient(x, sampling=True), by_class, rtol=2e-3, atol=1e-6)
    classifier.sampling = True
    np.testing.assert_array_equal(
        classifier.loss_gradient(x, labels()), classifier.loss_gradient(x, labels(), sampling=True)
    )


@pytest.mark.parametrize(("loss", "last"), [(nn.BCEWithLogitsLoss(), None), (nn.BCELoss(), nn.Sigmoid())])
def test_one_output_is_two_classes(loss, last):
    classifier, x = smoothed(network(1, last), loss, nb_classes=2), inputs(20)
    outputs = classifier.model(torch.tensor(x)).detach().numpy()[:, 0]
    above = outputs > (0.0 if last is None else 0.5)
    certain = smoothed(classifier.model, loss, nb_classes=2, scale=1e-4)
    np.testing.assert_array_equal(certain.predict(x).argmax(1), above)
    y = above.astype(int)
    expected = loss(torch.tensor(outputs), torch.tensor(y.astype(np.float32))).item()
    assert classifier.compute_loss(x, y, reduction="mean") == pytest.approx(expected, rel=1e-5)
    assert classifier.class_gradient(x, y).shape == (20, 1, *SHAPE)
    with pytest.raises(ValueError, match="a model with one output needs BCELoss or BCEWithLogitsLoss"):
        smoothed(network(1), nn.MSELoss(), nb_classes=2).predict(x)


def test_a_function_or_a_loss_of_another_reduction_works_and_stays_as_it_was():
    x, y = inputs(), labels()
    expected = smoothed().compute_loss(x, y)
    for loss in (nn.functional.cross_entropy, nn.CrossEntropyLoss(reduction="sum")):
        classifier = smoothed(loss=loss)
        np.testing.assert_allclose(classifier.compute_loss(x, y), expected, rtol=1e-6)
        assert getattr(loss, "reduction", "sum") == "sum"

    def squared(outputs, rows):
        return ((outputs - rows) ** 2).sum()

    scores = smoothed().model(torch.tensor(x)).detach().numpy()
    by_hand = ((scores - np.eye(3)[y]) ** 2).sum(1)
    np.testing.assert_allclose(smoothed(loss=squared).compute_loss(x, y), by_hand, rtol=1e-5)


def blobs(number=600):
    """Three classes around three corners."""
    rng, y = np.random.default_rng(0), np.arange(number) % 3
    x = rng.normal(size=(number, *SHAPE)).astype(np.float32) * 0.3
    x[np.arange(number), 0, y, y] += 3
    return x, y


def trainable(**changes):
    model = network()
    return smoothed(model, optimizer=torch.optim.Adam(model.parameters(), 0.02), **changes)


@pytest.mark.parametrize("way", ["arrays", "loader", "art"])
def test_training_learns_from_every_source(way):
    classifier, (x, y) = trainable(), blobs()
    steps = []
    scheduler = SimpleNamespace(step=lambda: steps.append(1))
    if way == "arrays":
        classifier.fit(x, y, batch_size=64, nb_epochs=5, drop_last=True, scheduler=scheduler)
    elif way == "loader":
        loader = DataLoader(TensorDataset(torch.tensor(x), torch.tensor(y)), batch_size=64, shuffle=True)
        classifier.fit_generator(loader, nb_epochs=5, scheduler=scheduler)
    else:
        rng = np.random.default_rng(0)

        class Generator:
            size, batch_size = 600, 64

            def get_batch(self):
                rows = rng.integers(0, 600, 64)
                return x[rows], np.eye(3)[y[rows]]

        classifier.fit_generator(Generator(), nb_epochs=5, scheduler=scheduler)
    assert len(steps) == 5
    label, radius = classifier.certify(x[:60], 200)
    assert (label == y[:60]).mean() > 0.9
    assert radius.mean() > 0.5


def test_training_sees_the_noise_that_certification_uses():
    seen, classifier = [], trainable(preprocessing=(1.0, 4.0), scale=2.0)
    x = np.zeros((500, *SHAPE), np.float32)
    classifier.model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone().numpy()))
    classifier.fit(x, np.zeros(500, int), batch_size=500, nb_epochs=2)
    classifier.certify(x, 500)
    for rows in (seen[0], seen[1], seen[-1]):
        # 8,000 normals: an alarm at 6 standard errors is false with probability below 1e-8.
        assert abs(4 * rows.mean() + 1) < 6 * 2 / np.sqrt(8000)
        assert abs(4 * rows.std() - 2) < 6 * 2 / np.sqrt(16000)
    assert (seen[0] != seen[1]).all()


class Doubles:
    """A defence that works in float64 and says how often it was called."""

    def __init__(self, apply_fit=True, apply_predict=True):
        self.apply_fit, self.apply_predict, self.calls = apply_fit, apply_predict, 0

    def __call__(self, x, y=None):
        self.calls += 1
        return np.float64(x) * 2, y

    def estimate_gradient(self, _, grad):
        return grad * 2


def test_defences_apply_in_order_where_they_say():
    x, y = inputs(), labels()
    plain, doubled = smoothed(), smoothed(preprocessing_defences=[Doubles(), Doubles()], preprocessing=(1.0, 2.0))
    np.testing.assert_allclose(doubled.compute_loss(x, y), plain.compute_loss((4 * x - 1) / 2, y), rtol=1e-5)
    np.testing.assert_allclose(
        doubled.loss_gradient(x, y), 2 * plain.loss_gradient((4 * x - 1) / 2, y), rtol=1e-4, atol=1e-7
    )
    only_fit = Doubles(apply_predict=False)
    np.testing.assert_array_equal(smoothed(preprocessing_defences=only_fit).certify(x, 50), plain.certify(x, 50))
    assert only_fit.calls == 0
    trainable(preprocessing_defences=only_fit).fit(x, y, nb_epochs=1)
    assert only_fit.calls == 1


@pytest.mark.parametrize("blank", [0.0, np.nan])
def test_a_postprocessor_that_blanks_rows_makes_the_class_abstain(blank):
    class Blank:
        apply_fit, apply_predict = False, True

        def __call__(self, preds):
            return np.full_like(preds, blank)

    classifier = smoothed(postprocessing_defences=Blank())
    assert (classifier.certify(inputs(), 50)[0] == -1).all()
    assert (classifier.predict(inputs(), is_abstain=False) == 0).all()


def test_a_network_that_writes_to_its_input_changes_nobody_s_array():
    classifier = smoothed(nn.Sequential(nn.ReLU(inplace=True), network()))
    x = inputs()
    before = x.copy()
    classifier.certify(x, 20)
    classifier.loss_gradient(x, labels())
    classifier.compute_loss(x, labels())
    np.testing.assert_array_equal(x, before)


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


@pytest.mark.parametrize("again", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))], ids=["deepcopy", "pickle"])
def test_copies_are_complete_and_share_nothing(again):
    classifier, x = trainable(), inputs()
    other = again(classifier)
    np.testing.assert_array_equal(other.certify(x, 100), classifier.certify(x, 100))
    before = classifier.compute_loss(x, labels())
    other.fit(x, labels(), nb_epochs=1)
    assert (other.compute_loss(x, labels()) != before).any()
    np.testing.assert_array_equal(classifier.compute_loss(x, labels()), before)


def test_a_last_batch_of_one_under_batch_norm_is_explained():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    classifier = smoothed(model, optimizer=torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(ValueError, match="drop_last=True leaves it out"):
        classifier.fit(inputs(5), labels(5), batch_size=4, nb_epochs=1)
    classifier.fit(inputs(5), labels(5), batch_size=4, nb_epochs=1, drop_last=True)


def test_no_inputs():
    classifier, x = smoothed(), np.zeros((0, *SHAPE))
    assert [a.shape for a in classifier.certify(x, 10)] == [(0,), (0,)]
    assert classifier.predict(x).shape == (0, 3)
    assert classifier.loss_gradient(x, []).shape == (0, *SHAPE)
    assert classifier.class_gradient(x).shape == (0, 3, *SHAPE)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "net"}, TypeError, r"model must be a torch.nn.Module, got str"),
        ({"loss": "ce"}, TypeError, "loss must be a PyTorch loss"),
        ({"loss": nn.CrossEntropyLoss}, TypeError, "loss must be a PyTorch loss"),
        ({"optimizer": 0.1}, TypeError, r"optimizer must be a torch.optim.Optimizer"),
        ({"nb_classes": 1}, ValueError, "nb_classes must be an integer"),
        ({"input_shape": (1, 0)}, ValueError, "input_shape must be an integer"),
        ({"clip_values": (1.0, 0.0)}, ValueError, "clip_values must be"),
        ({"device_type": "gpuu"}, ValueError, "device_type must be 'gpu', 'cpu'"),
        ({"preprocessing": (0.0, 0.0)}, ValueError, "standard deviation in preprocessing must be positive"),
        ({"preprocessing": ([1.0, 2.0], 1.0)}, ValueError, "has 2 entries, which no axis"),
        ({"preprocessing_defences": [np.abs]}, TypeError, "a preprocessing defence must have"),
        ({"postprocessing_defences": 3}, TypeError, "a postprocessing defence must have apply_predict"),
        ({"alpha": 0.0}, ValueError, "alpha must be a number"),
        ({"scale": -1.0}, ValueError, "scale must be positive"),
        ({"sample_size": 0}, ValueError, "sample_size must be an integer"),
    ],
)
def test_bad_settings_are_refused_by_name(changes, error, message):
    with pytest.raises(error, match=message):
        smoothed(**changes)


def test_bad_calls_are_refused_by_name():
    classifier, x, y = smoothed(), inputs(), labels()
    for call in (classifier.predict, lambda x: classifier.certify(x, 10), lambda x: classifier.loss_gradient(x, y)):
        with pytest.raises(ValueError, match=r"x must have shape \[N, 1, 4, 4\]"):
            call(x[0])
    with pytest.raises(ValueError, match="class indices from 0 to 2"):
        classifier.loss_gradient(x, y + 1)
    with pytest.raises(ValueError, match="label must be an integer in"):
        classifier.class_gradient(x, 3)
    with pytest.raises(ValueError, match="reduction must be one of none, mean, sum"):
        classifier.compute_loss(x, y, reduction="max")
    with pytest.raises(ValueError, match=r"pred must have shape \[N, 3\]"):
        classifier.compute_loss_from_predictions(x[:, 0, 0], y)
    with pytest.raises(ValueError, match="an optimizer is needed to train"):
        classifier.fit(x, y)
    with pytest.raises(TypeError, match="unexpected keyword arguments: nb_epoch"):
        trainable().fit(x, y, nb_epoch=1)
    with pytest.raises(TypeError, match="unexpected keyword arguments: is_abstian"):
        classifier.predict(x, is_abstian=True)
    with pytest.raises(ValueError, match=r"the model must return \[N, 4\] for nb_classes"):
        smoothed(nb_classes=4).predict(x)
    with pytest.raises(ValueError, match="generator gave no batch"):
        trainable().fit_generator(iter([]), nb_epochs=1)
    with pytest.raises(TypeError, match="generator must be iterable"):
        trainable().fit_generator(3)


def test_reduce_labels():
    rows = np.eye(3)[labels()]
    classifier = smoothed()
    np.testing.assert_array_equal(classifier.reduce_labels(rows), labels())
    assert torch.equal(classifier.reduce_labels(torch.tensor(rows)), torch.tensor(labels()))
    assert classifier.reduce_labels(labels()) is not None
    assert smoothed(loss=nn.MSELoss()).reduce_labels(rows) is rows


def test_modules_of_other_dtypes_and_inputs_of_every_kind():
    x = inputs()
    expected = smoothed().predict(x)
    for kind in (x.astype(np.float64), torch.tensor(x), jnp.asarray(x), x.tolist()):
        np.testing.assert_array_equal(smoothed().predict(kind), expected)
    np.testing.assert_array_equal(smoothed(network().double()).predict(x), expected)
    for sampling in (True, False):
        for gradient in (smoothed().loss_gradient, smoothed().class_gradient):
            tensor = gradient(torch.tensor(x), labels(), sampling=sampling)
            assert isinstance(tensor, torch.Tensor)
            np.testing.assert_array_equal(tensor, gradient(x, labels(), sampling=sampling))
    assert smoothed(network().bfloat16()).loss_gradient(x, labels()).dtype == np.float32


PEAK = """
import resource, sys, numpy as np
from torch import nn
from bridges.pytorch import PyTorchRandomizedSmoothing
model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.Flatten(), nn.Linear(256, 3))
classifier = PyTorchRandomizedSmoothing(model, nn.CrossEntropyLoss(), (3, 32, 32), 3, seed=0)
classifier.certify(np.zeros((1, 3, 32, 32)), int(sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def test_memory_does_not_grow_with_n():
    few, many = (
        float(subprocess.run([sys.executable, "-c", PEAK, n], capture_output=True, check=True).stdout)
        for n in ("1000", "100000")
    )
    assert many - few < 100
