"""The flax class and `as_jax`, beyond what every framework's class does."""

import copy
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import jaxsmooth
from bridges.flax import FlaxRandomizedSmoothing, as_jax
from tests.bridges.flax_networks import Watched
from tests.bridges.frameworks import NNX, Linen
from tests.bridges.reference import SETTINGS, SHAPE, Keeps, inputs, labels, reference
from tests.programs import compiled_programs

KINDS = [NNX, Linen]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request):
    return request.param


def function(kind):
    return as_jax(**kind.network())


def test_as_jax_runs_in_evaluation_mode_and_has_gradients(kind):
    np.testing.assert_allclose(function(kind)(inputs()), reference(inputs()), rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda x: function(kind)(x)[:, 0].sum()))(inputs())
    np.testing.assert_allclose(gradient, jax.grad(lambda x: reference(x)[:, 0].sum())(inputs()), rtol=1e-4)
    f = as_jax(**kind.with_dropout())
    np.testing.assert_allclose(f(inputs())[:1], f(inputs(1)), rtol=1e-5)


def test_new_parameters_compile_nothing_anew(kind):
    traces = []

    @jax.jit
    def run(f, x):
        traces.append(1)
        return f(x)

    first = function(kind)
    second = jax.tree.map(lambda leaf: 2 * leaf, first)
    assert jnp.abs(run(first, inputs()) - run(second, inputs())).max() > 0.01
    certificates = [
        jaxsmooth.certify(f, jaxsmooth.Gaussian(0.5), jax.random.key(0), inputs(), n0=10, n=100)
        for f in (first, second)
    ]
    assert certificates[0].radius.shape == certificates[1].radius.shape
    assert len(traces) == 1


def counted(kind):
    """Return a network and a list that gets an entry whenever JAX traces it."""
    traces, network = [], kind.network()
    if kind is Linen:
        return {**network, "model": Watched(3, None, lambda _: traces.append(1))}, traces
    return {"model": nnx.Sequential(lambda x: (traces.append(1), x)[1], network["model"])}, traces


def test_a_second_gradient_compiles_nothing(kind):
    network, traces = counted(kind)
    classifier, x, y = kind.smoothed(network), inputs(), labels()
    first = [classifier.loss_gradient(x, y, sampling=True)]
    once = len(traces)
    assert once > 0
    # The passes of both gradients are the same programs, and each class's is.
    first.append(classifier.class_gradient(x, sampling=True))
    assert len(traces) == once
    with compiled_programs() as programs:
        second = classifier.loss_gradient(x, y, sampling=True), classifier.class_gradient(x, sampling=True)
    assert programs == []
    assert len(traces) == once
    for ours, theirs in zip(first, second, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("on_the_host", [False, True])
def test_few_inputs_run_in_small_batches_and_few_programs(on_the_host):
    """Each number of rows is a program: 2^k and 3 * 2^k are few, and at most a third of their rows is filled up."""
    sizes = set()

    def apply(x):
        sizes.add(len(x))
        return x[:, :3]

    settings = {
        "sample_size": 8,
        "seed": 0,
        "check": False,
        "postprocessing_defences": Keeps() if on_the_host else None,
    }
    classifier = FlaxRandomizedSmoothing(nnx.Sequential(apply), optax.softmax_cross_entropy, (4,), 3, **settings)
    x = np.random.default_rng(0).normal(size=(1200, 4))
    for number in (2, 4, 5, 7, 2, 400, 1200):
        classifier.predict(x[:number])
    # One row tells how wide the layers are. The host fills up calls of fewer than 32.
    assert sizes == ({1, 32, 48, 64, 4096} if on_the_host else {1, 16, 32, 48, 64, 4096})
    with compiled_programs() as programs:
        for number in (2, 6, 8, 450, 1100):
            classifier.predict(x[:number])
    assert programs == []


def test_training_updates_batch_statistics_and_evaluation_uses_them(kind):
    network = kind.with_dropout()
    classifier = kind.smoothed(network, trainable=True)
    before = kind.variables(classifier)
    classifier.fit(inputs(), labels(), nb_epochs=1, training_mode=False)
    evaluated = kind.variables(classifier)
    # Batch statistics are the arrays of two channels that are at 0 and 1 in the beginning.
    kept = [np.array_equal(a, b) for a, b in zip(before, evaluated, strict=True)]
    assert kept.count(True) == 2
    classifier.fit(inputs(), labels(), nb_epochs=1)
    assert not any(np.array_equal(a, b) for a, b in zip(evaluated, kind.variables(classifier), strict=True))


def test_dropout_differs_from_step_to_step_and_repeats_with_the_seed(kind):
    def trained(steps):
        classifier = kind.smoothed(kind.with_dropout(), optimizer=optax.sgd(0.0), scale=1e-6)
        gradients = []
        for _ in range(steps):
            gradients.append(classifier.loss_gradient(inputs(), labels(), training_mode=True))
            classifier.fit(inputs(), labels(), nb_epochs=1)
        return np.array(gradients)

    gradients = trained(2)
    np.testing.assert_array_equal(gradients, trained(2))
    assert np.abs(gradients[0] - gradients[1]).max() > 1e-3


class Mixed(nnx.Module):
    """Parameters of its own beside layers, layers in a list, attention and a layer that is called twice."""

    def __init__(self, width, rngs):  # the width is not kept: the module cannot be made again
        self.blocks = nnx.List([nnx.Linear(16, width, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(2, 16, 16, rngs=rngs, decode=False)
        self.norm, self.scale = nnx.BatchNorm(16, rngs=rngs), nnx.Param(jnp.ones((16, 3)))

    def __call__(self, x):
        x = x.reshape(len(x), 16)
        for block in self.blocks:
            x = self.norm(block(x))
        return self.attention(x[:, None])[:, 0] @ self.scale


def mixed():
    return NNX.smoothed(Mixed(16, nnx.Rngs(0)), trainable=True)


def test_layers_of_a_module_with_lists_and_nested_modules():
    classifier, x = mixed(), inputs()
    assert classifier.layer_names == ["blocks.0", "norm", "blocks.1", "attention"]
    model = classifier.model
    first = model.blocks[0](x.reshape(6, 16))
    np.testing.assert_allclose(classifier.get_activations(x, "blocks.0"), first, rtol=1e-4, atol=1e-5)
    norm = nnx.view(model.norm, use_running_average=True)
    # The last call of a layer counts.
    np.testing.assert_allclose(
        classifier.get_activations(x, "norm"), norm(model.blocks[1](norm(first))), rtol=1e-4, atol=1e-5
    )
    assert type(model.norm) is nnx.BatchNorm


def test_reset_renews_layers_by_their_kind_and_other_parameters_uniformly():
    classifier, x, y = mixed(), inputs(), labels()
    classifier.fit(x, y, nb_epochs=2)
    before = NNX.variables(classifier)
    classifier.reset()
    for one, two in zip(before, NNX.variables(classifier), strict=True):
        assert not one.any() or (one != two).any()
    model = classifier.model
    assert (model.norm.mean[...] == 0).all()
    assert (model.norm.scale[...] == 1).all()
    assert (model.blocks[0].bias[...] == 0).all()
    # 256 truncated normals of standard deviation 1/4: a false alarm at 5 standard errors has probability below 1e-6.
    assert abs(float(model.blocks[0].kernel[...].std()) - 0.25) < 5 * 0.25 / np.sqrt(2 * 256)
    assert jnp.abs(model.scale[...]).max() <= 1 / 4
    assert classifier.optimizer_state is None
    classifier.fit(x, y, nb_epochs=1)


def test_clones_get_weights_of_their_own():
    classifier = NNX.smoothed(trainable=True)
    one, two = classifier.clone_for_refitting(), classifier.clone_for_refitting()
    assert all((a != b).any() for a, b in zip(NNX.variables(one), NNX.variables(two), strict=True))


def test_a_linen_module_stays_as_it_was_and_the_class_has_its_new_variables():
    network = Linen.network()
    before = jax.tree.map(np.array, network["variables"])
    classifier = Linen.smoothed(network, trainable=True)
    classifier.fit(inputs(), labels(), nb_epochs=1)
    jax.tree.map(np.testing.assert_array_equal, network["variables"], before)
    assert classifier.model is network["model"]
    new = as_jax(classifier.model, classifier.variables)
    np.testing.assert_array_equal(new(inputs()), classifier.get_activations(inputs(), -1))
    frozen = linen.FrozenDict(network["variables"]) if hasattr(linen, "FrozenDict") else network["variables"]
    np.testing.assert_allclose(as_jax(network["model"], frozen)(inputs()), reference(inputs()), rtol=1e-5)


def test_an_nnx_module_is_trained_in_place_and_changes_by_others_are_seen():
    network = NNX.network()
    classifier = NNX.smoothed(network, trainable=True)
    classifier.fit(inputs(), labels(), nb_epochs=1)
    np.testing.assert_array_equal(network["model"](inputs()), classifier.get_activations(inputs(), -1))
    assert (classifier.certify(inputs(), 50)[0] > 0).any()
    network["model"].layers[1].kernel[...] = jnp.zeros((16, 8))
    assert not classifier.get_activations(inputs(), -1).any()
    assert (classifier.certify(inputs(), 50)[0] == 0).all()  # all scores tie
    assert (classifier.predict(inputs()).argmax(1) == 0).all()


def test_a_schedule_set_from_outside_is_used():
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5)
    classifier = NNX.smoothed(optimizer=optimizer)

    def stop(epoch):
        if epoch == 0:
            classifier.optimizer_state.hyperparams["learning_rate"] = jnp.float32(0.0)

    classifier.fit(inputs(), labels(), nb_epochs=1)
    trained = NNX.variables(classifier)
    classifier.fit(inputs(), labels(), nb_epochs=3, scheduler=stop)
    moved = NNX.variables(classifier)
    classifier.fit(inputs(), labels(), nb_epochs=3)
    assert all((a != b).any() for a, b in zip(trained, moved, strict=True))
    for a, b in zip(moved, NNX.variables(classifier), strict=True):
        np.testing.assert_array_equal(a, b)


def test_settings_change_without_losing_the_optimizer_s_state():
    classifier = NNX.smoothed(trainable=True)
    classifier.fit(inputs(), labels(), nb_epochs=1)
    state = classifier.optimizer_state
    classifier.set_params(scale=0.7)
    assert classifier.optimizer_state is state
    classifier.set_params(optimizer=optax.sgd(0.1))
    assert classifier.optimizer_state is None
    classifier.fit(inputs(), labels(), nb_epochs=1)


def test_copies_take_modules_and_optimizers_that_pickle_does_not(kind):
    schedule = optax.cosine_decay_schedule(0.1, 100)
    classifier = kind.smoothed(optimizer=optax.chain(optax.clip(1.0), optax.adamw(schedule)))
    classifier.fit(inputs(), labels(), nb_epochs=1)
    for again in (copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))):
        other = again(classifier)
        other.fit(inputs(), labels(), nb_epochs=1)
        assert not np.array_equal(other.compute_loss(inputs(), labels()), classifier.compute_loss(inputs(), labels()))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_small_float_types_are_saved_and_loaded(kind, dtype, tmp_path):
    classifier = kind.smoothed(kind.model_of(dtype))
    classifier.save("net", tmp_path)
    other = kind.smoothed(kind.model_of(dtype))
    other.reset()
    other.load("net", tmp_path)
    for a, b in zip(kind.variables(other), kind.variables(classifier), strict=True):
        assert a.dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(a, b)


def test_dropout_s_random_streams_are_saved_and_loaded(tmp_path):
    classifier = NNX.smoothed(NNX.with_dropout(), trainable=True)
    classifier.fit(inputs(), labels(), nb_epochs=2)
    classifier.save("net", tmp_path)
    other = NNX.smoothed(NNX.with_dropout(), trainable=True)
    other.load("net", tmp_path)
    gradients = [c.loss_gradient(inputs(), labels(), training_mode=True) for c in (classifier, other)]
    np.testing.assert_array_equal(*gradients)


def test_loading_executes_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("harm").touch, ())

    classifier = NNX.smoothed()
    np.savez(tmp_path / "net.variables.npz", np.array([Evil()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="must hold arrays of numbers, got arr_0"):
        classifier.load("net", tmp_path)
    assert not (tmp_path / "harm").exists()


def test_losses_of_optax_say_what_they_take():
    x, y, logits = inputs(), labels(), np.asarray(reference(inputs()))
    by_index = functools.partial(optax.losses.multiclass_hinge_loss)
    expected = np.asarray(optax.losses.multiclass_hinge_loss(logits, jnp.asarray(y)))
    np.testing.assert_allclose(NNX.smoothed(loss=by_index).compute_loss(x, y), expected, rtol=1e-5)
    network = NNX.network()
    network["model"].layers.append(jax.nn.log_softmax)
    smooth = NNX.smoothed(network, optax.kl_divergence, sample_size=5)
    by_hand = -np.asarray(jax.nn.log_softmax(logits))[np.arange(6), y]
    np.testing.assert_allclose(3 * smooth.compute_loss(x, y), 3 * by_hand, rtol=1e-4)
    cross = NNX.smoothed(sample_size=5)
    gradients = [c.loss_gradient(x, y, sampling=True) for c in (smooth, cross)]
    np.testing.assert_allclose(*gradients, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": nnx.Linear}, "model must be a flax.linen or flax.nnx module"),
        ({"model": linen.Dense(3)}, "variables must be what the module's init returned"),
        ({"variables": {"params": {}}}, "variables must be None for an nnx module"),
        ({"optimizer": optax.adam}, "optimizer must be an optax transformation"),
        ({"loss": optax.GradientTransformation}, "loss must be a function"),
    ],
)
def test_bad_modules_and_losses_are_refused_by_name(arguments, message):
    settings = {**NNX.network(), "loss": optax.softmax_cross_entropy, **SETTINGS, **arguments}
    with pytest.raises(TypeError, match=message):
        FlaxRandomizedSmoothing(**settings)


def test_variables_that_the_module_would_not_make_cannot_be_reset():
    network = Linen.network()
    classifier = Linen.smoothed({**network, "variables": {**network["variables"], "other": {"a": jnp.ones(2)}}})
    with pytest.raises(ValueError, match="variables are not those that init makes"):
        classifier.reset()
    assert classifier.certify(np.zeros((2, *SHAPE)), 100)[0].shape == (2,)


def test_a_run_goes_on_with_the_weights_that_it_began_with(tmp_path):
    """Also of a network with dropout, whose state holds JAX keys."""

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(4, 8, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.last = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            return self.last(self.dropout(nnx.relu(self.first(x))))

    network, path = Net(nnx.Rngs(0)), tmp_path / "run.tsv"
    data = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32), np.zeros(3, int)

    def run(most):
        mode = jaxsmooth.Fixed(n0=10, n=20)
        noise, f = jaxsmooth.Gaussian(0.25), as_jax(network)
        return jaxsmooth.certify_dataset(f, noise, jax.random.key(0), data, path, mode=mode, most=most, progress=False)

    run(1)
    assert len(run(2)) == 2
    network.last.bias[...] += 1e-6
    with pytest.raises(ValueError, match="other settings: classifier: weights sha256:"):
        run(3)
