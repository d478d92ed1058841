"""Runs that count votes and decide nothing: of components, for other decisions, resumed and shared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxsmooth import (
    ABSTAIN,
    AtMost,
    Fixed,
    Gaussian,
    LatticeGaussian,
    certificate,
    certify,
    certify_components,
    certify_dataset,
    components_certificate,
    count_dataset,
    draw_probabilities,
    key_of_seed,
    merge_shares,
    read_votes,
    regression_interval,
    top_k_certificate,
    true_class_bounds,
)
from tests.classifiers import first_features, grid_of_features, inputs

KEY = key_of_seed(0)
NOISE = Gaussian(0.5)
X = np.asarray(inputs(7, (6,)))
FEW = {"n0": 20, "n": 300, "progress": False}


def scaled(weight, x):
    return grid_of_features(x) * weight


def test_the_votes_of_components_are_those_of_certify(tmp_path):
    run = count_dataset(grid_of_features, NOISE, KEY, X, tmp_path / "run.votes", **FEW)
    whole = certify(grid_of_features, NOISE, KEY, X, n0=20, n=300)
    assert run.votes.counts.shape == (7, 2, 3, 2)
    np.testing.assert_array_equal(run.votes.counts, whole.votes.counts)
    np.testing.assert_array_equal(run.votes.selection, whole.votes.selection)
    decided = components_certificate(run.votes, NOISE, 0.75)
    np.testing.assert_array_equal(
        decided.label, certify_components(grid_of_features, NOISE, KEY, X, n0=20, n=300).label
    )
    np.testing.assert_array_equal(certificate(run.votes, NOISE).radius, whole.radius)
    # Nothing was decided by the run itself, and there is no log.
    assert (run.certificate.label == ABSTAIN).all()
    assert run.certificate.label.shape == (7, 2, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.noise", "run.votes", "run.votes.lock"]
    assert run.settings["mode"] == "votes"
    assert run.settings["norm"] == 2
    again = read_votes(tmp_path / "run.votes")
    jax.tree.map(np.testing.assert_array_equal, again.votes, run.votes)
    with pytest.raises(ValueError, match="votes only"):
        run.rows()


def test_a_run_goes_on_where_it_was_ended(tmp_path):
    path = tmp_path / "run.votes"
    called = []

    def f(x):
        called.append(len(x))
        return np.asarray(grid_of_features(x))

    settings = {**FEW, "compiled": False, "check": False}
    first = count_dataset(f, NOISE, KEY, X, path, most=3, **settings)
    assert len(first.idx) == 3
    before = sum(called)
    size = path.stat().st_size
    run = count_dataset(f, NOISE, KEY, X, path, **settings)
    # Four inputs more, and the selection votes of those that were there: no estimation votes are counted twice.
    assert sum(called) - before < 4 * 320 + 3 * 320
    assert path.stat().st_size > size
    np.testing.assert_array_equal(run.votes.counts, certify(grid_of_features, NOISE, KEY, X, n0=20, n=300).votes.counts)
    called.clear()
    count_dataset(f, NOISE, KEY, X, path, **settings)
    assert sum(called) <= 2 * 256  # a batch for the first input, and one to vote again


def test_shares_are_put_together(tmp_path):
    path = tmp_path / "run.votes"
    halves = [count_dataset(grid_of_features, NOISE, KEY, X, path, share=(i, 2), **FEW) for i in range(2)]
    assert [half.idx.tolist() for half in halves] == [[0, 2, 4, 6], [1, 3, 5]]
    run = count_dataset(grid_of_features, NOISE, KEY, X, path, **FEW)
    assert run.idx.tolist() == [*range(7)]
    np.testing.assert_array_equal(run.votes.counts[1::2], halves[1].votes.counts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"f": Partial(scaled, jnp.float32(2.0))}, "classifier"),
        ({"noise": Gaussian(0.25)}, "noise"),
        ({"key": key_of_seed(1)}, "key"),
        ({"n": 301}, "n: 300 in the file, 301 now"),
        ({"data": X + 1}, "input 0 is another one"),
    ],
)
def test_another_run_is_refused_and_the_file_stays(tmp_path, changes, message):
    path = tmp_path / "run.votes"
    given = {"f": Partial(scaled, jnp.float32(1.0)), "noise": NOISE, "key": KEY, "data": X, "path": path, **FEW}
    count_dataset(**given)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        count_dataset(**given | changes)
    assert path.read_bytes() == before


def test_a_plain_function_votes_again(tmp_path):
    path = tmp_path / "run.votes"
    count_dataset(grid_of_features, NOISE, KEY, X, path, **FEW)
    with pytest.raises(ValueError, match=r"selection votes .* in the file at component \(0, 0\)"):
        count_dataset(lambda x: -grid_of_features(x), NOISE, KEY, X, path, **FEW)


def test_a_run_of_another_kind_is_refused(tmp_path):
    certify_dataset(first_features, NOISE, KEY, (X, np.zeros(7, int)), tmp_path / "run.tsv", mode=Fixed(n=100, n0=20))
    with pytest.raises(ValueError, match="mode: fixed in the file, votes now"):
        count_dataset(first_features, NOISE, KEY, X, tmp_path / "run.tsv.votes", n0=20, n=100, progress=False)
    with pytest.raises(ValueError, match=r"<name>\.votes, got .*run\.tsv"):
        count_dataset(first_features, NOISE, KEY, X, tmp_path / "run.tsv", **FEW)
    count_dataset(first_features, NOISE, KEY, X, tmp_path / "other.votes", **FEW)
    with pytest.raises(ValueError, match="votes"):
        certify_dataset(
            first_features,
            NOISE,
            KEY,
            (X, np.zeros(7, int)),
            tmp_path / "other",
            mode=Fixed(n=300, n0=20),
            progress=False,
        )
    with pytest.raises(ValueError, match="components"):
        certify_dataset(grid_of_features, NOISE, KEY, (X, np.zeros(7, int)), tmp_path / "a.tsv", progress=False)


def test_real_outputs_and_top_k_are_decided_from_a_run(tmp_path):
    thresholds = np.linspace(-3.0, 3.0, 61)
    f = AtMost(lambda x: x[:, :2] * 1.0, thresholds)
    run = count_dataset(f, NOISE, KEY, X, tmp_path / "real.votes", **FEW)
    found = regression_interval(run.votes, thresholds, NOISE, 0.1)
    assert found.lower.shape == (7, 2)
    assert ((found.lower <= X[:, :2]) & (found.upper >= X[:, :2])).all()
    run = count_dataset(first_features, NOISE, KEY, X, tmp_path / "top.votes", **FEW)
    assert (top_k_certificate(run.votes, NOISE, 2).radius > 0).any()
    lattice = LatticeGaussian(0.5, 1 / 256)
    run = count_dataset(first_features, lattice, KEY, X, tmp_path / "lattice.votes", **FEW)
    np.testing.assert_array_equal(run.votes.lost, lattice.lost_radius(X))


def test_pairs_with_masks_are_data(tmp_path):
    pairs = [(x, np.zeros((2, 3), int)) for x in X]
    run = count_dataset(grid_of_features, NOISE, KEY, pairs, tmp_path / "run.votes", **FEW)
    np.testing.assert_array_equal(run.votes.counts, certify(grid_of_features, NOISE, KEY, X, n0=20, n=300).votes.counts)
    with pytest.raises(ValueError, match="at least one input"):
        count_dataset(grid_of_features, NOISE, KEY, X[:0], tmp_path / "none.votes", **FEW)


def test_arrays_are_no_pairs(tmp_path):
    """Inputs of two channels would be taken for an input and its label."""
    two = [np.ones((2, 3), np.float32)] * 3
    for data in (two, iter(two)):
        with pytest.raises(ValueError, match=r"pairs \(x, label\), got an array of shape \(2, 3\) at index 0"):
            count_dataset(first_features, NOISE, KEY, data, tmp_path / "a.votes", **FEW)
    run = count_dataset(lambda x: x.reshape(len(x), -1), NOISE, KEY, np.stack(two), tmp_path / "b.votes", **FEW)
    assert run.votes.counts.shape == (3, 6)


def test_a_run_of_votes_knows_no_truth(tmp_path):
    run = count_dataset(first_features, NOISE, KEY, X, tmp_path / "run.votes", **FEW)
    assert (run.truth == -1).all()
    with pytest.raises(ValueError, match="truth must lie in"):
        true_class_bounds(run.votes, run.truth)
    with pytest.raises(ValueError, match="true classes are not known"):
        draw_probabilities({"run": run}, tmp_path / "a.png")


def test_no_log_is_made_of_votes_alone(tmp_path):
    count_dataset(grid_of_features, NOISE, KEY, X, tmp_path / "run.votes", **FEW)
    with pytest.raises(ValueError, match="votes only"):
        merge_shares(tmp_path / "run")
    assert not (tmp_path / "run").exists()
