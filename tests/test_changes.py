"""Another version of a classifier, certified from the votes of the first: true for half spaces, and stored runs."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy import stats

from jaxsmooth import (
    ABSTAIN,
    Gaussian,
    Laplace,
    LatticeGaussian,
    RandomClassifier,
    Votes,
    certificate,
    certify,
    certify_changed,
    certify_dataset,
    certify_radii,
    log_rows,
    prediction,
    read_votes,
    stream_key,
    stream_samples,
    top_k_certificate,
    true_class_bounds,
)
from jaxsmooth.stream import Stream
from tests.classifiers import grid_of_features, half_space
from tests.guarantees.alarms import raises_alarm, trials

NOISE = Gaussian(0.5)
KEY = jax.random.key(0, impl="threefry2x32")


def shifted(shift, x):
    """The half space whose border is at `shift`."""
    return jnp.stack([x[:, 0] - shift, shift - x[:, 0]], axis=1)


def other(x):
    return shifted(0.2, x)


def in_bfloat16(x):
    return half_space(x.astype(jnp.bfloat16))


def invalid_right_of_one(x):
    return jnp.where(x[:, :1] > 1, jnp.nan, half_space(x))


def test_false_certificates_are_as_rare_as_claimed():
    """The first version holds within 0.3, the other within 0.1. Without zeta it would be certified beyond."""
    number, alpha = 3000, 0.05
    x = trials(number, 0.3)
    votes = certify(half_space, NOISE, KEY, x, n0=50, n=400, batch_size=4096).votes
    settings = {"m": 100, "alpha": alpha, "batch_size": 4096}
    result = certify_changed(half_space, other, NOISE, KEY, x, votes, **settings)
    assert (result.radius > 0).any()
    assert not raises_alarm((result.radius > 0.1).sum(), number, alpha)
    # The twin never calls the other version.
    broken = certify_changed(half_space, half_space, NOISE, KEY, x, votes, **settings)
    assert raises_alarm((broken.radius > 0.1).sum(), number, alpha)


def test_the_radius_is_that_of_both_bounds():
    x = np.array([[0.6, 0.0], [-0.4, 0.0], [0.02, 0.0]], np.float32)
    votes = certify(half_space, NOISE, KEY, x, n=5000).votes
    result = certify_changed(half_space, other, NOISE, KEY, x, votes, m=300, alpha=0.01, alpha_zeta=0.002)
    label = np.asarray(votes.selection).argmax(axis=1)
    changed = np.zeros(3, int)
    samples = stream_samples(NOISE, stream_key(KEY, Stream.ESTIMATION), x, n=300)
    for noisy, rows in samples:
        before, after = half_space(noisy).argmax(axis=1), other(noisy).argmax(axis=1)
        for row in range(3):
            changed[row] += ((rows == row) & (before == label[row]) & (after != label[row])).sum()
    np.testing.assert_array_equal(result.state.changed, changed)
    assert result.state.m == 300
    assert changed[0] > 0
    assert changed[1] == 0
    k = np.asarray(votes.counts)[np.arange(3), label]
    zeta = stats.beta.isf(0.002, changed + 1, 300 - changed)
    p = stats.beta.ppf(0.008, k, 5000 - k + 1) - zeta
    radius = np.where(p > 0.5, 0.5 * stats.norm.ppf(np.clip(p, 0.5, 1)), 0.0)
    np.testing.assert_allclose(result.radius, radius, rtol=1e-6)
    assert (result.radius <= radius).all()
    np.testing.assert_array_equal(result.label, np.where(radius > 0, label, ABSTAIN))


def test_few_samples_certify_a_bfloat16_version_nearly_as_far():
    x = np.array([[0.5, 0.0], [0.9, 0.0]], np.float32)
    first = certify(half_space, NOISE, KEY, x, n=20_000)
    second = certify_changed(half_space, in_bfloat16, NOISE, KEY, x, first.votes, m=3000)
    assert (second.radius > 0.9 * np.asarray(first.radius)).all()
    assert (second.radius < np.asarray(first.radius)).all()


def test_both_loops_and_every_batch_size_find_the_same():
    x = np.array([[0.3, 0.0], [-0.1, 0.0]], np.float32)
    votes = certify(half_space, NOISE, KEY, x, n=500).votes
    expected = certify_changed(half_space, other, NOISE, KEY, x, votes, m=200)
    for compiled, batch_size in ((True, 7), (False, 64)):
        found = certify_changed(
            half_space, other, NOISE, KEY, x, votes, m=200, compiled=compiled, batch_size=batch_size
        )
        np.testing.assert_array_equal(found.state.changed, expected.state.changed)

    def on_host(x):
        return np.asarray(other(x))

    found = certify_changed(half_space, on_host, NOISE, KEY, x, votes, m=200, compiled=False)
    np.testing.assert_array_equal(found.state.changed, expected.state.changed)


def test_votes_that_become_invalid_are_lost():
    x = np.full((1, 2), 0.9, np.float32)
    votes = certify(half_space, NOISE, KEY, x, n=1000).votes
    found = certify_changed(half_space, invalid_right_of_one, NOISE, KEY, x, votes, m=400)
    assert 100 < found.state.changed[0] < 300
    # Where the first one had none, none can be lost.
    votes = certify(invalid_right_of_one, NOISE, KEY, x, n=1000).votes
    found = certify_changed(invalid_right_of_one, half_space, NOISE, KEY, x, votes, m=400)
    assert found.state.changed[0] == 0


def test_components_share_alpha():
    x = np.full((2, 6), 0.5, np.float32)
    votes = certify(grid_of_features, NOISE, KEY, x, n=2000).votes
    found = certify_changed(grid_of_features, grid_of_features, NOISE, KEY, x, votes, m=2000, alpha=0.006)
    assert found.radius.shape == (2, 2, 3)
    k = np.asarray(votes.counts)[..., 0]
    p = stats.beta.ppf(0.0005, k, 2001 - k) - stats.beta.isf(0.0005, 1, 2000)
    np.testing.assert_allclose(found.radius, 0.5 * stats.norm.ppf(p), rtol=1e-6)


def test_random_classifiers_share_their_keys():
    def dropped(x, keys):
        kept = jax.vmap(lambda key, row: jax.random.bernoulli(key, 0.7, row.shape))(keys, x)
        return half_space(jnp.where(kept, x, 0))

    x = np.full((1, 2), 0.9, np.float32)
    f = RandomClassifier(dropped)
    votes = certify(f, NOISE, KEY, x, n=1000).votes
    same = certify_changed(f, RandomClassifier(lambda x, keys: dropped(x, keys)), NOISE, KEY, x, votes, m=200)
    assert same.state.changed[0] == 0
    sure = certify_changed(f, half_space, NOISE, KEY, x, votes, m=200)
    assert sure.state.changed[0] > 0


def test_a_stored_run_knows_its_key_noise_inputs_and_classifier(tmp_path):
    x = np.linspace(-0.9, 0.9, 10, dtype=np.float32)[:, None] * np.ones((1, 2), np.float32)
    y = (x[:, 0] < 0).astype(int)
    f = Partial(shifted, jnp.float32(0.0))
    changed = Partial(shifted, jnp.float32(0.01))
    path = tmp_path / "run.tsv"
    certify_dataset(f, NOISE, KEY, (x, y), path, skip=2, progress=False)
    run = read_votes(f"{path}.votes")
    own = x[run.idx]
    found = certify_changed(f, changed, NOISE, None, own, run, m=500)
    direct = certify_changed(f, changed, NOISE, KEY, own, run.votes, m=500, ids=run.idx)
    np.testing.assert_array_equal(found.radius, direct.radius)
    assert (found.radius < run.certificate.radius).all()
    for arguments, match in (
        ((changed, f, NOISE, None, own), "f must be the classifier of the run"),
        ((f, changed, Gaussian(0.25), None, own), "noise must be that of the run"),
        ((f, changed, Laplace(0.5), None, own), "noise must be that of the run"),
        ((f, changed, NOISE, None, own[::-1]), "input 0 is another one"),
        ((f, changed, NOISE, None, x), "x must be the 5 inputs of the run"),
    ):
        with pytest.raises(ValueError, match=match):
            certify_changed(*arguments, run)


def test_a_stored_run_is_voted_on_again(tmp_path):
    """Neither a plain function nor one within a pytree shows what it computes."""
    x = np.linspace(-0.9, 0.9, 5, dtype=np.float32)[:, None] * np.ones((1, 2), np.float32)
    data = x, np.zeros(5, int)

    def opposite(x):
        return -half_space(x)

    certify_dataset(half_space, NOISE, KEY, data, tmp_path / "run.tsv", progress=False)
    run = read_votes(tmp_path / "run.tsv.votes")
    certify_changed(half_space, in_bfloat16, NOISE, None, x, run, m=100)
    with pytest.raises(ValueError, match="f must be the classifier of the run, on such a machine"):
        certify_changed(opposite, opposite, NOISE, None, x, run, m=100)


def test_classes_are_those_that_votes_are_counted_by():
    """Scores of float64 that are equal, or too large, in float32."""
    x = np.full((1, 2), 0.5, np.float32)

    def close(x):
        return np.stack([np.ones(len(x)), 1 + 1e-12 * (np.asarray(x)[:, 0] > -5)], axis=1)

    def large(x):
        return 1e200 * np.asarray(half_space(x), np.float64)

    def first(x):
        return np.stack([np.ones(len(x)), np.zeros(len(x))], axis=1)

    settings = {"n": 1000, "compiled": False}
    votes = certify(close, NOISE, KEY, x, **settings).votes
    assert votes.counts[0, 1] == 1000
    found = certify_changed(close, first, NOISE, KEY, x, votes, m=300, compiled=False)
    assert found.state.changed[0] == 300
    assert found.label[0] == ABSTAIN
    votes = certify(large, NOISE, KEY, x, **settings).votes
    assert certify_changed(large, half_space, NOISE, KEY, x, votes, m=300, compiled=False).state.changed[0] == 0


def test_what_a_lattice_rounds_is_taken_off_and_known():
    noise = LatticeGaussian(0.5, 0.5)
    x = np.array([[0.6, 0.0]], np.float32)
    votes = certify(half_space, noise, KEY, x, n=5000).votes
    found = certify_changed(half_space, half_space, noise, KEY, x, votes, m=5000)
    assert 0 < found.radius[0] < certify(half_space, noise, KEY, np.round(2 * x) / 2, n=5000).radius[0] - 0.09
    for other in (replace(votes, lost=None), replace(votes, lost=np.zeros(1))):
        with pytest.raises(ValueError, match=r"votes\.lost must be noise\.lost_radius"):
            certify_changed(half_space, half_space, noise, KEY, x, other, m=50)
    with pytest.raises(ValueError, match=r"votes\.lost must be noise\.lost_radius"):
        certify_changed(half_space, half_space, noise, KEY, np.round(2 * x) / 2, votes, m=50)


def test_its_votes_are_those_of_the_first_version_and_support_nothing_else():
    x = np.full((2, 2), 0.5, np.float32)
    votes = certify(half_space, NOISE, KEY, x, n=1000).votes
    found = certify_changed(half_space, other, NOISE, KEY, x, votes, m=100)
    for decide in (
        lambda: certificate(found.votes, NOISE),
        lambda: prediction(found.votes),
        lambda: top_k_certificate(found.votes, NOISE, 1),
        lambda: true_class_bounds(found.votes, [0, 0]),
        lambda: certify_changed(other, other, NOISE, KEY, x, found.votes),
        lambda: found.votes + found.votes,
    ):
        with pytest.raises(ValueError, match="rule 'fixed'"):
            decide()
    with pytest.raises(TypeError, match=r"give its \.votes"):
        certify_changed(half_space, other, NOISE, KEY, x, found)
    with pytest.raises(TypeError, match="key must be given"):
        certify_changed(half_space, other, NOISE, None, x, votes)
    row = log_rows(found, [0, 0], noise=NOISE, alpha=0.001)[0]
    assert row.settings["m"] == "100"


def test_tensors_are_taken_where_they_are_elsewhere():
    torch = pytest.importorskip("torch")
    x = np.full((1, 2), 0.5, np.float32)
    votes = certify(half_space, NOISE, KEY, x, n=1000).votes

    def as_tensor(x):
        return torch.tensor(np.asarray(half_space(x)))

    found = certify_changed(as_tensor, as_tensor, NOISE, KEY, x, votes, m=100, compiled=False)
    assert found.state.changed[0] == 0


def three_classes(x):
    return x[:, :3]


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"m": 0}, ValueError, "m must"),
        ({"alpha_zeta": 0.01}, ValueError, "alpha_zeta must be below alpha"),
        ({"alpha_zeta": 0.0}, ValueError, "alpha_zeta"),
        ({"alpha": 0.9}, ValueError, "alpha"),
        ({"changed": three_classes}, ValueError, "changed must return scores of the shape that f returns"),
        ({"changed": 3}, TypeError, "f must be a callable"),
        ({"votes": np.ones((1, 2))}, TypeError, "votes must be"),
        ({"votes": Votes(counts=np.ones((1, 2), int), n=2)}, ValueError, "selection votes"),
        ({"x": np.zeros((2, 3), np.float32)}, ValueError, "votes must be of x, which has 2 inputs"),
    ],
)
def test_what_is_not_as_described_is_refused_before_any_call(change, error, match):
    def never(x):
        assert isinstance(x, jax.core.Tracer), "f was called"
        return half_space(x)

    counts = np.ones((1, 2), int)
    votes = Votes(counts=counts, selection=counts, n=10)
    arguments = {"changed": never, "x": np.zeros((1, 3), np.float32), "votes": votes, "alpha": 0.001, **change}
    places = [arguments.pop(name) for name in ("changed", "x", "votes")]
    with pytest.raises(error, match=match):
        certify_changed(never, places[0], NOISE, KEY, *places[1:], **arguments)


def test_votes_of_another_kind_are_refused():
    x = np.zeros((1, 3), np.float32)
    stopped = certify_radii(half_space, NOISE, KEY, x, [0.1], n=500).votes
    with pytest.raises(ValueError, match="rule 'fixed'"):
        certify_changed(half_space, other, NOISE, KEY, x, stopped)
    votes = certify(three_classes, NOISE, KEY, x, n=10).votes
    with pytest.raises(ValueError, match="votes must be of f"):
        certify_changed(half_space, other, NOISE, KEY, x, votes)
    with pytest.raises(ValueError, match="votes must be of f"):
        certify_changed(half_space, other, NOISE, KEY, x, votes, m=10, compiled=False)
    with pytest.raises(TypeError, match="no traced values"):
        jax.jit(lambda x: certify_changed(three_classes, three_classes, NOISE, KEY, x, votes).radius)(x)
    lost = replace(votes, lost=np.array([0.01], np.float32))
    assert certify_changed(three_classes, three_classes, NOISE, KEY, x, lost, m=10).label[0] == ABSTAIN
