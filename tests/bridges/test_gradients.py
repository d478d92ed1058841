"""Every framework's class: losses and gradients set beside those of the same network in JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsmooth
from bridges.inputs import input_ids
from tests.bridges.reference import (
    SHAPE,
    calls,
    cross_entropy,
    inputs,
    labels,
    leave_in_jax,
    limit_rows,
    reference,
    watch_gradients,
)


@pytest.mark.parametrize("form", ["indices", "column", "rows", "tensor", "list"])
def test_losses_and_gradients_are_exact(framework, form):
    forms = {"indices": labels(), "column": labels()[:, None], "rows": np.eye(3)[labels()]}
    y = forms | {"tensor": framework.tensor(labels()), "list": labels().tolist()}
    y, classifier, x = y[form], framework.smoothed(preprocessing=(0.5, 2.0)), inputs()

    def loss(x, reduce=jnp.mean):
        return cross_entropy((x - 0.5) / 2, labels(), reduce)

    expected = np.asarray(loss(x, lambda rows: rows))
    np.testing.assert_allclose(classifier.compute_loss(x, y), expected, rtol=1e-5)
    np.testing.assert_allclose(classifier.compute_loss(x, y, reduction="mean"), expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(classifier.compute_losses(x, y, reduction="sum")["total"], expected.sum(), rtol=1e-5)
    scores = reference((x - 0.5) / 2)
    np.testing.assert_allclose(classifier.compute_loss_from_predictions(scores, y), expected, rtol=1e-5)
    gradient = classifier.loss_gradient(x, y)
    assert (gradient.dtype, gradient.shape) == (np.float32, x.shape)
    np.testing.assert_allclose(gradient, jax.grad(loss)(x), rtol=1e-4, atol=1e-7)


def test_class_gradients_are_exact(framework):
    classifier, x = framework.smoothed(), inputs()
    expected = np.stack([jax.grad(lambda x, c=c: reference(x)[:, c].sum())(x) for c in range(3)], 1)
    np.testing.assert_allclose(classifier.class_gradient(x), expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(classifier.class_gradient(x, 2), expected[:, 2:], rtol=1e-5, atol=1e-7)
    own = expected[np.arange(6), labels()][:, None]
    np.testing.assert_allclose(classifier.class_gradient(x, labels()), own, rtol=1e-5, atol=1e-7)


def copies(classifier, x):
    """Return the noisy copies that sampled gradients are averages over, `[N, n, *event]`."""
    noise, n = jaxsmooth.Gaussian(classifier.scale), classifier.sample_size
    key = jaxsmooth.stream_key(classifier.key, jaxsmooth.Stream.GRADIENTS)
    samples = jaxsmooth.stream_samples(noise, key, x, n=n, batch_size=len(x) * n, ids=input_ids(x))
    return np.concatenate([noisy for noisy, _ in samples]).reshape(len(x), n, *x.shape[1:])


@pytest.mark.parametrize("most", [1024, 50, 7], ids=["in one batch", "two inputs a batch", "an input in three batches"])
@pytest.mark.parametrize(("loss", "last"), [("logits", None), ("probabilities", "softmax")])
def test_sampled_gradients_differentiate_the_averaged_probability(framework, loss, last, most, monkeypatch):
    limit_rows(framework.backend, most, monkeypatch)
    model, seen = framework.watch(framework.network(last=last))
    classifier, x = framework.smoothed(model, loss, preprocessing=(0.5, 2.0), sample_size=20), inputs()
    classifier.predict(x)  # the width of the layers is found out at the first call
    calls(seen)
    noisy = copies(classifier, x)
    noise = noisy - x[:, None]

    def average(x):
        noisy = (x[:, None] + noise).reshape(-1, *SHAPE)
        return reference((noisy - 0.5) / 2, last="softmax").reshape(6, 20, 3).mean(1)

    expected = jax.grad(lambda x: -jnp.log(average(x)[jnp.arange(6), labels()]).mean())(x)
    np.testing.assert_allclose(classifier.loss_gradient(x, labels(), sampling=True), expected, rtol=2e-3, atol=1e-6)
    batches = calls(seen)
    # Where an input is split, the average comes first. So it does for flax, but the compiler makes one pass of the two
    # where nobody watches the network.
    passes = 2 if most == 7 or (framework.package == "flax" and loss == "logits") else 1
    assert len(batches) == passes * {1024: 1, 50: 3, 7: 18}[most]
    rows = np.concatenate(batches).reshape(-1, 1, np.prod(SHAPE))
    rows = rows[rows.any(axis=(1, 2))]  # zeros may fill up a batch
    near = np.abs(rows - ((noisy - 0.5) / 2).reshape(1, -1, np.prod(SHAPE))).max(axis=2) < 1e-5
    assert near.any(axis=0).all()  # every copy is seen
    assert near.any(axis=1).all()  # and nothing else
    by_class = np.stack([jax.grad(lambda x, c=c: average(x)[:, c].sum())(x) for c in range(3)], 1)
    np.testing.assert_allclose(classifier.class_gradient(x, sampling=True), by_class, rtol=2e-3, atol=1e-6)
    classifier.sampling = True
    np.testing.assert_array_equal(
        classifier.loss_gradient(x, labels()), classifier.loss_gradient(x, labels(), sampling=True)
    )


@pytest.mark.parametrize("most", [1024, 7], ids=["in one batch", "an input in three batches"])
def test_sampled_gradients_are_zero_where_the_probability_underflows(framework, most, monkeypatch):
    limit_rows(framework.backend, most, monkeypatch)
    classifier, x = framework.smoothed(preprocessing=(0.0, 1e-4), sample_size=20, scale=1e-6), inputs()
    unlikely = np.asarray(reference(x)).argmin(1)
    np.testing.assert_array_equal(classifier.loss_gradient(x, unlikely, sampling=True), np.zeros_like(x))


def test_sampled_gradients_refuse_what_is_wrong_before_the_network_is_called(framework):
    model, seen = framework.watch(framework.network())
    classifier, x = framework.smoothed(model, sampling=True), inputs()
    for y, fault in (
        ([0.5] * 6, "class indices from 0 to 2"),
        (labels()[:5], "y must have shape"),
        ([3] * 6, "0 to 2"),
    ):
        with pytest.raises(ValueError, match=fault):
            classifier.loss_gradient(x, y)
    classifier.scale = -1.0
    for call in (lambda: classifier.loss_gradient(x, labels()), lambda: classifier.class_gradient(x)):
        with pytest.raises(ValueError, match=r"scale .*must be positive"):
            call()
    assert calls(seen) == []
    classifier.scale = 1.0
    classifier.loss_gradient(x, labels())
    assert calls(seen) != []


@pytest.mark.parametrize("most", [1024, 7], ids=["in one batch", "an input in three batches"])
def test_sampled_gradients_of_arrays_left_in_jax_are_those_of_numpy_arrays(framework, most, monkeypatch):
    limit_rows(framework.backend, most, monkeypatch)
    # Of logits a compiled program makes the copies for flax.
    network = framework.network(last="softmax")
    classifier, x = framework.smoothed(network, "probabilities", preprocessing=(1.0, 2.0), sample_size=20), inputs()
    expected = classifier.loss_gradient(x, labels(), sampling=True), classifier.class_gradient(x, sampling=True)
    leave_in_jax(framework.backend, monkeypatch)
    seen = watch_gradients(framework.backend, monkeypatch)
    result = classifier.loss_gradient(x, labels(), sampling=True), classifier.class_gradient(x, sampling=True)
    assert seen
    assert all(isinstance(x, jax.Array) for x in seen)
    for ours, theirs in zip(result, expected, strict=True):
        assert isinstance(ours, np.ndarray)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6 * np.abs(theirs).max())


@pytest.mark.parametrize(("loss", "last"), [("binary logits", None), ("binary probabilities", "sigmoid")])
def test_one_output_is_two_classes(framework, loss, last):
    x = inputs(20)
    logits = np.asarray(reference(x, outputs=1))[:, 0]
    y = (logits > 0).astype(int)
    certain = framework.smoothed(framework.network(1, last), loss, nb_classes=2, scale=1e-4)
    np.testing.assert_array_equal(certain.predict(x).argmax(1), y)
    expected = np.log1p(np.exp(-np.where(y, logits, -logits)))
    np.testing.assert_allclose(certain.compute_loss(x, y), expected, rtol=1e-4)
    assert certain.class_gradient(x, y).shape == (20, 1, *SHAPE)
    with pytest.raises(ValueError, match="a model with one output needs"):
        framework.smoothed(framework.network(1), "rows", nb_classes=2, from_logits=None).predict(x)


def test_a_function_or_a_loss_of_another_reduction_works_and_stays_as_it_was(framework):
    x, y = inputs(), labels()
    expected = framework.smoothed().compute_loss(x, y)
    for kind in ("function", "sum"):
        np.testing.assert_allclose(framework.smoothed(loss=kind).compute_loss(x, y), expected, rtol=1e-5)
    assert getattr(framework.losses["sum"], "reduction", "sum") == "sum"
    by_hand = ((np.asarray(reference(x)) - np.eye(3)[y]) ** 2).sum(1)
    squared = framework.smoothed(loss=framework.squared)
    np.testing.assert_allclose(squared.compute_loss(x, y), by_hand, rtol=1e-5)
    gradient = squared.loss_gradient(x, y)
    np.testing.assert_allclose(gradient, jax.grad(lambda x: ((reference(x) - jnp.eye(3)[y]) ** 2).sum())(x), rtol=1e-4)
    summed = framework.smoothed(loss="sum").loss_gradient(x, y)
    np.testing.assert_allclose(summed, 6 * framework.smoothed().loss_gradient(x, y), rtol=1e-4, atol=1e-7)
