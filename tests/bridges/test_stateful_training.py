"""Training steps of networks with batch normalisation and dropout, against the frameworks' own loops."""

from functools import partial

import equinox as eqx
import flax.linen as linen
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.tree_util import Partial

import bridges.equinox
import bridges.flax
from jaxsmooth import Gaussian, check_classifier, losses
from jaxsmooth.training import init_train_state, make_train_step
from tests.classifiers import assert_same

D, K, N = 5, 3, 24
NOISE, KEY = Gaussian(0.3), jax.random.key(7)
X = np.random.default_rng(0).uniform(size=(N, D)).astype(np.float32)
Y = X[:, :K].argmax(1)
SGD = optax.sgd(0.1, momentum=0.9)


class NNX(nnx.Module):
    def __init__(self, rngs, rate=0.0):
        self.first = nnx.Linear(D, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, momentum=0.9, rngs=rngs)
        self.drop = nnx.Dropout(rate, rngs=rngs)
        self.last = nnx.Linear(16, K, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(nnx.relu(self.norm(self.first(x)))))


class Linen(linen.Module):
    rate: float = 0.0

    @linen.compact
    def __call__(self, x, train: bool = False):
        x = linen.BatchNorm(use_running_average=not train, momentum=0.9)(linen.Dense(16)(x))
        x = linen.Dropout(self.rate, deterministic=not train)(linen.relu(x))
        return linen.Dense(K)(x)


class Equinox(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    last: eqx.nn.Linear

    def __init__(self, key, rate=0.0):
        first, last = jax.random.split(key)
        self.first = eqx.nn.Linear(D, 16, key=first)
        self.norm = eqx.nn.BatchNorm(16, "batch", mode="batch", momentum=0.9)
        self.drop = eqx.nn.Dropout(rate)
        self.last = eqx.nn.Linear(16, K, key=last)

    def __call__(self, x, state, key=None):
        x, state = self.norm(self.first(x), state)
        return self.last(self.drop(jax.nn.relu(x), key=key)), state


def function(kind, rate=0.0):
    if kind == "nnx":
        return bridges.flax.as_jax(NNX(nnx.Rngs(0), rate))
    if kind == "linen":
        module = Linen(rate)
        return bridges.flax.as_jax(module, module.init(jax.random.key(0), jnp.asarray(X)))
    return bridges.equinox.as_jax(*eqx.nn.make_with_state(Equinox)(jax.random.key(0), rate))


KINDS = ["nnx", "linen", "equinox"]


def steps(f, loss, number, optimizer=SGD):
    step = make_train_step(loss, optimizer)
    state = init_train_state(f, optimizer)
    values = []
    for _ in range(number):
        state, value = step(state, NOISE, KEY, X, Y)
        values.append(float(value))
    return state, values


def noisy(step, m):
    e = NOISE.sample(jax.random.fold_in(KEY, step), (m, N, D))
    return (jnp.asarray(X)[None] + e).reshape(-1, D)


def consistency_of(scores):
    log_p = jax.nn.log_softmax(scores).reshape(2, N, K)
    mean = jnp.log(jnp.exp(log_p).mean(0))
    cross_entropy = -jnp.take_along_axis(log_p, jnp.asarray(Y)[None, :, None], -1)[..., 0].mean(0)
    divergence = (jnp.exp(mean)[None] * (mean[None] - log_p)).sum(-1).mean(0)
    return (cross_entropy + 10 * divergence - 0.5 * (jnp.exp(mean) * mean).sum(-1)).mean()


def own_loop_nnx(number):
    model = NNX(nnx.Rngs(0))
    model.train()
    optimizer = nnx.Optimizer(model, SGD, wrt=nnx.Param)
    for step in range(number):
        optimizer.update(model, nnx.grad(lambda model, x: consistency_of(model(x)))(model, noisy(step, 2)))
    model.eval()
    return model(jnp.asarray(X)), {"mean": model.norm.mean[...], "var": model.norm.var[...]}


def own_loop_linen(number):
    module = Linen()
    variables = module.init(jax.random.key(0), jnp.asarray(X))
    params, statistics = variables["params"], variables["batch_stats"]
    optimizer_state = SGD.init(params)

    def loss(params, statistics, x):
        variables = {"params": params, "batch_stats": statistics}
        scores, updated = module.apply(variables, x, train=True, mutable=["batch_stats"])
        return consistency_of(scores), updated["batch_stats"]

    for step in range(number):
        gradient, statistics = jax.grad(loss, has_aux=True)(params, statistics, noisy(step, 2))
        updates, optimizer_state = SGD.update(gradient, optimizer_state, params)
        params = optax.apply_updates(params, updates)
    return module.apply({"params": params, "batch_stats": statistics}, X), statistics["BatchNorm_0"]


def own_loop_equinox(number):
    model, state = eqx.nn.make_with_state(Equinox)(jax.random.key(0))
    optimizer_state = SGD.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_value_and_grad(has_aux=True)
    def loss(model, state, x):
        run = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        scores, state = run(x, state)
        return consistency_of(scores), state

    for step in range(number):
        (_, state), gradient = loss(model, state, noisy(step, 2))
        updates, optimizer_state = SGD.update(gradient, optimizer_state)
        model = eqx.apply_updates(model, updates)
    model = eqx.nn.inference_mode(model)
    return jax.vmap(lambda row: model(row, state)[0])(X), {}


OWN_LOOPS = {"nnx": own_loop_nnx, "linen": own_loop_linen, "equinox": own_loop_equinox}


@pytest.mark.parametrize("kind", KINDS)
def test_twenty_steps_are_those_of_the_frameworks_own_loop(kind):
    """Parameters and statistics: all noisy copies of a step are one batch in training mode."""
    state, values = steps(function(kind), losses.consistency, 20)
    scores, statistics = OWN_LOOPS[kind](20)
    np.testing.assert_allclose(state.f(jnp.asarray(X)), scores, rtol=2e-3, atol=2e-4)
    if kind == "nnx":
        found = state.f.state["norm"]
    elif kind == "linen":
        found = state.f.state["batch_stats"]["BatchNorm_0"]
    else:
        found = {}
    for name in statistics:
        np.testing.assert_allclose(found[name], statistics[name], rtol=1e-3, atol=1e-4)
    assert np.mean(values[-3:]) < values[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["gaussian", "stability", "consistency", "smoothadv", "macer", "smoothmix"])
def test_every_objective_trains_and_leaves_a_classifier_in_evaluation_mode(kind, name):
    f = function(kind, rate=0.3)
    state, values = steps(f, getattr(losses, name), 3)
    assert np.isfinite(values).all()
    check_classifier(state.f, X, noise=NOISE)  # no batch statistics, no dropout
    assert state.step == 3
    # Neither parameters nor state of the one that was given have changed.
    again, repeated = steps(f, getattr(losses, name), 3)
    assert repeated == values
    assert_same(jax.tree.leaves(_data(again.f)), jax.tree.leaves(_data(state.f)))


def _data(tree):
    def of(leaf):
        return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf

    return jax.tree.map(of, tree)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_new_in_each_step_and_off_in_the_attack(kind):
    """With a step of zero and the noise of one step, only dropout can change the loss."""
    frozen = optax.sgd(0.0)
    seen = []

    def loss(f, noise, key, x, y):
        del key, noise
        return losses.gaussian(f, Gaussian(1e-6), KEY, x, y)

    for rate in (0.0, 0.5):
        seen.append(steps(function(kind, rate), loss, 4, frozen)[1])
    assert len(set(seen[0])) == 1
    assert len(set(seen[1])) == 4


@pytest.mark.parametrize("kind", ["partial", "partial of keywords", "nnx", "linen", "equinox"])
@pytest.mark.parametrize("way", ["orbax", "flax"])
def test_states_are_stored_and_restored(kind, way, tmp_path):
    if (kind, way) == ("equinox", "flax"):
        pytest.skip("flax.serialization knows no Equinox modules; orbax stores them")
    weights = {"w": jnp.ones((D, K)), "b": jnp.zeros(K)}
    f = {
        "partial": lambda: Partial(affine, weights),
        "partial of keywords": lambda: Partial(affine_by_name, params=weights),
    }.get(kind, lambda: function(kind, rate=0.3))()
    optimizer = optax.adam(0.05)
    whole, _ = steps(f, losses.consistency, 6, optimizer)
    half, _ = steps(f, losses.consistency, 4, optimizer)
    empty = init_train_state(f, optimizer)
    if way == "flax":
        restored = flax.serialization.from_bytes(empty, flax.serialization.to_bytes(half))
    else:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "state", half)
            checkpointer.wait_until_finished()
            restored = checkpointer.restore(tmp_path / "state", empty)
    step = make_train_step(losses.consistency, optimizer)
    for _ in range(2):
        restored, _ = step(restored, NOISE, KEY, X, Y)
    assert_same(jax.tree.leaves(_data(restored)), jax.tree.leaves(_data(whole)))


def affine(params, x):
    return x @ params["w"] + params["b"][None]


def affine_by_name(x, *, params):
    return affine(params, x)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.MultiSteps(optax.sgd(0.1), 2),
        optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1, factor=0.5)),
        optax.lbfgs(0.1),
        optax.sgd(optax.cosine_decay_schedule(0.1, 10)),
        optax.inject_hyperparams(optax.adamw)(learning_rate=0.01),
    ],
    ids=["MultiSteps", "reduce_on_plateau", "lbfgs", "schedule", "inject_hyperparams"],
)
@pytest.mark.parametrize("kind", ["partial", "linen"])
def test_any_optax_transformation_trains(optimizer, kind):
    f = Partial(affine, {"w": jnp.zeros((D, K)), "b": jnp.zeros(K)}) if kind == "partial" else function(kind)
    state, values = steps(f, losses.gaussian, 12, optimizer)
    assert np.mean(values[-3:]) < values[0]
    if isinstance(optimizer, optax.MultiSteps):
        assert int(state.optimizer_state.gradient_step) == 6


def test_a_plateau_sees_the_loss():
    optimizer = optax.chain(optax.sgd(0.0), optax.contrib.reduce_on_plateau(patience=1, factor=0.5, rtol=0.5))
    state, _ = steps(Partial(affine, {"w": jnp.zeros((D, K)), "b": jnp.zeros(K)}), losses.gaussian, 8, optimizer)
    assert state.optimizer_state[-1].scale < 1


def test_statistics_are_not_trained_by_gradient():
    module = Linen()
    variables = module.init(jax.random.key(0), jnp.asarray(X))
    with pytest.raises(
        TypeError, match=r"got Linen.apply with 'batch_stats'.*bridges.flax.as_jax\(module, variables\)"
    ):
        init_train_state(Partial(module.apply, variables), SGD)
    params_only = linen.Dense(K)
    f = Partial(params_only.apply, params_only.init(jax.random.key(0), jnp.asarray(X)))
    assert steps(f, losses.gaussian, 2)[0].step == 2
    with pytest.raises(TypeError, match=r"bridges.flax.as_jax\(module\)"):
        init_train_state(NNX(nnx.Rngs(0)), SGD)


@pytest.mark.parametrize("name", ["gaussian", "stability", "consistency", "smoothadv", "macer", "smoothmix"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_networks_and_inputs_of_half_precision(name, dtype):
    """A convolution takes operands of one dtype."""
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 1, 4), dtype) / 4

    def network(params, x):
        x = jax.lax.conv_general_dilated(
            x, params["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return x.mean((1, 2))

    images = np.random.default_rng(0).uniform(size=(6, 8, 8, 1))
    f = Partial(network, {"kernel": kernel})
    loss = partial(getattr(losses, name))
    value, gradient = jax.value_and_grad(loss)(f, NOISE, KEY, jnp.asarray(images, dtype), np.arange(6) % 4)
    wide = jax.value_and_grad(loss)(
        jax.tree.map(lambda leaf: leaf.astype(jnp.float32), f), NOISE, KEY, images, np.arange(6) % 4
    )
    assert gradient.args[0]["kernel"].dtype == dtype
    np.testing.assert_allclose(value, wide[0], rtol=0.05)


@pytest.mark.parametrize("implementation", ["rbg", "unsafe_rbg", "threefry2x32"])
def test_any_generator_drives_a_loss_and_a_step(implementation):
    key = jax.random.key(3, impl=implementation)
    f = Partial(affine, {"w": jnp.zeros((D, K)), "b": jnp.zeros(K)})
    for name in ("gaussian", "smoothadv", "smoothmix"):
        assert jnp.isfinite(getattr(losses, name)(f, NOISE, key, X, Y))
    state, _ = make_train_step(losses.smoothmix, SGD)(init_train_state(f, SGD), NOISE, key, X, Y)
    assert state.step == 1


class Sowing(linen.Module):
    @linen.compact
    def __call__(self, x):
        self.sow("losses", "size", (x**2).mean())
        return linen.Dense(K)(x)


def test_what_a_module_sows_does_not_grow_the_state():
    module = Sowing()
    f = bridges.flax.as_jax(module, module.init(jax.random.key(0), jnp.asarray(X)))
    state = init_train_state(f, SGD)
    traces = []

    def counted(*arguments):
        traces.append(1)
        return losses.gaussian(*arguments)

    step = make_train_step(counted, SGD)
    for _ in range(4):
        state, _ = step(state, NOISE, KEY, X, Y)
    assert jax.tree.structure(state.f) == jax.tree.structure(f)
    assert len(traces) == 1


def test_wrong_arguments_of_training_are_refused_by_name():
    module = Linen()
    variables = module.init(jax.random.key(0), jnp.asarray(X))
    cases = [
        (Partial(lambda v, x: module.apply(v, x), variables), "'batch_stats', which a gradient would change"),
        (NNX(nnx.Rngs(0)), r"bridges.flax.as_jax\(module\) takes it and trains it"),
        (Equinox(jax.random.key(0)), r"bridges.equinox.as_jax\(model\) takes it"),
        (lambda x: x, "which shows no arrays"),
        ({"w": jnp.zeros(3)}, "got a dict of none"),
    ]
    for f, message in cases:
        with pytest.raises(TypeError, match=message):
            init_train_state(f, SGD)
    with pytest.raises(TypeError, match="loss must be a function"):
        make_train_step("macer", SGD)
    # A function of keywords keeps them.
    state = init_train_state(Partial(lambda w, x, scale=1.0: scale * x @ w, jnp.ones((D, K))), SGD)
    np.testing.assert_allclose(state.f(X, scale=2.0), 2 * state.f(X), rtol=1e-6)
