"""Every framework's class: the core's certificates, training that learns, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsmooth
from bridges.inputs import input_ids
from bridges.smoothing import RandomizedSmoothingMixin
from tests.bridges.frameworks import FRAMEWORKS
from tests.bridges.reference import SHAPE, Keeps, calls, inputs, labels, leave_in_jax, reference, watch_scores
from tests.memory import growth, needs_proc


class Rounds:
    """A defence that rounds, in JAX and in NumPy."""

    apply_fit = apply_predict = True

    def __call__(self, x, y=None):
        return x.round(1), y

    def estimate_gradient(self, _, grad):
        return grad


@pytest.mark.parametrize("defence", [None, Rounds()], ids=["plain", "defended"])
def test_certify_is_that_of_the_core_on_the_model(framework, defence):
    model, x = framework.network(), inputs(20)
    classifier = framework.smoothed(model, n0=40, scale=3.0, preprocessing_defences=defence, preprocessing=(0.5, 2.0))
    label, radius = classifier.certify(x, n=500)
    network = framework.as_jax(model)

    def f(x):
        return network(((x if defence is None else defence(x)[0]) - 0.5) / 2)

    sizes = {"n0": 40, "n": 500, "alpha": 0.01}
    expected = jaxsmooth.certify(f, jaxsmooth.Gaussian(3.0), classifier.key, x, ids=input_ids(x), **sizes)
    np.testing.assert_array_equal(label, expected.label)
    np.testing.assert_array_equal(radius, expected.radius)
    assert isinstance(classifier, RandomizedSmoothingMixin)
    assert -1 in label
    assert (label >= 0).any()
    # Another key, or noise that does not belong to the content of an input, would be seen.
    for key, ids in ((jax.random.key(7), input_ids(x)), (classifier.key, None)):
        other = jaxsmooth.certify(f, jaxsmooth.Gaussian(3.0), key, x, ids=ids, **sizes)
        assert (other.radius != expected.radius).any()


def test_all_frameworks_see_the_same_noise():
    x, key = inputs(20), jax.random.key(3)
    votes = [
        500 * framework.smoothed(seed=key, sample_size=500, output="frequencies").predict(x) for framework in FRAMEWORKS
    ]
    noise, stream = jaxsmooth.Gaussian(0.5), jaxsmooth.stream_key(key, jaxsmooth.Stream.PREDICTION)
    by_jax = jaxsmooth.count_votes(reference, noise, stream, x, n=500, ids=input_ids(x))
    for counts in votes:
        # Of 10,000 votes, one may flip whose two best scores are as close as the frameworks' rounding.
        assert np.abs(counts - votes[0]).sum() <= 4
        assert np.abs(counts - np.asarray(by_jax)).sum() <= 4


def test_noise_comes_before_preprocessing_and_the_radius_is_in_units_of_x(framework):
    """Scaling the inputs, the noise and the standardisation together scales the radii and nothing else."""
    x = inputs(20)
    label, radius = framework.smoothed().certify(x, 500)
    scaled = framework.smoothed(scale=128.0, preprocessing=(0.0, 256.0)).certify(256 * x, 500)
    assert (label >= 0).any()
    # Another input meets other noise: the radii agree as two estimates from 500 votes do, not to the bit.
    np.testing.assert_allclose(scaled[1] / 256, radius, atol=0.35)
    assert np.corrcoef(scaled[1], radius)[0, 1] > 0.9


def blobs(number=600):
    """Three classes around three corners."""
    rng, y = np.random.default_rng(0), np.arange(number) % 3
    x = rng.normal(size=(number, *SHAPE)).astype(np.float32) * 0.3
    x[np.arange(number), 0, y, y] += 3
    return x, y


@pytest.mark.parametrize("way", ["arrays", "dataset", "art", "pairs"])
def test_training_learns_from_every_source(framework, way):
    classifier, (x, y) = framework.smoothed(trainable=True), blobs()
    steps = []
    scheduler = framework.scheduler(steps)
    if way == "arrays":
        classifier.fit(x, y, batch_size=64, nb_epochs=5, drop_last=True, scheduler=scheduler)
    elif way == "dataset":
        classifier.fit_generator(framework.dataset(x, y), nb_epochs=5, scheduler=scheduler)
    elif way == "pairs":
        pairs = [(x[i : i + 64], y[i : i + 64]) for i in range(0, 600, 64)]
        classifier.fit_generator(pairs, nb_epochs=5, scheduler=scheduler)
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


def test_training_sees_the_noise_that_certification_uses(framework):
    model, seen = framework.watch(framework.network())
    classifier = framework.smoothed(model, trainable=True, preprocessing=(1.0, 4.0), scale=2.0)
    x = np.zeros((500, *SHAPE), np.float32)
    classifier.fit(x, np.zeros(500, int), batch_size=500, nb_epochs=2)
    classifier.certify(x, 500)
    seen = calls(seen)
    fitted = [rows for rows in seen if len(rows) == 500 and rows.any()]
    for rows in (fitted[0], fitted[1], seen[-2]):  # zeros may fill up the last batch
        # At least 1,000 normals: an alarm at 6 standard errors is false with probability below 1e-8.
        assert abs(4 * rows.mean() + 1) < 6 * 2 / np.sqrt(rows.size)
        assert abs(4 * rows.std() - 2) < 6 * 2 / np.sqrt(2 * rows.size)
    assert (fitted[0] != fitted[1]).all()


def test_votes_on_arrays_left_in_jax_are_those_on_numpy_arrays(framework, monkeypatch):
    classifier, x = framework.smoothed(preprocessing=(1.0, 2.0), postprocessing_defences=Keeps()), inputs()
    expected = classifier.certify(x, 500)
    leave_in_jax(framework.backend, monkeypatch)
    seen = watch_scores(framework.backend, monkeypatch)
    np.testing.assert_array_equal(classifier.certify(x, 500), expected)
    assert seen
    assert all(isinstance(x, jax.Array) for x in seen)


def test_the_model_comes_out_as_it_went_in(framework):
    model, x, y = framework.with_dropout(), inputs(), labels()
    classifier = framework.smoothed(model)
    before = framework.variables(classifier)
    classifier.predict(x)
    evaluated = classifier.loss_gradient(x, y)
    assert (classifier.loss_gradient(x, y, training_mode=True) != evaluated).any()
    assert (classifier.compute_loss(x, y, reduction="none") > 0).all()
    classifier.class_gradient(x, sampling=True)
    classifier.class_gradient(x, training_mode=True)
    classifier.predict(x, training_mode=True)
    np.testing.assert_array_equal(classifier.loss_gradient(x, y), evaluated)
    for value, expected in zip(framework.variables(classifier), before, strict=True):
        np.testing.assert_array_equal(value, expected)


def test_no_inputs(framework):
    classifier, x = framework.smoothed(), np.zeros((0, *SHAPE))
    assert [a.shape for a in classifier.certify(x, 10)] == [(0,), (0,)]
    assert classifier.predict(x).shape == (0, 3)
    assert classifier.loss_gradient(x, []).shape == (0, *SHAPE)
    assert classifier.class_gradient(x).shape == (0, 3, *SHAPE)
    assert classifier.compute_loss(x, []).shape == (0,)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "net"}, TypeError, "model must be a"),
        ({"optimizer": 0.1}, TypeError, "optimizer must be a"),
        ({"nb_classes": 1}, ValueError, "nb_classes must be an integer"),
        ({"input_shape": (1, 0)}, ValueError, "input_shape must be an integer"),
        ({"input_shape": ()}, ValueError, "input_shape must have at least one axis"),
        ({"clip_values": (1.0, 0.0)}, ValueError, "clip_values must be"),
        ({"preprocessing": (0.0, 0.0)}, ValueError, "standard deviation in preprocessing must be positive"),
        ({"preprocessing": ([1.0, 2.0], 1.0)}, ValueError, "has 2 entries, which no axis"),
        ({"preprocessing_defences": [np.abs]}, TypeError, "a preprocessing defence must have"),
        ({"postprocessing_defences": 3}, TypeError, "a postprocessing defence must have apply_predict"),
        ({"alpha": 0.0}, ValueError, "alpha must be a number"),
        ({"scale": -1.0}, ValueError, "scale must be positive"),
        ({"sample_size": 0}, ValueError, "sample_size must be an integer"),
        ({"loss": 3}, TypeError, "loss"),
        ({"loss": np.ndarray}, TypeError, "loss"),
    ],
)
def test_bad_settings_are_refused_by_name(framework, changes, error, message):
    with pytest.raises(error, match=message):
        framework.smoothed(**changes)


def test_bad_calls_are_refused_by_name(framework):
    classifier, x, y = framework.smoothed(), inputs(), labels()
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
    with pytest.raises(ValueError, match=r"an optimizer .*is needed to train"):
        classifier.fit(x, y)
    trainable = framework.smoothed(trainable=True)
    with pytest.raises(TypeError, match="unexpected keyword arguments: nb_epoch"):
        trainable.fit(x, y, nb_epoch=1)
    classifier.predict(x)  # the keywords of a first call might be checked by the test of the network only
    for typo in (True, False, None):
        with pytest.raises(TypeError, match="unexpected keyword arguments: is_abstian"):
            classifier.predict(x, is_abstian=typo)
        with pytest.raises(TypeError, match="unexpected keyword arguments: alpha"):
            classifier.certify(x, 100, alpha=typo)
    for call in (
        lambda **flags: classifier.certify(x, 100, **flags),
        lambda **flags: classifier.loss_gradient(x, y, **flags),
        lambda **flags: classifier.class_gradient(x, **flags),
        lambda **flags: classifier.compute_loss(x, y, **flags),
    ):
        with pytest.raises(TypeError, match="training_mode must be True or False, got 'no'"):
            call(training_mode="no")
    with pytest.raises(TypeError, match="sampling must be True or False, got 'no'"):
        classifier.loss_gradient(x, y, sampling="no")
    for call in (lambda c: c.predict(x), lambda c: c.compute_loss(x, y), lambda c: c.certify(x, 10)):
        with pytest.raises(ValueError, match=r"the model must return \[N, 4\] for nb_classes"):
            call(framework.smoothed(nb_classes=4))
    with pytest.raises(
        ValueError, match=r"generator must hold pairs .*, got a dict with the keys image, label in batch 0"
    ):
        trainable.fit_generator([{"image": x, "label": y}])
    with pytest.raises(ValueError, match="generator gave no batch"):
        trainable.fit_generator(iter([]), nb_epochs=1)
    with pytest.raises(TypeError, match="generator must be iterable"):
        trainable.fit_generator(3)


def test_models_of_other_dtypes_and_inputs_of_every_kind(framework):
    x = inputs()
    expected = framework.smoothed().predict(x)
    for kind in (x.astype(np.float64), framework.tensor(x), jnp.asarray(x), x.tolist()):
        np.testing.assert_array_equal(framework.smoothed().predict(kind), expected)
    np.testing.assert_array_equal(framework.smoothed(framework.model_of("float64")).predict(x), expected)
    kind = type(framework.tensor(x))
    for sampling in (True, False):
        for gradient in (framework.smoothed().loss_gradient, framework.smoothed().class_gradient):
            tensor = gradient(framework.tensor(x), labels(), sampling=sampling)
            assert isinstance(tensor, kind)
            np.testing.assert_array_equal(tensor, gradient(x, labels(), sampling=sampling))
    for dtype in ("bfloat16", "float16"):
        low = framework.smoothed(framework.model_of(dtype))
        assert low.loss_gradient(x, labels()).dtype == np.float32
        assert low.certify(x, 100)[0].shape == (6,)


@needs_proc
def test_memory_does_not_grow_with_n(framework):
    """All noisy copies would take 983 MB more for the larger n."""
    shape = (3, 32, 32)
    classifier = framework.smoothed(framework.linear(shape), input_shape=shape)
    assert growth(lambda n: classifier.certify(np.zeros((1, *shape)), n), 20_000, 100_000) < 100


def test_repr_shows_the_settings(framework):
    text = repr(framework.smoothed(clip_values=(0, 1)))
    assert text.startswith(f"{framework.cls.__name__}(model=")
    for setting in ("nb_classes=3", "input_shape=(1, 4, 4)", "sample_size=50", "scale=0.5", "clip_values=float32[2]"):
        assert setting in text


def test_art_s_private_helpers_that_people_call(framework):
    classifier, x = framework.smoothed(), inputs(1)[0]
    samples = classifier._noisy_samples(x, 2000)
    assert samples.shape == (2000, *x.shape)
    # 32,000 normal numbers of scale 0.5: five standard errors.
    assert abs((samples - x).std() - 0.5) < 5 * 0.5 / np.sqrt(2 * samples.size)
    counts = classifier._prediction_counts(x, 300)
    assert counts.shape == (3,)
    assert counts.sum() == 300
    assert not np.array_equal(classifier._noisy_samples(x, 5), classifier._noisy_samples(x, 5))


def test_unknown_keywords_name_the_known_ones(framework):
    classifier = framework.smoothed(trainable=True)
    with pytest.raises(TypeError, match="unexpected keyword arguments: abstain; there are is_abstain"):
        classifier.predict(inputs(), abstain=False)
    with pytest.raises(TypeError, match=r"unexpected keyword arguments: droplast; there are .*drop_last"):
        classifier.fit(inputs(), labels(), droplast=True)
    with pytest.raises(TypeError, match="validation_data must be None"):
        classifier.fit(inputs(), labels(), validation_data=(inputs(), labels()))
    np.testing.assert_array_equal(classifier.predict(inputs(), y=labels()).shape, (6, 3))
