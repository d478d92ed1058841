"""The TensorFlow class, beyond what every framework's class does."""

import copy
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf

from bridges.tensorflow import TensorFlowV2RandomizedSmoothing
from tests.bridges.frameworks import TensorFlow
from tests.bridges.reference import SHAPE, inputs, labels, weights

network, smoothed = TensorFlow.network, TensorFlow.smoothed


class Own(keras.layers.Layer):
    """A layer that Keras has not been told of, with variables of its own beside a layer's."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(8)

    def build(self, shape):
        self.dense.build((shape[0], 16))
        self.bare = self.add_weight(shape=(8, 3), initializer="glorot_uniform", name="bare")

    def call(self, x):
        return self.dense(tf.reshape(x, [-1, 16])) @ self.bare


class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.own, self.norm = Own(name="own"), keras.layers.BatchNormalization(name="norm")

    def call(self, x, training=False):
        return self.norm(self.own(x), training=training)


class Module(tf.Module):
    def __init__(self):
        super().__init__()
        self.weights = [tf.Variable(weight) for weight in weights()]

    @tf.function
    def __call__(self, x):
        return tf.nn.relu(tf.reshape(x, [-1, 16]) @ self.weights[0]) @ self.weights[1]


def nested():
    inner = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(8)], name="inner")
    return keras.Sequential([keras.Input(SHAPE), inner, keras.layers.Dense(3, name="head")])


KINDS = [network, nested, Subclassed, Module]


def trainable(model, **changes):
    return smoothed(model, optimizer=keras.optimizers.Adam(0.02), **changes)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_of_model_is_trained_copied_saved_and_reset(kind, tmp_path):
    x, y, classifier = inputs(30), labels(30), trainable(kind())
    before = classifier.compute_loss(x, y)
    classifier.fit(x, y, nb_epochs=3)
    after = classifier.compute_loss(x, y)
    assert (after != before).any()
    for again in (copy.deepcopy(classifier), pickle.loads(pickle.dumps(classifier))):
        np.testing.assert_allclose(again.compute_loss(x, y), after, rtol=1e-5)
        np.testing.assert_array_equal(again.certify(x, 50), classifier.certify(x, 50))
        again.fit(x, y, nb_epochs=1)
    np.testing.assert_array_equal(classifier.compute_loss(x, y), after)
    classifier.save("net", tmp_path)
    values = [v.numpy().copy() for v in classifier.model.trainable_variables]
    classifier.reset()
    for variable, value in zip(classifier.model.trainable_variables, values, strict=True):
        assert (variable.numpy() != value).any()
    assert (classifier.compute_loss(x, y) != after).any()
    classifier.load("net", tmp_path)
    np.testing.assert_allclose(classifier.compute_loss(x, y), after, rtol=1e-5)
    clone = classifier.clone_for_refitting()
    assert (clone.compute_loss(x, y) != after).any()
    clone.fit(x, y, nb_epochs=1)
    np.testing.assert_allclose(classifier.compute_loss(x, y), after, rtol=1e-5)


def test_a_function_is_certified_and_has_no_layers():
    first, second = (tf.constant(weight) for weight in weights())
    classifier = smoothed(lambda x: tf.nn.relu(tf.reshape(x, [-1, 16]) @ first) @ second)
    x = inputs()
    np.testing.assert_array_equal(classifier.certify(x, 200), smoothed().certify(x, 200))
    gradient = classifier.loss_gradient(x, labels())
    np.testing.assert_allclose(gradient, smoothed().loss_gradient(x, labels()), rtol=1e-4, atol=1e-7)
    assert classifier.layer_names is None
    with pytest.raises(ValueError, match="layer must name a layer of a Keras model"):
        classifier.get_activations(x, 0)


@pytest.mark.parametrize("kind", [nested, Subclassed], ids=lambda kind: kind.__name__)
def test_activations_within_models_of_every_kind(kind):
    model, x = kind(), inputs()
    classifier = smoothed(model)
    classifier.predict(x)
    expected = model.layers[0](x)
    for layer in (0, classifier.layer_names[0]):
        np.testing.assert_allclose(classifier.get_activations(x, layer), expected, rtol=1e-5, atol=1e-6)
    assert not any("call" in vars(layer) for layer in model.layers)
    start = keras.Input(SHAPE, name="start")
    functional = smoothed(keras.Model(start, keras.layers.Dense(3)(keras.layers.Flatten()(start))))
    assert functional.layer_names[0] == "start"
    np.testing.assert_array_equal(functional.get_activations(x, "start"), x)


def test_a_train_step_of_the_user_s_gets_noisy_images():
    seen = []

    def step(model, images, targets):
        seen.append((images.numpy(), targets.numpy()))
        model.trainable_variables[0].assign_add(tf.ones((16, 8)))

    classifier = smoothed(train_step=step, scale=2.0)
    classifier.fit(np.zeros((500, *SHAPE)), labels(500), batch_size=500, nb_epochs=2)
    assert len(seen) == 2
    images, targets = seen[0]
    # 8,000 normals: an alarm at 6 standard errors is false with probability below 1e-8.
    assert abs(images.mean()) < 6 * 2 / np.sqrt(8000)
    assert abs(images.std() - 2) < 6 * 2 / np.sqrt(16000)
    assert sorted(targets) == sorted(labels(500))
    assert (seen[1][0] != images).all()


def test_schedulers_get_the_index_of_the_epoch_and_change_the_rate():
    optimizer, epochs = keras.optimizers.SGD(1.0), []

    def scheduler(epoch):
        epochs.append(epoch)
        optimizer.learning_rate.assign(0.0)

    classifier = smoothed(optimizer=optimizer)
    classifier.fit(inputs(), labels(), nb_epochs=1, scheduler=scheduler)
    before = classifier.compute_loss(inputs(), labels())
    classifier.fit(inputs(), labels(), nb_epochs=2, scheduler=scheduler)
    assert epochs == [0, 0, 1]
    np.testing.assert_array_equal(classifier.compute_loss(inputs(), labels()), before)


def test_one_training_graph_for_every_call_and_batch_size():
    traces = []

    class Counted(keras.losses.Loss):
        def call(self, y_true, y_pred):
            traces.append(1)
            return keras.losses.categorical_crossentropy(y_true, y_pred, from_logits=True)

    classifier = trainable(network(), loss=Counted())
    for number in (5, 7, 3):
        classifier.fit(inputs(number), labels(number), batch_size=4, nb_epochs=2)
    assert len(traces) == 1


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("from_logits", [True, False])
def test_every_cross_entropy_is_the_same_loss(sparse, from_logits):
    kind = keras.losses.SparseCategoricalCrossentropy if sparse else keras.losses.CategoricalCrossentropy
    model = network(last=None if from_logits else "softmax")
    for loss in (kind(from_logits=from_logits), kind(from_logits=from_logits, reduction="sum")):
        classifier, x = trainable(model, loss=loss), inputs()
        np.testing.assert_allclose(
            classifier.compute_loss(x, labels()), smoothed().compute_loss(x, labels()), rtol=1e-4
        )
        np.testing.assert_allclose(
            classifier.loss_gradient(x, labels(), sampling=True),
            smoothed().loss_gradient(x, labels(), sampling=True),
            rtol=1e-3,
            atol=1e-6,
        )
        before = classifier.compute_loss(x, labels(), reduction="mean")
        copied = copy.deepcopy(classifier)
        copied.fit(x, labels(), nb_epochs=20)
        assert copied.compute_loss(x, labels(), reduction="mean") < before


def test_a_loss_that_does_not_say_reads_the_last_layer():
    """A sampled gradient shows how outputs are read."""

    def gradient(model, loss):
        return smoothed(model, loss).class_gradient(inputs(), sampling=True)

    as_logits, as_probabilities = gradient(network(), "logits"), gradient(network(), "probabilities")
    assert np.abs(as_logits - as_probabilities).max() > 0.01
    np.testing.assert_array_equal(gradient(network(), "rows"), as_logits)
    np.testing.assert_array_equal(
        gradient(network(last="softmax"), "rows"), gradient(network(last="softmax"), "probabilities")
    )
    # The function's own default is probabilities.
    np.testing.assert_array_equal(gradient(network(), keras.losses.categorical_crossentropy), as_probabilities)


def test_an_optimizer_that_was_used_goes_on():
    model = network()
    model.compile(keras.optimizers.Adam(0.02), TensorFlow.losses["logits"])
    x, y = inputs(30), labels(30)
    model.fit(x, y, epochs=1, verbose=0)
    steps = int(model.optimizer.iterations)
    classifier = smoothed(model, optimizer=model.optimizer)
    classifier.fit(x, y, batch_size=10, nb_epochs=2)
    assert int(model.optimizer.iterations) == steps + 6
    classifier.reset()
    assert int(model.optimizer.iterations) == 0
    assert float(model.optimizer.learning_rate.numpy()) == pytest.approx(0.02)


def test_what_is_missing_is_asked_for_by_name():
    classifier, x, y = TensorFlowV2RandomizedSmoothing(network(), 3, SHAPE), inputs(), labels()
    assert classifier.certify(x, 20)[0].shape == (6,)
    with pytest.raises(TypeError, match="a loss_object is needed"):
        classifier.compute_loss(x, y)
    with pytest.raises(TypeError, match="a loss_object is needed"):
        TensorFlowV2RandomizedSmoothing(network(), 3, SHAPE, optimizer=keras.optimizers.SGD()).fit(x, y)
    with pytest.raises(TypeError, match="train_step must be a function"):
        smoothed(train_step=3)
    np.testing.assert_allclose(
        classifier.loss_gradient(x, y, sampling=True),
        smoothed(seed=classifier.key, sample_size=32, scale=0.1).loss_gradient(x, y, sampling=True),
        rtol=1e-5,
    )


def test_loading_executes_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("harm").touch, ())

    classifier = trainable(Module())
    np.savez(tmp_path / "net.weights.npz", np.array([Evil()], dtype=object))
    with pytest.raises(ValueError, match="must hold arrays of numbers, got arr_0"):
        classifier.load("net", tmp_path)
    assert not (tmp_path / "harm").exists()


def test_attributes_have_art_s_names_and_defaults():
    classifier = TensorFlowV2RandomizedSmoothing(network(), 3, SHAPE, clip_values=(0, 1))
    assert (classifier.input_shape, classifier.nb_classes, classifier.channels_first) == (SHAPE, 3, False)
    assert (classifier.sample_size, classifier.scale, classifier.alpha) == (32, 0.1, 0.001)
    assert (classifier.loss_object, classifier.optimizer, classifier.train_step) == (None, None, None)
    np.testing.assert_array_equal(classifier.clip_values, np.float32([0, 1]))


def test_sampled_gradients_make_no_gradient_of_the_weights():
    wanted = []

    @tf.custom_gradient
    def watched(weight):
        return tf.identity(weight), lambda gradient: (wanted.append(1), gradient)[1]

    variables = [tf.Variable(weight) for weight in weights()]

    def model(x):
        first, second = (watched(variable.read_value()) for variable in variables)
        return tf.nn.relu(tf.reshape(x, [-1, 16]) @ first) @ second

    smoothed(model).loss_gradient(inputs(), labels(), sampling=True)
    assert wanted == []
    # The gradient of a graph that TensorFlow knows nothing more of makes those of both weights.
    x = tf.constant(inputs())
    with tf.GradientTape() as tape:
        tape.watch(x)
        scores = tf.function(model)(x)
    tape.gradient(scores, x)
    assert len(wanted) == 2


def test_an_optimizer_that_served_another_model_is_copied():
    optimizer = keras.optimizers.Adam(0.02)
    x, y = inputs(), labels()
    first = TensorFlow.smoothed(TensorFlow.network(), optimizer=optimizer)
    first.fit(x, y, nb_epochs=1)
    steps = int(optimizer.iterations)
    second = TensorFlow.smoothed(TensorFlow.network(), optimizer=optimizer)
    fresh = TensorFlow.smoothed(TensorFlow.network(), optimizer=keras.optimizers.Adam(0.02))
    for classifier in (second, fresh):
        classifier.fit(x, y, nb_epochs=3)
    np.testing.assert_allclose(second.compute_loss(x, y), fresh.compute_loss(x, y), rtol=1e-5)
    assert int(optimizer.iterations) == steps
    first.fit(x, y, nb_epochs=1)
    assert int(optimizer.iterations) > steps


class Eager(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, x):
        return self.dense(tf.constant(np.asarray(x.numpy()).reshape(len(x), -1)))


def test_a_model_that_runs_only_eagerly_gets_one_sentence():
    classifier = TensorFlow.smoothed(Eager(), check=False)
    with pytest.raises(TypeError, match=r"model must be one that tf\.function can trace; this one runs only eagerly"):
        classifier.predict(inputs())
