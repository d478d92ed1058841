"""The mixin over a class with two hooks: decisions of the core, noise of the input alone, arguments by name."""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsmooth
from bridges.inputs import input_ids
from bridges.smoothing import RandomizedSmoothingMixin


class Linear:
    """Scores by the first three features; remembers what its hooks were called with."""

    def __init__(self, bias=0.0):
        self.bias, self.calls, self.fits = bias, [], []

    def _predict_classifier(self, x, batch_size, training_mode, temperature=1.0):
        self.calls.append((x.shape, batch_size, training_mode, temperature))
        return x[:, :3] + self.bias

    def _fit_classifier(self, x, y, batch_size, nb_epochs, rate=None):
        self.fits.append((x, y, batch_size, nb_epochs, rate))


class Smoothed(RandomizedSmoothingMixin, Linear):
    pass


def smoothed(**changes):
    return Smoothed(**{"sample_size": 200, "scale": 1.0, "alpha": 0.01, "seed": 3, **changes})


def inputs(number=12, seed=0):
    return np.random.default_rng(seed).normal(size=(number, 5)).astype(np.float32)


def test_certify_is_that_of_the_core():
    x, classifier = inputs(), smoothed(n0=50)
    label, radius = classifier.certify(x, n=500)
    expected = jaxsmooth.certify(
        lambda x: x[:, :3], jaxsmooth.Gaussian(1.0), classifier.key, x, n0=50, n=500, alpha=0.01, ids=input_ids(x)
    )
    assert (label.dtype, radius.dtype) == (np.int64, np.float64)
    np.testing.assert_array_equal(label, expected.label)
    np.testing.assert_array_equal(radius, expected.radius)
    assert {-1} < set(label.tolist())
    assert (radius[label == -1] == 0).all()


def test_predict_is_one_hot_or_zeros():
    x, classifier = inputs(), smoothed()
    rows, forced = classifier.predict(x), classifier.predict(x, is_abstain=False)
    assert (rows.shape, rows.dtype) == ((12, 3), np.float64)
    assert set(rows.sum(axis=1)) == {0.0, 1.0}
    assert (forced.sum(axis=1) == 1).all()
    at_once = smoothed().predict(x, is_abstain=np.bool_(False))
    kept = rows.sum(axis=1) == 1
    np.testing.assert_array_equal(rows[kept], at_once[kept])
    assert (at_once.sum(axis=1) == 1).all()


def test_predict_votes_anew_at_every_call_and_repeats_with_the_seed():
    x = inputs()
    first, second = smoothed(output="frequencies"), smoothed(output="frequencies")
    calls = [first.predict(x) for _ in range(3)]
    assert all((calls[a] != calls[b]).any(axis=1).sum() > 6 for a, b in ((0, 1), (0, 2), (1, 2)))
    np.testing.assert_array_equal(calls, [second.predict(x) for _ in range(3)])
    # Together they are the votes of one longer call.
    longer = smoothed(output="frequencies", sample_size=600)
    np.testing.assert_allclose(np.mean(calls, axis=0), longer.predict(x), rtol=1e-12)


def test_predict_votes_anew_at_every_call_from_any_thread():
    """Calls of eight threads at once use the samples that as many calls in turn use, each of them once."""
    x = inputs(1)
    in_turn, at_once = (smoothed(output="frequencies", sample_size=500, check=False) for _ in range(2))
    expected = sorted(in_turn.predict(x)[0].tolist() for _ in range(64))
    with ThreadPoolExecutor(8) as pool:
        found = sorted(rows[0].tolist() for rows in pool.map(lambda _: at_once.predict(x), range(64)))
    assert found == expected
    assert len({tuple(row) for row in found}) > 20


def test_the_default_key_has_64_random_bits():
    keys = np.stack([jax.random.key_data(smoothed(seed=None).key) for _ in range(64)])
    # Each of 64 bits is the same in 64 keys with probability 2^-63.
    assert (np.bitwise_or.reduce(keys) ^ np.bitwise_and.reduce(keys) == 2**32 - 1).all()


def test_results_depend_on_the_input_and_the_seed_alone():
    x, classifier = inputs(), smoothed()
    label, radius = classifier.certify(x, 300)
    for part, batch_size in ((slice(3, 4), 1), (slice(0, 12, 2), 7), (slice(None, None, -1), 1000)):
        np.testing.assert_array_equal(
            classifier.certify(x[part], 300, batch_size=batch_size), (label[part], radius[part])
        )
        np.testing.assert_array_equal(smoothed().predict(x[part]), smoothed().predict(x)[part])
    np.testing.assert_array_equal(smoothed(seed=jax.random.key(3)).certify(x, 300)[1], radius)
    assert (smoothed(seed=4).certify(x, 300)[1] != radius).any()
    assert (smoothed(seed=None).certify(x, 300)[1] != smoothed(seed=None).certify(x, 300)[1]).any()


def test_the_key_can_be_changed():
    x, classifier, other = inputs(), smoothed(), smoothed(seed=4)
    classifier.certify(x, 300)
    classifier.key = np.asarray(jax.random.key_data(other.key))
    for ours, theirs in zip(classifier.certify(x, 300), other.certify(x, 300), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(classifier.predict(x), other.predict(x))
    with pytest.raises(TypeError, match="key must be one Threefry key"):
        classifier.key = 5
    assert classifier.key == other.key


def test_the_hooks_get_batches_of_one_shape_and_the_keywords():
    classifier = smoothed()
    classifier.predict(inputs(), batch_size=4096, training_mode=True, temperature=2.0)
    assert set(classifier.calls) == {((2400, 5), 4096, True, 2.0)}
    with pytest.raises(TypeError, match="is_abstian"):
        classifier.predict(inputs(), is_abstian=True)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_hook_gets_at_most_batch_size_rows(batch_size):
    x, bounded, free = inputs(), smoothed(), smoothed()
    np.testing.assert_array_equal(bounded.certify(x, 300, batch_size), free.certify(x, 300))
    np.testing.assert_array_equal(bounded.predict(x, batch_size, False), free.predict(x))
    rows = [shape[0] for shape, *_ in bounded.calls]
    assert max(rows) <= batch_size
    assert max(asked for _, asked, *_ in bounded.calls) <= batch_size
    assert sum(rows) >= 12 * (200 + 300 + 200)
    assert max(shape[0] for shape, *_ in free.calls) > 64  # what the bound keeps away


def test_non_finite_rows_vote_for_no_class():
    class Blanks(Linear):
        def _predict_classifier(self, x, *_):
            return np.where(x[:, :1] > 0, np.nan, np.abs(x[:, :3]))

    class SmoothedBlanks(RandomizedSmoothingMixin, Blanks):
        pass

    classifier = SmoothedBlanks(sample_size=100, scale=0.1, seed=0, check=False)
    x = np.array([[5.0, 0, 0], [-5.0, 0, 0]])
    np.testing.assert_array_equal(classifier.certify(x, 100)[0], [-1, 0])
    for is_abstain in (True, False):
        np.testing.assert_array_equal(classifier.predict(x, is_abstain=is_abstain), [[0, 0, 0], [1, 0, 0]])


def test_a_classifier_that_depends_on_the_batch_is_refused_once_before_it_votes():
    class Normalised(Linear):
        def _predict_classifier(self, x, *args):
            scores = super()._predict_classifier(x, *args)
            return scores - scores.mean(axis=0)

    class SmoothedNormalised(RandomizedSmoothingMixin, Normalised):
        pass

    def made(**changes):
        return SmoothedNormalised(sample_size=100, scale=0.1, seed=0, **changes)

    for call in (lambda c: c.predict(inputs()), lambda c: c.certify(inputs(), 100)):
        with pytest.raises(ValueError, match="its scores depend on the batch: those of 4 of 4 rows"):
            call(made())
        call(made(check=False))
    made().predict(inputs(), training_mode=True)
    checked = smoothed()
    for expected in (4, 1, 1):
        del checked.calls[:]
        checked.predict(inputs())
        assert len(checked.calls) == expected


def test_fit_adds_fresh_noise_in_every_epoch():
    x, y, classifier = inputs(2000), np.zeros(2000), smoothed(scale=0.5)
    before = x.copy()
    classifier.fit(x, y, batch_size=16, nb_epochs=2, rate=0.1)
    classifier.fit(x, y, nb_epochs=1)
    assert [fit[2:] for fit in classifier.fits] == [(16, 1, 0.1), (16, 1, 0.1), (128, 1, None)]
    noise = [fit[0] - x for fit in classifier.fits]
    np.testing.assert_array_equal(x, before)
    for e in noise:
        # 10,000 normals: the share of means and deviations beyond 5 standard errors is below 1e-6 each.
        assert abs(e.mean()) < 5 * 0.5 / 100
        assert abs(e.std() - 0.5) < 5 * 0.5 / np.sqrt(2 * 10_000)
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.05
    assert abs(np.corrcoef(noise[0].ravel(), noise[2].ravel())[0, 1]) < 0.05


def test_no_inputs():
    classifier = smoothed()
    label, radius = classifier.certify(np.zeros((0, 5)), 10)
    assert (label.shape, label.dtype, radius.shape, radius.dtype) == ((0,), np.int64, (0,), np.float64)
    assert classifier.predict(np.zeros((0, 5))).shape == (0, 3)


def test_verbose_shows_progress(capsys):
    smoothed().predict(inputs(), verbose=True)
    assert "votes" in capsys.readouterr().err
    smoothed().certify(inputs(), 10)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"sample_size": 0}, ValueError, "sample_size must be an integer"),
        ({"sample_size": 1.5}, TypeError, "sample_size must be an integer"),
        ({"scale": 0.0}, ValueError, "scale must be positive"),
        ({"alpha": 1.0}, ValueError, "alpha must be a number"),
        ({"n0": 0}, ValueError, "n0 must be an integer"),
        ({"seed": -1}, ValueError, "seed must be an integer"),
        ({"seed": "zero"}, TypeError, "seed must be an integer"),
        ({"seed": jax.random.key(0, impl="rbg")}, ValueError, "key must be one Threefry key"),
    ],
)
def test_bad_settings_are_refused_before_the_class_is_built(changes, error, message):
    with pytest.raises(error, match=message):
        smoothed(**changes)


@pytest.mark.parametrize(
    ("name", "value"), [("sample_size", 2.5), ("output", "x"), ("scale", -1.0), ("alpha", 2.0), ("n0", 0)]
)
def test_an_attribute_that_was_set_to_nonsense_is_refused_at_the_next_call(name, value):
    classifier = smoothed()
    setattr(classifier, name, value)
    calls = {"predict": lambda: classifier.predict(inputs()), "certify": lambda: classifier.certify(inputs(), 100)}
    unused = {"output": "certify", "n0": "predict"}  # a call that has no use for it does not read it
    for use, call in calls.items():
        if use != unused.get(name):
            with pytest.raises((ValueError, TypeError), match=name):
                call()


def test_bad_calls_are_refused_before_the_hook_is_called():
    classifier = smoothed()
    for n, error in ((0, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="n must be an integer"):
            classifier.certify(inputs(), n)
    with pytest.raises(ValueError, match="batch_size must be an integer"):
        classifier.predict(inputs(), batch_size=0)
    with pytest.raises(ValueError, match="x must be finite"):
        classifier.predict([[np.nan, 1.0]])
    with pytest.raises(ValueError, match="one input is"):
        classifier.certify(jnp.zeros(5), 10)
    with pytest.raises(ValueError, match="nb_epochs must be an integer"):
        classifier.fit(inputs(), None, nb_epochs=-1)
    classifier.scale = -1.0
    for call in (lambda: classifier.fit(inputs(), None), lambda: classifier.predict(inputs())):
        with pytest.raises(ValueError, match=r"scale .*must be positive"):
            call()
    assert classifier.calls == classifier.fits == []
