"""A run over a data set: the certificates of `certify`, whatever its order, its groups and its source."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import jaxsmooth
from jaxsmooth import Gaussian, read_log
from jaxsmooth.runs import certify_dataset
from jaxsmooth.stores import read_votes

KEY, NOISE = jax.random.key(3), Gaussian(0.5)


def sign(x):
    return jnp.stack([x[:, 0], -x[:, 0], x[:, 1]], axis=1)


def examples(number=11):
    rng = np.random.default_rng(0)
    return [(rng.normal(size=4).astype(np.float32), idx % 3) for idx in range(number)]


def run(path, data=None, f=sign, **changes):
    data = examples() if data is None else data
    return certify_dataset(f, NOISE, KEY, data, path, **{"n": 500, "verbose": False, **changes})


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
    _, votes = read_votes(tmp_path / "a.tsv.votes")
    np.testing.assert_array_equal([row.counts for row in votes], result.counts)
    np.testing.assert_array_equal([row.selection for row in votes], result.selection)


@pytest.mark.parametrize("mode", [{"radii": [0.1, 0.3]}, {"precision": 0.1, "n": 3000}])
def test_sequential_modes_give_their_own_certificates(tmp_path, mode):
    rows, x = run(tmp_path / "a.tsv", **mode), np.array([x for x, _ in examples()])
    function = jaxsmooth.certify_radii if "radii" in mode else jaxsmooth.certify_within
    grid = mode.get("radii", mode.get("precision"))
    result = function(sign, NOISE, KEY, x, grid, n0=100, n=mode.get("n", 500))
    assert [row.predict for row in rows] == result.label.tolist()
    assert [row.radius for row in rows] == result.radius.tolist()
    assert [row.votes for row in read_votes(tmp_path / "a.tsv.votes")[1]] == result.votes.tolist()


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
        asked.append(result.votes)
        return bool((result.radius >= 0.2).all())

    rows, x = run(tmp_path / "a.tsv", until=until, n=2000), np.array([x for x, _ in examples()])
    assert max(asked) < 2000
    for row, one in zip(rows, x, strict=True):
        results = jaxsmooth.certify_anytime(sign, NOISE, KEY, one[None], ids=[row.idx])
        result = next(r for r in results if r.votes >= 2000 or float(r.radius[0]) >= 0.2)
        assert (row.predict, row.radius, row.votes) == (int(result.label[0]), float(result.radius[0]), result.votes)
    assert {row.settings["mode"] for row in rows} == {"anytime"}


def test_predictions_are_those_of_predict_and_resume(tmp_path):
    path, x = tmp_path / "a.tsv", np.array([x for x, _ in examples()])
    predict = partial(jaxsmooth.predict_dataset, sign, NOISE, KEY, examples(), path, n=150, verbose=False)
    assert len(predict(most=4)) == 4
    rows, result = predict(), jaxsmooth.predict(sign, NOISE, KEY, x, n=150)
    assert [row.predict for row in rows] == result.label.tolist()
    assert -1 in result.label
    np.testing.assert_array_equal([row.counts for row in read_votes(f"{path}.votes")[1]], result.counts)
    assert rows[0].settings["mode"] == "prediction"
    with pytest.raises(ValueError, match="was made under other settings"):
        predict(alpha=0.01)


def test_skipping_and_shares_change_no_certificate(tmp_path):
    whole = certificates(run(tmp_path / "a.tsv"))
    assert certificates(run(tmp_path / "b.tsv", skip=3)) == whole[::3]
    assert certificates(run(tmp_path / "c.tsv", most=5)) == whole[:5]
    assert certificates(run(tmp_path / "c.tsv")) == whole
    generated = (pair for pair in examples())
    assert certificates(run(tmp_path / "d.tsv", generated, skip=2, most=6)) == whole[:6:2]


def test_a_finished_run_calls_the_classifier_with_one_batch_alone(tmp_path):
    run(tmp_path / "a.tsv")
    calls = []

    def counted(x):
        calls.append(len(x))
        return np.asarray(sign(x))

    before = (tmp_path / "a.tsv").read_bytes(), (tmp_path / "a.tsv.votes").read_bytes()
    run(tmp_path / "a.tsv", f=counted, compiled=False)
    assert calls == [256]
    assert ((tmp_path / "a.tsv").read_bytes(), (tmp_path / "a.tsv.votes").read_bytes()) == before


def scaled(weight):
    return Partial(lambda w, x: sign(x) * w, jnp.float32(weight))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 501}, "was made under other settings"),
        ({"alpha": 0.01}, "was made under other settings"),
        ({"radii": [0.1]}, "was made under other settings"),
        ({"f": scaled(1.0)}, "was made under other settings"),
        ({"f": lambda x: -sign(x)}, "is of another classifier"),
        ({"data": [(x + 1, label) for x, label in examples()]}, "is of another classifier"),
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
        ((np.zeros((3, 4), np.float32), np.zeros(2, int)), "as many inputs as labels"),
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
    assert run(tmp_path / "b.tsv", most=2) == whole[:2]
    assert (tmp_path / "b.tsv").read_bytes() == before


def test_a_bar_shows_inputs_accuracy_and_votes_saved(tmp_path, capsys):
    run(tmp_path / "a.tsv", radii=[0.1], verbose=True)
    shown = capsys.readouterr().err
    assert "11.0/11.0" in shown
    assert "accuracy=" in shown
    assert "votes_saved=" in shown
    run(tmp_path / "b.tsv")
    assert capsys.readouterr() == ("", "")


def test_a_certificate_says_what_it_claims(tmp_path):
    run(tmp_path / "a.tsv", radii=[0.1, 0.25])
    settings, row = read_votes(tmp_path / "a.tsv.votes")[0], read_log(tmp_path / "a.tsv")[0]
    said = {"noise": "Gaussian", "norm": "2", "scale": "0.5", "alpha": "0.001", "n0": "100", "n": "500"}
    said |= {"mode": "grid", "radii": "0.1,0.25", "bound": "cohen", "dtype": "float32"}
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
        ({"radii": [0.1], "precision": 0.1}, "give one of them"),
        ({"radii": [0.1], "bound": "runner_up"}, "bound must be 'cohen' with radii"),
        ({"group": 0}, "group must be an integer"),
        ({"skip": 0}, "skip must be an integer"),
        ({"most": -1}, "most must be an integer"),
        ({"share": (2, 2)}, "share's index must be an integer"),
        ({"devices": []}, "devices must be some of this process's"),
        ({"devices": jax.local_devices(), "compiled": False}, "devices must be None where compiled is false"),
        ({"until": bool, "bound": "runner_up"}, "bound must be 'cohen' with until"),
        ({"alpha": 2.0}, "alpha must be a number"),
        ({"bound": "other"}, "bound must be"),
    ],
)
def test_bad_arguments_are_refused_before_a_file_is_made(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "a.tsv", **changes)
    assert list(tmp_path.iterdir()) == []
