"""Every framework's class beyond one call: layers, saved states, copies, settings, fresh weights."""

import copy
import pickle

import jax
import numpy as np
import pytest

from tests.bridges.frameworks import FRAMEWORKS
from tests.bridges.reference import inputs, labels, weights


def test_activations_of_every_layer_by_name_and_index(framework):
    classifier, x = framework.smoothed(preprocessing=(0.5, 2.0)), inputs()
    value, (first, second) = ((x - 0.5) / 2).reshape(6, 16), weights()
    steps = [value, value @ first, np.maximum(value @ first, 0), np.maximum(value @ first, 0) @ second]
    assert classifier.layer_names == ["0", "1", "2", "3"]
    for index, expected in enumerate(steps):
        for layer in (index, index - 4, str(index), np.int64(index)):
            activations = classifier.get_activations(x, layer, batch_size=4)
            np.testing.assert_allclose(activations, expected, rtol=1e-4, atol=1e-6)
    tensor = classifier.get_activations(x, 1, framework=True)
    assert isinstance(tensor, type(framework.tensor(x)))
    np.testing.assert_allclose(tensor.detach() if framework.name == "pytorch" else tensor, steps[1], 1e-4)
    assert classifier.get_activations(x[:0], 1).shape == (0, 8)
    np.testing.assert_array_equal(classifier.predict(x), framework.smoothed(preprocessing=(0.5, 2.0)).predict(x))


def test_gradients_of_losses_between_activations(framework):
    classifier, x, y = framework.smoothed(preprocessing=(0.5, 2.0)), inputs(), inputs(seed=1)

    def distance(x):
        difference = (((x - 0.5) / 2) - ((y - 0.5) / 2)).reshape(6, 16) @ weights()[0]
        return (difference**2).sum()

    forms = [
        (framework.squared, distance),
        (lambda difference: framework.squared(difference, 0.0), distance),
        (lambda difference, p: framework.squared(difference, 0.0) ** (1 / p), lambda x: distance(x) ** 0.5),
    ]
    for loss, expected in forms:
        gradient = classifier.custom_loss_gradient(loss, x, y, "1")
        np.testing.assert_allclose(gradient, jax.grad(expected)(x), rtol=1e-4, atol=1e-6)
    assert isinstance(classifier.custom_loss_gradient(loss, framework.tensor(x), y, 1), type(framework.tensor(x)))
    assert classifier.custom_loss_gradient(loss, x[:0], y[:0], 1).shape == x[:0].shape
    with pytest.raises(ValueError, match="x and y must hold the same number of inputs, got 6 and 5"):
        classifier.custom_loss_gradient(framework.squared, x, y[1:], "1")


def test_labels_are_reduced_to_what_the_loss_takes(framework):
    rows, classifier = np.eye(3)[labels()], framework.smoothed()
    np.testing.assert_array_equal(classifier.reduce_labels(rows), labels())
    reduced = classifier.reduce_labels(framework.tensor(rows))
    assert isinstance(reduced, type(framework.tensor(rows)))
    np.testing.assert_array_equal(reduced, labels())
    np.testing.assert_array_equal(classifier.reduce_labels(labels()), labels())
    assert framework.smoothed(loss="rows").reduce_labels(rows) is rows


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
def test_layers_that_are_not_there(framework, layer, error, message):
    with pytest.raises(error, match=message):
        framework.smoothed().get_activations(inputs(), layer)


def test_what_is_saved_is_loaded(framework, tmp_path):
    classifier, x, y = framework.smoothed(trainable=True), inputs(), labels()
    classifier.fit(x, y, nb_epochs=1)
    classifier.save("net", tmp_path / "new" / "folder")
    assert tuple(sorted(p.name for p in (tmp_path / "new" / "folder").iterdir())) == framework.saved
    other = framework.smoothed(trainable=True)
    assert (other.compute_loss(x, y) != classifier.compute_loss(x, y)).any()
    other.load("net", tmp_path / "new" / "folder")
    np.testing.assert_array_equal(other.compute_loss(x, y), classifier.compute_loss(x, y))
    # The optimizer's state came too: the next step is the same under the same noise, once the other one has drawn as
    # often, for a batch that is left out.
    other.fit(x, y, batch_size=len(x) + 1, nb_epochs=1, drop_last=True)
    np.testing.assert_array_equal(other.compute_loss(x, y), classifier.compute_loss(x, y))
    for one in (classifier, other):
        one.fit(x, y, nb_epochs=1)
    np.testing.assert_allclose(other.compute_loss(x, y), classifier.compute_loss(x, y), rtol=1e-5)


def test_loading_changes_all_or_nothing(framework, tmp_path):
    classifier, x, y = framework.smoothed(trainable=True), inputs(), labels()
    classifier.fit(x, y, nb_epochs=1)
    classifier.save("net", tmp_path)
    wide = framework.smoothed(framework.network(2), nb_classes=2, trainable=True)
    wide.fit(x, y % 2, nb_epochs=1)
    wide.save("wide", tmp_path)
    before = classifier.compute_loss(x, y)
    for name in framework.saved:
        mixed = tmp_path / "mixed"
        mixed.mkdir(exist_ok=True)
        for other in framework.saved:
            source = tmp_path / (other if other != name else other.replace("net", "wide"))
            (mixed / other).write_bytes(source.read_bytes())
        if name == framework.optimizer_file and framework.name == "pytorch":
            continue  # PyTorch takes any state with as many parameters
        with pytest.raises((ValueError, RuntimeError)):
            classifier.load("net", mixed)
        np.testing.assert_array_equal(classifier.compute_loss(x, y), before)
    with pytest.raises(FileNotFoundError):
        classifier.load("nothing", tmp_path)


def test_save_goes_to_the_working_directory_by_default(framework, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    framework.smoothed().save("net")
    assert [path.name for path in tmp_path.iterdir()] == [framework.model_file]


@pytest.mark.parametrize("again", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("used", [False, True])
def test_copies_are_complete_and_share_nothing(framework, again, used):
    classifier, x, y = framework.smoothed(trainable=True), inputs(), labels()
    if used:
        classifier.fit(x, y, nb_epochs=1)
    other = again(classifier)
    np.testing.assert_array_equal(other.certify(x, 100), classifier.certify(x, 100))
    before = classifier.compute_loss(x, y)
    other.fit(x, y, nb_epochs=1)
    assert (other.compute_loss(x, y) != before).any()
    np.testing.assert_array_equal(classifier.compute_loss(x, y), before)
    classifier.fit(x, y, nb_epochs=1)
    np.testing.assert_allclose(other.compute_loss(x, y), classifier.compute_loss(x, y), rtol=1e-5)


def test_reset_draws_every_weight_anew(framework):
    classifier = framework.smoothed(trainable=True)
    classifier.fit(inputs(), labels(), nb_epochs=1)
    states = [framework.variables(classifier)]
    for _ in range(2):
        classifier.reset()
        states.append(framework.variables(classifier))
    for one, two, three in zip(*states, strict=True):
        assert (one != two).any()
        assert (two != three).any()
    classifier.fit(inputs(), labels(), nb_epochs=1)


def test_clone_for_refitting_shares_settings_and_nothing_else(framework):
    classifier = framework.smoothed(trainable=True, n0=7, scale=0.3)
    clone = classifier.clone_for_refitting()
    assert type(clone) is type(classifier)
    assert isinstance(clone.optimizer, framework.optimizer_kind)
    assert clone.optimizer is not classifier.optimizer
    assert (clone.n0, clone.scale, clone.sample_size, clone.alpha) == (7, 0.3, 50, 0.01)
    own, other = framework.variables(classifier), framework.variables(clone)
    assert all((a != b).any() for a, b in zip(own, other, strict=True))
    clone.fit(inputs(), labels(), nb_epochs=1)
    for value, expected in zip(framework.variables(classifier), own, strict=True):
        np.testing.assert_array_equal(value, expected)


def test_parameters_round_trip_and_change_all_or_none(framework):
    classifier, x = framework.smoothed(trainable=True, preprocessing=(0.5, 2.0)), inputs()
    before, label = classifier.get_params(), classifier.certify(x, 100)
    classifier.set_params(**before)
    plain = {"clip_values", "input_shape", "sample_size", "scale", "alpha", "preprocessing"}
    assert all(classifier.get_params()[name] is before[name] or name in plain for name in before)
    np.testing.assert_array_equal(classifier.certify(x, 100), label)
    with pytest.raises(ValueError, match="alpha must be a number"):
        classifier.set_params(scale=3.0, sample_size=9, alpha=2.0)
    with pytest.raises(ValueError, match=r"unknown parameters \['sigma'\]"):
        classifier.set_params(scale=3.0, sigma=1.0)
    assert (classifier.scale, classifier.sample_size, classifier.alpha) == (0.5, 50, 0.01)
    classifier.set_params(scale=3.0, preprocessing=(0.0, 1.0))
    assert classifier.scale == 3.0
    assert classifier.preprocessing_operations == ()
    classifier.fit(x, labels(), nb_epochs=1)


def test_setting_the_same_parameters_rewinds_nothing(framework):
    def made():
        return framework.smoothed(trainable=True, output="frequencies")

    x, y, plain, other = inputs(), labels(), made(), made()
    expected = [plain.predict(x) for _ in range(3)]
    found = []
    for _ in range(3):
        found.append(other.predict(x))
        other.set_params(**other.get_params())
    np.testing.assert_array_equal(found, expected)
    # One that began to count again would repeat its first prediction, as a new instance of the same seed does.
    np.testing.assert_array_equal(made().predict(x), expected[0])
    assert all((expected[0] != later).any() for later in expected[1:])
    for _ in range(2):  # nor is the noise of training
        plain.fit(x, y, nb_epochs=1)
        other.fit(x, y, nb_epochs=1)
        other.set_params(**other.get_params())
    for one, two in zip(framework.variables(plain), framework.variables(other), strict=True):
        np.testing.assert_array_equal(one, two)


BAD = {
    "alpha": 2.0,
    "scale": -1.0,
    "sample_size": 0,
    "nb_classes": 1,
    "input_shape": (),
    "clip_values": (1.0, 0.0),
    "preprocessing": (0.0, 0.0),
    "preprocessing_defences": [np.abs],
    "postprocessing_defences": 3,
    "optimizer": 0.1,
    "model": "net",
    "loss": 3,
    "loss_object": 3,
    "sigma": 1.0,
    "device_type": "gpux",
    "use_amp": np.array([True, False]),
    "opt_level": 7,
    "channels_first": "no",
    "from_logits": "no",
    "train_step": 3,
}


CASES = [(f, bad) for f in FRAMEWORKS for bad in (None, *BAD) if bad in (None, "sigma", *f.cls.parameters)]


@pytest.mark.parametrize(("framework", "bad"), CASES, ids=[f"{f.name}-{bad}" for f, bad in CASES])
def test_one_bad_value_among_good_ones_changes_nothing(framework, bad):
    settings = {"trainable": True, "preprocessing": (0.5, 2.0), "output": "frequencies"}
    x, classifier, twin = inputs(), framework.smoothed(**settings), framework.smoothed(**settings)
    for one in (classifier, twin):
        one.fit(x, labels(), nb_epochs=1)
        one.predict(x)
    before, weights_before = classifier.get_params(), framework.variables(classifier)
    other = framework.smoothed(trainable=True).get_params()
    good = {name: other[name] for name in ("model", "variables", "optimizer") if name in other}
    good |= {"scale": 3.0, "sample_size": 9, "alpha": 0.02, "clip_values": (0, 2), "preprocessing": (0.0, 1.0)}
    if bad is None:  # what would be seen
        classifier.set_params(**good)
        assert [name for name in good if name != "variables" and classifier.get_params()[name] is before[name]] == []
        assert (classifier.predict(x) != twin.predict(x)).any()
        return
    with pytest.raises((ValueError, TypeError)):
        classifier.set_params(**{**good, bad: BAD[bad]})
    assert [name for name, value in classifier.get_params().items() if value is not before[name]] == []
    for one, two in zip(framework.variables(classifier), weights_before, strict=True):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(classifier.predict(x), twin.predict(x))
    for one in (classifier, twin):
        one.fit(x, labels(), nb_epochs=1)
    np.testing.assert_array_equal(classifier.compute_loss(x, labels()), twin.compute_loss(x, labels()))


def test_a_subclass_keeps_its_own_constructor(framework):
    class Named(framework.cls):
        def __init__(self, name, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.name = name

    plain = framework.smoothed()
    needed = ("model", "variables", "nb_classes", "loss", "loss_object")
    settings = {name: value for name, value in plain.get_params().items() if name in needed}
    named = Named("mine", **settings, input_shape=plain.input_shape, seed=1)
    named.set_params(scale=0.7)
    assert (named.name, named.scale, type(named)) == ("mine", 0.7, Named)


def test_what_is_saved_holds_no_state_of_an_optimizer_of_before(framework, tmp_path):
    if framework.name == "pytorch":
        pytest.skip("its optimizer is saved with every network")
    classifier, x, y = framework.smoothed(trainable=True), inputs(), labels()
    classifier.fit(x, y, nb_epochs=2)
    classifier.save("net", tmp_path)
    assert (tmp_path / framework.optimizer_file).exists()
    classifier = framework.smoothed(trainable=True)
    classifier.save("net", tmp_path)
    assert not (tmp_path / framework.optimizer_file).exists()
    # A trained one that loads it begins as a fresh one does.
    trained, fresh = framework.smoothed(trainable=True), framework.smoothed(trainable=True)
    trained.fit(x, y, nb_epochs=2)
    for one in (trained, fresh):
        one.load("net", tmp_path)
    fresh.fit(x, y, batch_size=len(x) + 1, nb_epochs=2, drop_last=True)  # draws as often, and trains on nothing
    for one in (trained, fresh):
        one.fit(x, y, nb_epochs=2)
    np.testing.assert_allclose(trained.compute_loss(x, y), fresh.compute_loss(x, y), rtol=1e-5)
