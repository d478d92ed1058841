"""Every framework's class: losses and gradients set beside those of the same network in JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.bridges.reference import SHAPE, cross_entropy, inputs, labels, reference


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


@pytest.mark.parametrize("most", [1024, 50, 7], ids=["in one batch", "two inputs a batch", "an input in three batches"])
@pytest.mark.parametrize(("loss", "last"), [("logits", None), ("probabilities", "softmax")])
def test_sampled_gradients_differentiate_the_averaged_probability(framework, loss, last, most, monkeypatch):
    model = framework.network(last=last)
    classifier, x = framework.smoothed(model, loss, preprocessing=(0.5, 2.0), sample_size=20), inputs()
    monkeypatch.setattr(classifier, "_gradient_rows", lambda *_: most)
    assert len(list(classifier._copies(x).batches())) == {1024: 1, 50: 3, 7: 18}[most]
    noise = np.concatenate([noisy for noisy, _ in classifier._copies(x).batches()]).reshape(6, 20, *SHAPE) - x[:, None]

    def average(x):
        noisy = (x[:, None] + noise).reshape(-1, *SHAPE)
        return reference((noisy - 0.5) / 2, last="softmax").reshape(6, 20, 3).mean(1)

    expected = jax.grad(lambda x: -jnp.log(average(x)[jnp.arange(6), labels()]).mean())(x)
    np.testing.assert_allclose(classifier.loss_gradient(x, labels(), sampling=True), expected, rtol=2e-3, atol=1e-6)
    by_class = np.stack([jax.grad(lambda x, c=c: average(x)[:, c].sum())(x) for c in range(3)], 1)
    np.testing.assert_allclose(classifier.class_gradient(x, sampling=True), by_class, rtol=2e-3, atol=1e-6)
    classifier.sampling = True
    np.testing.assert_array_equal(
        classifier.loss_gradient(x, labels()), classifier.loss_gradient(x, labels(), sampling=True)
    )


@pytest.mark.parametrize("most", [1024, 7], ids=["in one batch", "an input in three batches"])
def test_sampled_gradients_are_zero_where_the_probability_underflows(framework, most, monkeypatch):
    classifier, x = framework.smoothed(preprocessing=(0.0, 1e-4), sample_size=20, scale=1e-6), inputs()
    monkeypatch.setattr(classifier, "_gradient_rows", lambda *_: most)
    unlikely = np.asarray(reference(x)).argmin(1)
    np.testing.assert_array_equal(classifier.loss_gradient(x, unlikely, sampling=True), np.zeros_like(x))


def test_sampled_gradients_refuse_what_is_wrong_before_the_network_is_called(framework, monkeypatch):
    classifier, x = framework.smoothed(sampling=True), inputs()
    for method in ("vjp", "scoring"):
        monkeypatch.setattr(classifier._backend, method, None)
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


@pytest.mark.parametrize("most", [1024, 7], ids=["in one batch", "an input in three batches"])
def test_sampled_gradients_of_arrays_left_in_jax_are_those_of_numpy_arrays(framework, most, monkeypatch):
    classifier, x, seen = framework.smoothed(preprocessing=(1.0, 2.0), sample_size=20), inputs(), []
    monkeypatch.setattr(classifier, "_gradient_rows", lambda *_: most)
    expected = classifier.loss_gradient(x, labels(), sampling=True), classifier.class_gradient(x, sampling=True)
    vjp = classifier._backend.vjp
    monkeypatch.setattr(classifier, "_as_batch", lambda noisy: noisy)  # as on a GPU
    monkeypatch.setattr(classifier._backend, "vjp", lambda x, w, **k: (seen.append(x), vjp(x, w, **k))[1])
    result = classifier.loss_gradient(x, labels(), sampling=True), classifier.class_gradient(x, sampling=True)
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
        framework.smoothed(framework.network(1), "rows", nb_classes=2).predict(x)


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
