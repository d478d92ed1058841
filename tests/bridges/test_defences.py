"""Every framework's class with defences before and after the network."""

import numpy as np
import pytest

import jaxsmooth
from bridges.inputs import input_ids
from bridges.preprocessing import Preprocessing
from tests.bridges.reference import SHAPE, inputs, labels, leave_in_jax, reference


class Doubles:
    """A defence that works in float64 and says how often it was called."""

    def __init__(self, apply_fit=True, apply_predict=True):
        self.apply_fit, self.apply_predict, self.calls = apply_fit, apply_predict, 0

    def __call__(self, x, y=None):
        self.calls += 1
        return np.float64(x) * 2, y

    def estimate_gradient(self, _, grad):
        return grad * 2


def test_defences_apply_in_order_where_they_say(framework):
    x, y, smoothed = inputs(), labels(), framework.smoothed
    plain, doubled = smoothed(), smoothed(preprocessing_defences=[Doubles(), Doubles()], preprocessing=(1.0, 2.0))
    np.testing.assert_allclose(doubled.compute_loss(x, y), plain.compute_loss((4 * x - 1) / 2, y), rtol=1e-5)
    np.testing.assert_allclose(
        doubled.loss_gradient(x, y), 2 * plain.loss_gradient((4 * x - 1) / 2, y), rtol=1e-4, atol=1e-7
    )
    only_fit = Doubles(apply_predict=False)
    np.testing.assert_array_equal(smoothed(preprocessing_defences=only_fit).certify(x, 50), plain.certify(x, 50))
    assert only_fit.calls == 0
    smoothed(trainable=True, preprocessing_defences=only_fit).fit(x, y, nb_epochs=1)
    assert only_fit.calls == 1


class DoublesInPlace(Doubles):
    """The same, written to the array that it gets."""

    def __call__(self, x, y=None):
        x *= 2
        return x, y


class InPlace:
    """A postprocessor that writes to the scores that it gets."""

    apply_predict = True

    def __call__(self, scores):
        scores *= 2
        return scores


def test_defences_may_write_to_their_array(framework):
    x, y, smoothed = inputs(), labels(), framework.smoothed
    writing = smoothed(preprocessing_defences=DoublesInPlace(), postprocessing_defences=InPlace())
    other = smoothed(preprocessing_defences=Doubles())
    np.testing.assert_array_equal(writing.certify(x, 50), other.certify(x, 50))
    for call in ("loss_gradient", "compute_loss"):
        np.testing.assert_array_equal(getattr(writing, call)(x, y), getattr(other, call)(x, y))
    sampled = [classifier.loss_gradient(x, y, sampling=True) for classifier in (writing, other)]
    np.testing.assert_array_equal(*sampled)
    np.testing.assert_array_equal(x, inputs())


@pytest.mark.parametrize("blank", [0.0, np.nan])
def test_a_postprocessor_that_blanks_rows_makes_the_class_abstain(framework, blank):
    class Blank:
        apply_fit, apply_predict = False, True

        def __call__(self, preds):
            return np.full_like(preds, blank)

    classifier = framework.smoothed(postprocessing_defences=Blank())
    assert (classifier.certify(inputs(), 50)[0] == -1).all()
    assert (classifier.predict(inputs(), is_abstain=False) == 0).all()


def test_defences_that_change_the_number_of_rows_or_classes_are_refused(framework):
    class Halves(Doubles):
        def __call__(self, x, y=None):
            return x[: -(-len(x) // 2)], y

    class FirstColumn:
        apply_fit, apply_predict = False, True

        def __call__(self, preds):
            return preds[:, :1]

    for defence in ({"preprocessing_defences": Halves()}, {"postprocessing_defences": FirstColumn()}):
        with pytest.raises(ValueError, match="scores must have shape"):
            framework.smoothed(check=False, **defence).certify(inputs(), 50)


def test_defences_get_numpy_arrays_on_an_accelerator_too(framework, monkeypatch):
    """Noisy inputs stay on it only where nothing but a standardisation comes before the network."""
    kinds = []

    class Notes(Doubles):
        def __call__(self, x, y=None):
            kinds.append(type(x))
            return super().__call__(x, y)

        def estimate_gradient(self, x, grad):
            kinds.append(type(grad))
            return super().estimate_gradient(x, grad)

    assert Preprocessing(None, (1.0, 2.0), None, SHAPE, True).is_affine
    assert not Preprocessing(Notes(), (1.0, 2.0), None, SHAPE, True).is_affine
    leave_in_jax(framework.backend, monkeypatch)
    classifier = framework.smoothed(preprocessing_defences=Notes())
    classifier.certify(inputs(), 50)
    classifier.loss_gradient(inputs(), labels(), sampling=True)
    assert set(kinds) == {np.ndarray}


class Twice:
    """Makes two versions of each input, as ART's expectation over transformations does."""

    apply_fit, apply_predict = False, True

    def __call__(self, x, y=None):
        versions = np.stack([x, x[:, :, ::-1]], axis=1)
        return versions.reshape(-1, *x.shape[1:]), y

    def estimate_gradient(self, x, grad):  # noqa: ARG002
        return grad


def test_scores_of_several_versions_of_an_input_are_averaged(framework):
    classifier = framework.smoothed(preprocessing_defences=Twice(), n0=50)
    x = inputs()
    label, radius = classifier.certify(x, 300)

    def both(x):
        return (reference(x) + reference(x[:, :, ::-1])) / 2

    expected = jaxsmooth.certify(
        both, jaxsmooth.Gaussian(0.5), classifier.key, x, n0=50, n=300, alpha=0.01, ids=input_ids(x)
    )
    np.testing.assert_array_equal(label, expected.label)
    np.testing.assert_allclose(radius, expected.radius, rtol=1e-6)
    assert classifier.predict(x).shape == (6, 3)
