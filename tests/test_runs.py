"""A run over a data set: the certificates of `certify`, whatever its order, its groups and its source."""

import json
import re
import sys
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
import torch
from jax.tree_util import Partial

import bridges.pytorch
import jaxsmooth
from jaxsmooth import (
    Anytime,
    Fixed,
    Gaussian,
    Grid,
    LatticeGaussian,
    Within,
    certificate,
    certify_dataset,
    prediction,
    read_log,
    read_votes,
)
from jaxsmooth.stores import VoteStore
from tests.classifiers import grid_of_features

KEY, NOISE = jax.random.key(3), Gaussian(0.5)


def sign(x):
    return jnp.stack([x[:, 0], -x[:, 0], x[:, 1]], axis=1)


def examples(number=11):
    rng = np.random.default_rng(0)
    return [(rng.normal(size=4).astype(np.float32), idx % 3) for idx in range(number)]


def run(path, data=None, f=sign, **changes):
    data = examples() if data is None else data
    noise = changes.pop("noise", NOISE)
    return certify_dataset(f, noise, KEY, data, path, **{"mode": Fixed(n=500), "progress": False, **changes})


def certificates(rows):
    return [(row.idx, row.label, row.predict, row.radius) for row in rows]


def test_certificates_are_those_of_certify(tmp_path):
    rows = run(tmp_path / "a.tsv")
    x = np.array([x for x, _ in examples()])
    result = jaxsmooth.certify(sign, NOISE, KEY, x, n=500)
    assert [row.predict for row in rows] == result.label.tolist()
    assert [row.radius for row in rows] == result.radius.tolist()
    assert [row.label for row in rows] == [label for _, label in examples()]
    logged = read_log(tmp_path / "a.tsv")
    assert [row[:3] for row in logged] == [row[:3] for row in rows]
    # Radii are written rounded down.
    assert all(0 <= row.radius - log.radius < 1e-6 for row, log in zip(rows, logged, strict=True))
    found = read_votes(tmp_path / "a.tsv.votes")
    np.testing.assert_array_equal(found.votes.counts, result.votes.counts)
    np.testing.assert_array_equal(found.votes.selection, result.votes.selection)
    np.testing.assert_array_equal(found.votes.n, [500] * 11)
    assert (found.votes.rule, found.votes.lost) == ("fixed", None)
    for name in ("label", "radius", "p_lower"):
        np.testing.assert_array_equal(getattr(found.certificate, name), getattr(result, name))


MODES = {
    "grid": (Grid([0.1, 0.3], n=500), lambda x: jaxsmooth.certify_radii(sign, NOISE, KEY, x, [0.1, 0.3], n=500)),
    "within": (
        Within(0.1, n0=100, n=3000),
        lambda x: jaxsmooth.certify_within(sign, NOISE, KEY, x, 0.1, n0=100, n=3000),
    ),
    "by the runner-up": (
        Fixed(n0=50, n=700, bound="runner_up"),
        lambda x: jaxsmooth.certify(sign, NOISE, KEY, x, n0=50, n=700, bound="runner_up"),
    ),
}


@pytest.mark.parametrize("name", MODES)
def test_each_mode_gives_the_certificates_of_its_function(tmp_path, name):
    mode, certify = MODES[name]
    rows, result = run(tmp_path / "a.tsv", mode=mode), certify(np.array([x for x, _ in examples()]))
    assert [row.predict for row in rows] == result.label.tolist()
    assert [row.radius for row in rows] == result.radius.tolist()
    votes = read_votes(tmp_path / "a.tsv.votes").votes
    np.testing.assert_array_equal(votes.n, np.broadcast_to(result.votes.n, 11))
    np.testing.assert_array_equal(votes.counts, result.votes.counts)
    assert votes.rule == result.votes.rule


INTEGERS = {
    "fixed": lambda kind: Fixed(n0=kind(20), n=kind(100)),
    "grid": lambda kind: Grid([0.1], n0=kind(20), n=kind(100), looks=[kind(50), kind(100)]),
    "within": lambda kind: Within(0.1, n0=kind(20), n=kind(100)),
    "anytime": lambda kind: Anytime(n0=kind(20), votes=kind(50), n=kind(100)),
}


@pytest.mark.parametrize("kind", [np.int64, np.uint64, np.int16, np.array])
@pytest.mark.parametrize("name", INTEGERS)
def test_numpy_integers_in_a_mode_are_integers(tmp_path, name, kind):
    """A run that was begun with the one goes on with the other."""
    run(tmp_path / "a.tsv", mode=INTEGERS[name](int), most=5)
    whole = certificates(run(tmp_path / "b.tsv", mode=INTEGERS[name](int)))
    assert certificates(run(tmp_path / "a.tsv", mode=INTEGERS[name](kind))) == whole


class Indexed:
    def __len__(self):
        return 11

    def __getitem__(self, index):
        return examples()[index]


@pytest.mark.parametrize(
    "changes",
    [
        {"group": 1},
        {"group": 4, "batch_size": 7},
        {"data": Indexed()},
        {"data": (pair for pair in examples())},
        {"data": (np.array([x for x, _ in examples()]), np.array([y for _, y in examples()]))},
        {"f": lambda x: np.asarray(sign(x)), "compiled": False},
        {"devices": jax.local_devices()[1:2]},
        {"devices": jax.local_devices()[:3]},
    ],
    ids=["one by one", "groups", "indexed", "generator", "arrays", "host", "another device", "three devices"],
)
def test_groups_sources_and_ways_to_call_change_no_certificate(tmp_path, changes):
    assert certificates(run(tmp_path / "b.tsv", **changes)) == certificates(run(tmp_path / "a.tsv"))


def test_until_is_the_rule_that_holds_at_every_number_of_votes(tmp_path):
    asked = []

    def until(result):
        asked.append(result.votes.n)
        return bool((result.radius >= 0.2).all())

    rows, x = run(tmp_path / "a.tsv", mode=Anytime(until, n=2048)), np.array([x for x, _ in examples()])
    assert max(asked) < 2048
    for row, one in zip(rows, x, strict=True):
        results = jaxsmooth.certify_anytime(sign, NOISE, KEY, one[None], ids=[row.idx])
        result = next(r for r in results if r.votes.n >= 2048 or float(r.radius[0]) >= 0.2)
        assert (row.predict, row.radius, row.votes) == (int(result.label[0]), float(result.radius[0]), result.votes.n)
    assert {row.settings["mode"] for row in rows} == {"anytime"}


def test_predictions_are_those_of_predict_and_resume(tmp_path):
    path, x = tmp_path / "a.tsv", np.array([x for x, _ in examples()])
    predict = partial(jaxsmooth.predict_dataset, sign, NOISE, KEY, examples(), path, n=150, progress=False)
    assert len(predict(most=4)) == 4
    rows, result = predict(), jaxsmooth.predict(sign, NOISE, KEY, x, n=150)
    assert [row.predict for row in rows] == result.label.tolist()
    assert -1 in result.label
    votes = read_votes(f"{path}.votes").votes
    np.testing.assert_array_equal(votes.counts, result.votes.counts)
    again = prediction(votes)
    np.testing.assert_array_equal(again.label, result.label)
    np.testing.assert_array_equal(again.p_value, result.p_value)
    with pytest.raises(ValueError, match="votes must have selection votes"):
        certificate(votes, NOISE)
    assert rows[0].settings["mode"] == "prediction"
    with pytest.raises(ValueError, match="was made under other settings"):
        predict(alpha=0.01)


def test_a_run_that_is_interrupted_between_votes_and_log_has_both(tmp_path, monkeypatch):
    append, done = VoteStore.append, []

    def interrupted(store, row):
        append(store, row)
        done.append(row.idx)
        if len(done) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(VoteStore, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a.tsv")
    assert [row.idx for row in read_log(tmp_path / "a.tsv")] == done == [0, 1, 2]
    monkeypatch.undo()
    assert certificates(run(tmp_path / "a.tsv")) == certificates(run(tmp_path / "b.tsv"))


def test_skipping_and_shares_change_no_certificate(tmp_path):
    whole = certificates(run(tmp_path / "a.tsv"))
    assert certificates(run(tmp_path / "b.tsv", skip=3)) == whole[::3]
    assert certificates(run(tmp_path / "c.tsv", most=5)) == whole[:5]
    assert certificates(run(tmp_path / "c.tsv")) == whole
    generated = (pair for pair in examples())
    assert certificates(run(tmp_path / "d.tsv", generated, skip=2, most=6)) == whole[:6:2]


def test_a_finished_run_calls_the_classifier_with_one_batch_only(tmp_path):
    run(tmp_path / "a.tsv")
    calls = []

    def counted(x):
        calls.append(len(x))
        return np.asarray(sign(x))

    before = (tmp_path / "a.tsv").read_bytes(), (tmp_path / "a.tsv.votes").read_bytes()
    run(tmp_path / "a.tsv", f=counted, compiled=False)
    assert calls == [256] * 3  # the votes of the first input, then of the four whose votes were closest
    assert ((tmp_path / "a.tsv").read_bytes(), (tmp_path / "a.tsv.votes").read_bytes()) == before


def scaled(weight):
    return Partial(lambda w, x: sign(x) * w, jnp.float32(weight))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": Fixed(n=501)}, "was made under other settings"),
        ({"mode": Fixed(n=500, bound="runner_up")}, "was made under other settings"),
        ({"alpha": 0.01}, "was made under other settings"),
        ({"mode": Grid([0.1], n=500)}, "was made under other settings"),
        ({"noise": Gaussian(0.25)}, "was made under other settings"),
        ({"f": scaled(1.0)}, "was made under other settings"),
        ({"f": lambda x: -sign(x)}, "f must be the classifier of the run"),
        (
            {"data": [(x + 1, label) for x, label in examples()]},
            "data must be those of the run: input 0 is another one",
        ),
        (
            {"data": [*examples()[:2], (examples()[2][0] + 1, examples()[2][1]), *examples()[3:]]},
            "input 2 is another one",
        ),
        ({"data": [*examples()[:3], (examples()[3][0], 7)]}, "the label of input 3 is . in the file, 7 now"),
        ({"data": [(x.astype(np.float16), label) for x, label in examples()]}, "was made under other settings"),
    ],
)
def test_a_run_of_other_settings_or_another_classifier_is_refused_and_nothing_changes(tmp_path, changes, message):
    run(tmp_path / "a.tsv", most=4)
    before = (tmp_path / "a.tsv").read_bytes(), (tmp_path / "a.tsv.votes").read_bytes()
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "a.tsv", **changes)
    assert ((tmp_path / "a.tsv").read_bytes(), (tmp_path / "a.tsv.votes").read_bytes()) == before


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([(np.zeros(4, np.float32), -1)], "the label of input 0 must be an integer in"),
        ([(np.zeros(4, np.float32), [1, 2])], "the label of input 0 must be one class"),
        ([(np.zeros(4, np.float32), 0), (np.zeros(5, np.float32), 0)], "all inputs of data must be like the first"),
        ([(np.zeros(4, np.float32), 0), (np.zeros(4, np.float64), 0)], "all inputs of data must be like the first"),
        ([(np.zeros(4, np.float32),)], "data must hold pairs"),
        ((np.zeros((3, 4), np.float32), np.zeros(2, int)), "data must have one label for each input, got 3 and 2"),
    ],
)
def test_what_is_no_data_set_is_refused(tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "a.tsv", data)


def test_no_inputs_give_an_empty_log(tmp_path):
    assert run(tmp_path / "a.tsv", []) == []
    assert read_log(tmp_path / "a.tsv") == []
    whole = run(tmp_path / "b.tsv")
    before = (tmp_path / "b.tsv").read_bytes()
    assert run(tmp_path / "b.tsv", []) == []
    # A call for fewer inputs returns these and keeps the others in the log.
    fewer = run(tmp_path / "b.tsv", most=2)
    assert fewer == [row._replace(claim=row.claim.replace("inputs=11", "inputs=2")) for row in whole[:2]]
    assert (tmp_path / "b.tsv").read_bytes() == before


def planned(path):
    return read_log(path)[0].settings["inputs"]


def test_a_log_says_of_how_many_inputs_it_is_whatever_was_asked_for_in_turn(tmp_path):
    path = tmp_path / "a.tsv"
    run(path, most=4)
    assert planned(path) == "4"
    calls = []

    def interrupted(x):
        calls.append(len(x))
        if len(calls) > 6:
            raise KeyboardInterrupt
        return np.asarray(sign(x))

    with pytest.raises(KeyboardInterrupt):  # of 0, 5 and 10 the first is there
        run(path, f=interrupted, skip=5, group=1, compiled=False, check=False)
    assert int(planned(path)) == 6 > len(read_log(path))
    # A generator has no length. What was asked for at most is no more than a plan.
    run(tmp_path / "b.tsv", data=iter(examples()), most=50)
    assert planned(tmp_path / "b.tsv") == "11"


def test_a_radius_of_a_grid_is_its_own_in_the_log(tmp_path):
    grid = [*np.arange(0.1, 0.35, 0.1).tolist(), 1 / 3]
    assert grid[2] > 0.3
    data = [(np.array([9.0, 0, 0, 0], np.float32), 0)] * 3 + [(np.array([0.45, 0, 0, 0], np.float32), 0)]
    rows = run(tmp_path / "a.tsv", data, mode=Grid(grid, n=2000))
    assert [row.radius for row in rows] == [row.radius for row in read_log(tmp_path / "a.tsv")]
    assert {row.radius for row in rows} >= {1 / 3}
    tables = [jaxsmooth.report_table({"a": found}, grid) for found in (rows, read_log(tmp_path / "a.tsv"))]
    assert tables[0] == tables[1]
    assert tables[0].splitlines()[1].split()[-4:-3] != ["0.000"]


def test_the_place_of_an_input_that_is_not_finite_is_that_in_the_data(tmp_path):
    data = examples()
    data[7][0][1] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity in input 7 of data"):
        run(tmp_path / "a.tsv", data, group=5)


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(examples())

    def __len__(self):
        return 11


def test_an_iterable_dataset_with_a_length_is_read_in_order(tmp_path):
    assert certificates(run(tmp_path / "a.tsv", Stream())) == certificates(run(tmp_path / "b.tsv"))


def test_a_bar_shows_inputs_accuracy_and_votes_saved(tmp_path, capsys):
    run(tmp_path / "a.tsv", mode=Grid([0.1], n=500), progress=True)
    shown = capsys.readouterr().err
    assert "11/11" in shown
    assert "accuracy=" in shown
    assert "votes_saved=" in shown
    run(tmp_path / "b.tsv")
    assert capsys.readouterr() == ("", "")


def test_a_certificate_says_what_it_claims(tmp_path):
    run(tmp_path / "a.tsv", mode=Grid([0.1, 0.25], n=500))
    settings, row = read_votes(tmp_path / "a.tsv.votes").settings, read_log(tmp_path / "a.tsv")[0]
    said = {"noise": "Gaussian(sigma=0.5)", "norm": "2", "alpha": "0.001", "n0": "100", "n": "500"}
    said |= {"mode": "grid", "radii": "0.1,0.25", "dtype": "float32", "key": "0,3", "inputs": "11"}
    versions = {name: settings["versions"][name] for name in ("jaxsmooth", "jax")}
    assert row.settings == {**said, **versions}
    assert settings["key"] == [0, 3]


def test_a_log_without_votes_is_not_overwritten(tmp_path):
    (tmp_path / "a.tsv").write_text("mine")
    with pytest.raises(ValueError, match="it is no log to go on from"):
        run(tmp_path / "a.tsv")
    assert (tmp_path / "a.tsv").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": Anytime(bool), "group": 2}, "group must be 1 with Anytime"),
        ({"group": 0}, "group must be an integer"),
        ({"skip": 0}, "skip must be an integer"),
        ({"most": -1}, "most must be an integer"),
        ({"share": (2, 2)}, "share's index must be an integer"),
        ({"devices": []}, "devices must be some of this process's"),
        ({"devices": jax.local_devices(), "compiled": False}, "devices must be None where compiled is false"),
        ({"alpha": 2.0}, "alpha must be a number"),
    ],
)
def test_bad_arguments_are_refused_before_a_file_is_made(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "a.tsv", **changes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "fixed"}, r"mode must be Fixed\(\.\.\.\), Grid"),
        ({"mode": Grid}, "mode must be Fixed"),
        ({"mode": None}, "mode must be Fixed"),
        ({"mode": Fixed(bound="runner_up"), "noise": jaxsmooth.Laplace(0.5)}, "is for Gaussian noise"),
        ({"mode": Within(bound="runner_up"), "noise": jaxsmooth.Laplace(0.5)}, "is for Gaussian noise"),
        ({"f": 3}, "f must be a callable"),
        ({"noise": 0.5}, "noise must be an instance"),
    ],
)
def test_arguments_of_another_type_are_refused_before_a_file_is_made(tmp_path, changes, message):
    with pytest.raises(TypeError, match=message):
        run(tmp_path / "a.tsv", **changes)
    assert list(tmp_path.iterdir()) == []


def test_components_are_refused_before_a_file_is_made(tmp_path):
    """A log has one class for each input."""
    data = [(np.zeros(6, np.float32), 0)] * 3
    for mode in (Fixed(n=50), Grid([0.1], n=100), Within(n0=20, n=50), Anytime(n=300)):
        with pytest.raises(ValueError, match=r"f must return scores \[B, K\], got components of shape \(2, 3\)"):
            run(tmp_path / "a.tsv", data, f=grid_of_features, mode=mode)
    with pytest.raises(ValueError, match="got components of shape"):
        jaxsmooth.predict_dataset(grid_of_features, NOISE, KEY, data, tmp_path / "a.tsv", n=50, progress=False)
    assert list(tmp_path.iterdir()) == []


def batch_mean(x):
    return sign(x) - sign(x).mean(axis=0, keepdims=True)


def predict_over(path, **changes):
    changes.pop("mode", None)
    return jaxsmooth.predict_dataset(changes.pop("f"), NOISE, KEY, examples(), path, n=500, progress=False, **changes)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("run_over", [run, predict_over])
def test_a_classifier_that_depends_on_the_batch_is_refused_before_anything_is_written(tmp_path, run_over, compiled):
    arguments = {"path": tmp_path / "a.tsv", "f": batch_mean, "compiled": compiled}
    with pytest.raises(ValueError, match=r"its scores depend on the batch: those of (\d+) of \1 rows"):
        run_over(**arguments)
    assert list(tmp_path.iterdir()) == []
    assert len(run_over(**arguments, check=False)) == 11


class Biased(NamedTuple):
    """Gaussian noise of a generator with a planted bias."""

    sigma: float
    norm, scale, cdf, unit_radius = 2, Gaussian.scale, Gaussian.cdf, staticmethod(Gaussian.unit_radius)

    def sample(self, key, shape, dtype=jnp.float32):
        return Gaussian(self.sigma).sample(key, shape, dtype) + 0.1


def test_noise_that_fails_its_tests_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(
        ValueError, match="noise must have the named distribution, but it failed the tests distance, moment 1"
    ):
        run(tmp_path / "a.tsv", noise=Biased(0.5))
    assert list(tmp_path.iterdir()) == []


def test_what_the_tests_of_the_noise_found_is_kept_beside_the_log(tmp_path):
    run(tmp_path / "a.tsv")
    kept = json.loads((tmp_path / "a.tsv.noise").read_text())
    report = jaxsmooth.noise_report(NOISE, jaxsmooth.decision_keys(KEY)[1], examples()[0][0][None])
    assert kept["failed"] == []
    assert (kept["samples"], kept["features"], kept["false_alarm"]) == (2048, 4, 1e-6)
    assert kept["statistics"] == {s.name: {"value": s.value, "limit": s.limit} for s in report.statistics}
    run(tmp_path / "b.tsv", check=False)
    assert not (tmp_path / "b.tsv.noise").exists()


class Scaled(NamedTuple):
    """A user's noise: Gaussian, with one standard deviation for all features and a weight of at most 1 for each."""

    sigma: Any
    weights: Any
    norm, scale, unit_radius = 2, Gaussian.scale, staticmethod(Gaussian.unit_radius)

    def sample(self, key, shape, dtype=jnp.float32):
        e = Gaussian(self.sigma).sample(key, shape, dtype)
        return e * jnp.broadcast_to(jnp.asarray(self.weights, dtype), shape)


@partial(jax.tree_util.register_dataclass, data_fields=["sigma", "weights"], meta_fields=["kind"])
@dataclass(frozen=True)
class Dataclass:
    """The same as a dataclass, with a static field."""

    sigma: Any
    weights: Any
    kind: str = "mine"
    norm, scale, unit_radius = 2, property(lambda self: self.sigma), staticmethod(Gaussian.unit_radius)
    sample = Scaled.sample


class Named(Scaled):
    """One that says itself what a log says of it."""

    def parameters(self):
        return {"sigma": self.sigma, "own": 7.5}


WEIGHTS = np.array([1.0, 0.5, 1.0, 1.0], np.float32)


@pytest.mark.parametrize("kind", [Scaled, Dataclass])
def test_a_log_claims_the_noise_with_its_own_parameters(tmp_path, kind):
    run(tmp_path / "a.tsv", noise=kind(0.25, WEIGHTS))
    (claimed,) = {row.settings["noise"] for row in read_log(tmp_path / "a.tsv")}
    assert claimed.startswith(f"{kind.__name__}(sigma=0.25,weights=")
    # Another array makes another claim, and cannot go on from these files.
    run(tmp_path / "b.tsv", noise=kind(0.25, WEIGHTS[::-1].copy()))
    assert read_log(tmp_path / "b.tsv")[0].settings["noise"] != claimed
    run(tmp_path / "c.tsv", noise=kind(0.25, WEIGHTS))
    assert read_log(tmp_path / "c.tsv")[0].settings["noise"] == claimed


def test_a_log_claims_what_the_noise_says_of_itself(tmp_path):
    data = [(np.float32([k, 0, 0, 0]) / 8, 0) for k in range(2)]
    run(tmp_path / "a.tsv", data, noise=LatticeGaussian(0.25, 1 / 8))
    assert read_log(tmp_path / "a.tsv")[0].settings["noise"] == "LatticeGaussian(sigma=0.25,step=0.125)"
    run(tmp_path / "b.tsv", data, noise=Named(0.25, WEIGHTS))
    assert read_log(tmp_path / "b.tsv")[0].settings["noise"] == "Named(sigma=0.25,own=7.5)"


@pytest.mark.parametrize("kind", [Scaled, Dataclass, Named])
def test_noises_that_differ_in_an_array_only_share_no_files(tmp_path, kind):
    """Also where the words of the claim are the same: a digest of the arrays is among the settings."""
    run(tmp_path / "a.tsv", noise=kind(0.25, WEIGHTS), most=3)
    before = (tmp_path / "a.tsv").read_bytes(), (tmp_path / "a.tsv.votes").read_bytes()
    with pytest.raises(ValueError, match="was made under other settings"):
        run(tmp_path / "a.tsv", noise=kind(0.25, WEIGHTS[::-1].copy()))
    assert ((tmp_path / "a.tsv").read_bytes(), (tmp_path / "a.tsv.votes").read_bytes()) == before
    assert len(run(tmp_path / "a.tsv", noise=kind(0.25, WEIGHTS.copy()))) == 11  # equal arrays may go on


def test_lattices_of_two_steps_share_no_files(tmp_path):
    data = [(np.float32([k, 0, 0, 0]) / 8, 0) for k in range(4)]
    run(tmp_path / "a.tsv", data, noise=LatticeGaussian(0.25, 1 / 8), most=2)
    with pytest.raises(ValueError, match="was made under other settings"):
        run(tmp_path / "a.tsv", data, noise=LatticeGaussian(0.25, 1 / 16))


@pytest.mark.parametrize("mode", [Grid([0.1], n=500), Anytime(n=300)], ids=["grid", "anytime"])
def test_votes_of_a_run_that_stopped_early_support_its_own_certificates_only(tmp_path, mode):
    run(tmp_path / "a.tsv", mode=mode)
    votes = read_votes(tmp_path / "a.tsv.votes").votes
    for decide in (prediction, partial(certificate, noise=NOISE)):
        with pytest.raises(ValueError, match=f"votes must be of the rule 'fixed', got '{mode.name}'"):
            decide(votes)
        with pytest.raises(ValueError, match=f"got '{mode.name}'"):
            jax.jit(lambda v, decide=decide: decide(v).label)(replace(votes, n=500))


def test_votes_of_a_run_within_a_precision_are_decided_again(tmp_path):
    """The pilot set how many there are, not the votes that are counted."""
    run(tmp_path / "a.tsv", mode=Within(0.1, n0=100, n=3000))
    found = read_votes(tmp_path / "a.tsv.votes")
    again = certificate(found.votes, NOISE)
    for name in ("label", "radius", "p_lower"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found.certificate, name))
    looser = certificate(found.votes, NOISE, alpha=0.05)
    assert (np.asarray(looser.radius) >= np.asarray(again.radius)).all()


def of_weights(weight):
    return Partial(lambda w, x: jnp.stack([x[:, 0] + w, -x[:, 0]], axis=1), jnp.float32(weight))


class Seen:
    """A classifier that is called, and shows its weights."""

    def __init__(self, weight):
        self.weight = np.float32(weight)

    def __call__(self, x):
        return np.asarray(of_weights(self.weight)(x))

    def weights(self):
        return {"weight": self.weight}


def test_a_run_that_began_without_tests_is_tested_when_it_goes_on(tmp_path):
    path = tmp_path / "a.tsv"

    def f(x):  # depends on the batch
        return x[:, :3] - x[:, :3].mean(axis=0, keepdims=True)

    run(path, f=f, most=2, check=False)
    with pytest.raises(ValueError, match="its scores depend on the batch"):
        run(path, f=f, check=True)
    assert len(read_log(path)) == 2


def far_from_the_edge(number=6):
    """Inputs on which two classifiers that hardly differ get the same votes."""
    return [(np.array([5.0 + i, 0, 0, 0], np.float32), 0) for i in range(number)]


@pytest.mark.parametrize("made", [of_weights, Seen], ids=["pytree", "weights()"])
def test_another_checkpoint_is_refused_though_its_votes_are_the_same(tmp_path, made):
    path, changes = tmp_path / "a.tsv", {"data": far_from_the_edge(), "compiled": made is not Seen}
    rows = run(path, f=made(0.0), most=3, **changes)
    before = path.read_bytes(), path.with_name("a.tsv.votes").read_bytes()
    with pytest.raises(
        ValueError, match=r"other settings: classifier: weights sha256:.* in the file, weights sha256:.* now"
    ):
        run(path, f=made(0.01), **changes)
    assert (path.read_bytes(), path.with_name("a.tsv.votes").read_bytes()) == before
    assert certificates(run(path, f=made(0.0), **changes)[:3]) == certificates(rows)
    # The same votes: without the digest nothing would tell them apart.
    other = run(tmp_path / "b.tsv", f=made(0.01), **changes)
    assert [row.radius for row in other[:3]] == [row.radius for row in rows]


@pytest.mark.parametrize("listed", [True, False])
def test_a_classifier_that_shows_nothing_votes_again_where_it_is_told_best(tmp_path, listed):
    path = tmp_path / "a.tsv"
    close = (np.array([0.01, 0, 0, 0], np.float32), 0)
    pairs = [*far_from_the_edge(3), close, *far_from_the_edge(3)]
    data = (lambda: pairs) if listed else (lambda: iter(pairs))
    run(path, f=lambda x: of_weights(0.0)(x), data=data(), most=5)
    assert jaxsmooth.read_votes(f"{path}.votes").settings["classifier"] == "not identified"
    with pytest.raises(ValueError, match="f must be the classifier of the run, on such a machine: input 3 got"):
        run(path, f=lambda x: of_weights(0.3)(x), data=data())
    assert len(run(path, f=lambda x: of_weights(0.0)(x), data=data())) == 7


def test_another_condition_is_refused(tmp_path):
    path = tmp_path / "a.tsv"
    run(path, mode=Anytime(lambda result: bool(result.radius[0] > 0.05), n=4096), most=4)
    with pytest.raises(
        ValueError, match=r"mode must be that of the run: input \d has \d+ votes in the file, where `until`"
    ):
        run(path, mode=Anytime(lambda _: False, n=4096))
    run(path, mode=Anytime(lambda result: bool(result.radius[0] > 0.05), n=4096))


def test_labels_that_are_no_classes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"the label of input 1 must be a class below \d, which f has, got 9"):
        run(tmp_path / "a.tsv", data=[examples()[0], (examples()[1][0], 9)])


def test_data_frames_are_taken_by_rows(tmp_path):
    x, y = np.stack([x for x, _ in examples()]), np.array([label for _, label in examples()])
    frame, series = pandas.DataFrame(x), pandas.Series(y, index=[f"row {i}" for i in range(len(y))])
    rows = run(tmp_path / "a.tsv", data=(frame, series))
    assert [row._replace(seconds=0) for row in rows] == [row._replace(seconds=0) for row in run(tmp_path / "b.tsv")]
    with pytest.raises(TypeError, match=r"data must be pairs \(x, label\) or two arrays, got a DataFrame"):
        run(tmp_path / "c.tsv", data=frame)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"image": 0, "label": 1}, "got a dict with the keys image, label at index 0"),
        ((0, 1, 2), "got a tuple of 3 at index 0"),
        (7, "got a int at index 0"),
    ],
)
def test_items_that_are_no_pairs_are_named(tmp_path, item, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "a.tsv", data=[item])


def test_without_tqdm_progress_is_a_line_now_and_then(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    rows = run(tmp_path / "a.tsv", progress=True)
    total = len(rows)
    accuracy = sum(row.correct for row in rows) / total
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf"inputs: {total} of {total}, \d+ s, accuracy {accuracy:.3f}.*", line), line
    # Time passes: another line comes when five seconds have gone by, not with each input.
    clock = iter(np.arange(0, 1000, 2.0))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    run(tmp_path / "b.tsv", progress=True, group=1)
    lines = capsys.readouterr().err.splitlines()
    assert 1 < len(lines) <= total / 2 + 1


def test_a_path_that_is_no_log_is_called_what_it_is(tmp_path):
    with pytest.raises(ValueError, match="path must be that of a log file, got the directory"):
        run(tmp_path)
    with pytest.raises(
        ValueError, match=r"path must be that of the log, got .*a\.tsv\.votes: the votes go to <log>\.votes"
    ):
        run(tmp_path / "a.tsv.votes")
    with pytest.raises(ValueError, match="is a directory: the votes of a log are beside it"):
        jaxsmooth.read_votes(tmp_path)


def test_an_empty_run_can_go_on(tmp_path):
    assert run(tmp_path / "a.tsv", most=0) == []
    assert len(run(tmp_path / "a.tsv")) == len(examples())


def test_a_log_says_of_how_many_inputs_its_run_is(tmp_path):
    path = tmp_path / "a.tsv"
    data = examples()

    def broken(idx):
        if idx == 6:
            raise RuntimeError("the power is gone")
        return data[idx]

    class Data(list):
        def __getitem__(self, idx):
            return broken(idx)

    with pytest.raises(RuntimeError):
        run(path, data=Data(data), group=1)
    assert [row.settings["inputs"] for row in read_log(path)] == ["11"] * 6
    assert jaxsmooth.report_table({"mine": read_log(path)}, [0.0]).count("6 of 11") == 1
    run(path, most=2)  # the run stays as large as it was
    assert {row.settings["inputs"] for row in read_log(path)} == {"11"}
    run(path)
    assert " of " not in jaxsmooth.report_table({"mine": read_log(path)}, [0.0])


def test_what_is_certified_at_a_radius_counts_at_it(tmp_path):
    """Float32 has no 0.4: the nearest number below it is no 0.4 in a log, a table or a metric."""
    data = far_from_the_edge()
    rows = run(tmp_path / "a.tsv", data=data, mode=Grid([0.1, 0.4]))
    assert {row.radius for row in rows} == {row.radius for row in read_log(tmp_path / "a.tsv")} == {0.4}
    line = jaxsmooth.report_table({"mine": read_log(tmp_path / "a.tsv")}, [0.4]).splitlines()[1]
    assert "1.000" in line
    stored = read_votes(tmp_path / "a.tsv.votes").certificate
    x = np.stack([x for x, _ in data])
    for found in (stored, jaxsmooth.certify_radii(sign, NOISE, KEY, x, [0.1, 0.4])):
        assert jaxsmooth.certified_accuracy(found.label, found.radius, np.zeros(len(x)), [0.4]) == [1.0]
    assert float(np.float32(0.4)) != 0.4


class Shifted(torch.nn.Module):
    """A shift that no state dict holds."""

    def __init__(self, shift, kind):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        if kind == "attribute":
            self.shift = torch.tensor(shift)
        else:
            self.register_buffer("shift", torch.tensor(shift), persistent=False)

    def forward(self, x):
        return self.scale * torch.stack([x[:, 0] - self.shift, self.shift - x[:, 0]], dim=1)


def shifted_statically(shift, kind):
    def f(w, x, shift):
        return w * jnp.stack([x[:, 0] - shift, shift - x[:, 0]], axis=1)

    return Partial(f, jnp.ones(()), shift=shift) if kind == "number" else Partial(partial(f, shift=shift), jnp.ones(()))


@pytest.mark.parametrize("kind", ["attribute", "buffer", "number", "static"])
def test_numbers_that_are_no_weights_tell_a_classifier_too(tmp_path, kind):
    """The header tells them."""
    x = np.array([[5.0], [4.0], [0.1], [0.2], [6.0], [3.0]], np.float32)

    def classifier(shift):
        if kind in ("attribute", "buffer"):
            return bridges.pytorch.as_jax(Shifted(shift, kind))
        return shifted_statically(shift, kind)

    def go(shift, most):
        settings = {"mode": Fixed(n0=50, n=100), "most": most, "progress": False}
        return certify_dataset(
            classifier(shift), Gaussian(0.5), jax.random.key(0), (x, np.zeros(6, int)), tmp_path / "a.tsv", **settings
        )

    go(0.0, 4)
    with pytest.raises(ValueError, match=r"classifier: .* in the file, .* now"):
        go(2.0, 6)
    assert len(go(0.0, 6)) == 6


def test_data_that_became_fewer_are_refused_by_name(tmp_path):
    pairs = [(np.full(1, i, np.float32), 0) for i in range(6)]
    run(tmp_path / "a.tsv", f=of_weights(0.0), data=pairs)
    with pytest.raises(ValueError, match="data must be those of the run: input 5 is in the file of votes and not in"):
        run(tmp_path / "a.tsv", f=of_weights(0.0), data=pairs[:5])
