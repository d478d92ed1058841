"""Reports: the figures of the curves, in three forms and a picture."""

import re

import jax
import numpy as np
import pytest
from scipy import special, stats

import jaxsmooth
from jaxsmooth import (
    Fixed,
    Gaussian,
    Grid,
    Laplace,
    LogRow,
    StoredRun,
    Votes,
    certificate,
    certify_dataset,
    draw_curves,
    draw_probabilities,
    log_rows,
    probability_table,
    read_log,
    read_votes,
    report_table,
    top_k_certificate,
    true_class_bounds,
)
from tests.classifiers import half_space
from tests.test_logs import PUBLISHED

NOISE = Gaussian(0.5)

CLAIM = "noise=Gaussian(sigma=0.5) norm=2 mode=fixed n0=100 n=1000 alpha=0.001 dtype=float32 jaxsmooth=0.1.0"


def rows(number=50, radius=0.6, claim=CLAIM, votes=1000):
    """Four of five are right; the others abstain."""
    right = [LogRow(i, 1, 1, radius * (i + 1) / number, 1.0, votes, claim) for i in range(number * 4 // 5)]
    return right + [LogRow(i, 1, -1, 0.0, 1.0, votes, claim) for i in range(number * 4 // 5, number)]


def test_the_table_has_accuracy_and_what_is_certain_of_it():
    lines = report_table({"mine": rows(), "other": rows(radius=1.2)}, [0.0, 0.3, 0.6]).splitlines()
    cells = [re.split(r"\s{2,}", line.strip()) for line in lines]
    assert cells[0] == ["run", "inputs", "0.00", "0.30", "0.60", "ACR", "abstained", "votes/input"]
    # 16 of 50 inputs, those of index 24 to 39, reach 0.3 and are right; 2 of 50 may be false.
    assert cells[1] == ["mine", "50", "0.800", "0.320", "0.000", "0.197", "0.200", "1,000"]
    assert cells[2] == ["at least", "0.760", "0.280", "0.000"]
    assert cells[3][:3] == ["other", "50", "0.800"]
    assert lines[5:] == [
        "noise Gaussian(sigma=0.5), norm 2, mode fixed, n0 100, n 1000, alpha 0.001, dtype float32, jaxsmooth 0.1.0"
    ]


def test_the_table_says_what_runs_claim_together_and_each_by_itself():
    mixed = rows()[:25] + rows(claim=CLAIM.replace("n=1000", "n=500"))[25:]
    runs = {"a": rows(claim=CLAIM.replace("n0=100", "n0=50")), "b": mixed, "published": rows(claim="")}
    assert report_table(runs, [0.0]).splitlines()[7:] == [
        "a: noise Gaussian(sigma=0.5), norm 2, mode fixed, n0 50, n 1000, alpha 0.001, dtype float32, jaxsmooth 0.1.0",
        "b: noise Gaussian(sigma=0.5), norm 2, mode fixed, n0 100, alpha 0.001, dtype float32, jaxsmooth 0.1.0",
    ]
    lines = report_table({"a": runs["a"], "b": mixed}, [0.0], style="markdown").splitlines()[6:]
    shared = "noise Gaussian(sigma=0.5), norm 2, mode fixed, alpha 0.001, dtype float32, jaxsmooth 0.1.0"
    assert lines == ["", shared, "", "a: n0 50, n 1000", "", "b: n0 100"]


def test_markdown_and_latex_have_the_same_cells():
    runs, radii = {"a_b & c": rows()}, [0.0, 0.3]
    text = [line.split() for line in report_table(runs, radii).splitlines()]
    markdown = report_table(runs, radii, style="markdown").splitlines()
    assert markdown[1] == "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    assert markdown[2].replace("|", " ").split() == text[1]
    latex = report_table(runs, radii, style="latex").splitlines()
    assert latex[0] == r"\begin{tabular}{lrrrrrr}"
    assert latex[4].startswith(r"a\_b \& c & 50 & 0.800")
    assert latex[-3].startswith(r"\multicolumn{7}{l}{\footnotesize noise Gaussian(sigma=0.5), norm 2")
    assert latex[-1] == r"\end{tabular}"


def test_alpha_is_that_of_the_log():
    many = rows(500, claim=CLAIM.replace("alpha=0.001", "alpha=0.01"))
    assert "at least          0.774" in report_table({"mine": many}, [0.0])
    unsaid = rows(500, claim="")
    assert "at least          0.792" in report_table({"mine": unsaid}, [0.0])
    assert "at least          0.774" in report_table({"mine": unsaid}, [0.0], alpha=0.01)
    with pytest.raises(ValueError, match="must be of one alpha"):
        report_table({"mine": many + unsaid}, [0.0])


def test_published_logs_are_reported(tmp_path):
    (tmp_path / "log.tsv").write_text(PUBLISHED)
    line = report_table({"published": read_log(tmp_path / "log.tsv")}, [0.25]).splitlines()[1]
    assert line.split() == ["published", "3", "0.333", "0.155", "0.333", "-"]


def test_curves_of_several_runs_are_one_picture(tmp_path):
    for name in ("curves.png", "curves.svg"):
        draw_curves({"mine": rows(), "other": rows(radius=1.2)}, tmp_path / name)
    picture = (tmp_path / "curves.svg").read_text()
    assert len(set(re.findall(r"stroke: (#[0-9a-f]{6}); stroke-width: 1\.5", picture))) >= 2
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("runs", "radii", "changes", "message"),
    [
        ({"mine": []}, [0.0], {}, "run 'mine' must have at least one input"),
        ({"mine": rows()}, [], {}, "radii must be a list of numbers"),
        ({"mine": rows()}, [-1.0], {}, "radii must be a list of numbers"),
        ({"mine": rows()}, [float("nan")], {}, "radii must be a list of numbers"),
        ({"mine": rows()}, [0.0], {"style": "html"}, "style must be one of text, markdown, latex"),
        ({"mine": rows()}, [0.0], {"delta": 0.0}, "delta must be a number"),
    ],
)
def test_bad_arguments_are_refused_by_name(runs, radii, changes, message):
    with pytest.raises(ValueError, match=message):
        report_table(runs, radii, **changes)


def test_an_unfinished_run_is_marked():
    rows = [LogRow(idx, 1, 1, 0.5, 1.0, 10, "norm=2 inputs=50") for idx in range(20)]
    assert "20 of 50" in report_table({"mine": rows}, [0.0])
    assert " of " not in report_table({"mine": [rows[0]._replace(idx=idx) for idx in range(50)]}, [0.0])


def test_inputs_that_are_there_twice_are_refused():
    for report in (lambda: report_table({"mine": rows() * 2}, [0.0]), lambda: draw_curves({"mine": rows() * 2})):
        with pytest.raises(ValueError, match="each input once"):
            report()


def test_a_column_is_about_the_radius_that_its_head_names():
    found = {"mine": [LogRow(idx, 1, 1, 0.3, 1.0, 10, "norm=2") for idx in range(20)]}
    for radii in (np.linspace(0, 1, 11)[3:4], np.float32([0.3]), [0.3]):
        head, line = report_table(found, radii).splitlines()[:2]
        assert (float(head.split()[2]), line.split()[2]) == (0.3, "1.000")
    # Nor is a column rounded down to a radius that holds.
    head, line = report_table(found, [0.3000001]).splitlines()[:2]
    assert float(head.split()[2]) <= 0.3 or line.split()[2] == "0.000"


def test_a_log_without_a_norm_is_of_gaussian_noise_and_not_beside_another():
    absolute = rows(claim=CLAIM.replace("Gaussian(sigma", "Laplace(scale").replace("norm=2", "norm=1"))
    with pytest.raises(ValueError, match="runs must be of one norm, got L1 and L2"):
        report_table({"published": rows(claim=""), "absolute": absolute}, [0.3])
    for runs in ({"published": rows(claim=""), "ours": rows()}, {"ours": rows(), "published": rows(claim="")}):
        assert draw_curves(runs).get_xlabel() == "L2 radius"


def test_legends_round_no_probability_up_and_miss_no_run():
    labels = draw_curves({"_mine": rows()}, delta=1e-7).get_legend_handles_labels()[1]
    assert labels == [r"$\_$mine", "lower bound, probability 0.9999999"]


def test_more_runs_than_colors_have_lines_that_differ():
    lines = draw_curves({f"run {index}": rows() for index in range(12)}).get_lines()
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 12


def test_names_of_runs_stay_in_their_cells():
    table = report_table({"a|b\nc": rows()}, [0.0], style="markdown").splitlines()
    assert table[2].startswith(r"| a\|b c | 50 |")


def test_rows_claim_the_votes_that_were_drawn():
    x = np.array([[1.0, 0.0], [0.0, 2.0]], np.float32)
    result = jaxsmooth.certify(lambda x: x, NOISE, jax.random.key(0), x, n=200)
    with pytest.raises(ValueError, match="n must be that of the result, 200, got 7"):
        log_rows(result, [0, 1], noise=NOISE, n=7)
    with pytest.raises(ValueError, match="truth must hold classes below 2, as many as were counted, got 2"):
        report_table({"mine": (result, [0, 2])}, [0.0])


def test_runs_in_norms_that_differ_are_refused(tmp_path):
    runs = {name: [LogRow(0, 1, 1, 0.5, 1.0, 10, f"norm={norm}")] for name, norm in (("one", 1), ("two", 2))}
    for report in (lambda: report_table(runs, [0.0]), lambda: draw_curves(runs, tmp_path / "a.png")):
        with pytest.raises(ValueError, match="of one norm, got L1 and L2"):
            report()
    assert not list(tmp_path.iterdir())
    assert "norm 2" in report_table({"two": runs["two"], "again": runs["two"]}, [0.0])


@pytest.mark.parametrize("word", ["noise", "norm", "mode"])
def test_a_run_of_two_claims_is_refused(word):
    rows = [LogRow(idx, 1, 1, 0.5, 1.0, 10, f"{word}={idx}") for idx in range(2)]
    with pytest.raises(ValueError, match=rf"run 'mine' must be of one {word}, got \['0', '1'\]"):
        report_table({"mine": rows}, [0.0])


@pytest.fixture
def stored(tmp_path):
    """A run over ten inputs at growing distance from a border, of which the last is labelled wrongly."""
    x = np.zeros((10, 2), np.float32)
    x[:, 0] = np.linspace(0, 1.8, 10)
    y = np.array([0] * 9 + [1])
    certify_dataset(
        half_space, NOISE, jax.random.key(0), (x, y), tmp_path / "a.tsv", mode=Fixed(n=2000), progress=False
    )
    return read_votes(tmp_path / "a.tsv.votes")


def test_probabilities_are_bounds_for_the_true_class(stored):
    table = probability_table({"mine": stored}, [0.0, 0.5, 0.99], alpha=0.01)
    bounds = true_class_bounds(stored.votes, stored.truth, alpha=0.01)
    k = stored.votes.counts[np.arange(10), stored.truth]
    expected = np.where(k > 0, stats.beta.ppf(0.01, np.maximum(k, 1), 2000 - k + 1), 0)
    np.testing.assert_allclose(bounds, expected, rtol=1e-6)
    assert (bounds <= expected).all()
    shares = [f"{(expected > level).mean():.3f}" for level in (0.0, 0.5, 0.99)]
    lines = table.splitlines()
    assert re.split(r"\s{2,}", lines[1].strip()) == ["mine", "10", *shares]
    assert 0 < float(shares[2]) < float(shares[1]) < 1
    # The level is that of the bounds, not that of the run.
    assert "alpha 0.01," in lines[2]
    assert probability_table({"mine": stored}, [0.5], style="latex").startswith(r"\begin{tabular}")


def test_bounds_for_a_known_class_exceed_its_probability_as_rarely_as_promised():
    """The twin is bounded after the votes chose the class."""
    alpha, trials = 0.05, 20_000
    counts = np.random.default_rng(0).multinomial(100, [0.5, 0.5], size=trials)
    truth = np.zeros(trials, int)
    proper = true_class_bounds(Votes(counts=counts, n=100), truth, alpha=alpha)
    broken = true_class_bounds(Votes(counts=counts, n=100), counts.argmax(axis=1), alpha=alpha)
    # Binomial of probability at most alpha: an alarm is false with probability below 1e-6.
    assert (proper > 0.5).sum() <= stats.binom.isf(1e-6, trials, alpha)
    assert (broken > 0.5).sum() > stats.binom.isf(1e-6, trials, alpha)


def test_probabilities_of_several_runs_are_one_picture(stored, tmp_path):
    for path in (tmp_path / "p.png", tmp_path / "p.svg"):
        draw_probabilities({"mine": stored, "other": stored}, path)
        assert path.stat().st_size > 5000


def test_curves_of_probabilities_are_nowhere_above_the_share(stored):
    bounds = true_class_bounds(stored.votes, stored.truth)
    (line, *_) = draw_probabilities({"mine": stored}).lines
    p = np.linspace(0.0101, 0.9998, 3001)  # between the ends, which the axis rounds
    # The value of steps that hold from their left end on.
    drawn = line.get_ydata()[np.searchsorted(special.ndtr(line.get_xdata()), p, side="right") - 1]
    share = (bounds[None] > p[:, None]).mean(axis=1)
    np.testing.assert_array_equal(drawn, share)
    assert share.min() < share.max()


def test_votes_of_another_rule_have_no_such_bounds(tmp_path):
    data = np.ones((2, 2), np.float32), np.zeros(2, int)
    path = tmp_path / "grid.tsv"
    certify_dataset(half_space, NOISE, jax.random.key(0), data, path, mode=Grid([0.1], n=500), progress=False)
    with pytest.raises(ValueError, match="rule 'fixed'"):
        probability_table({"grid": read_votes(f"{path}.votes")})
    with pytest.raises(TypeError, match="what read_votes returns"):
        probability_table({"rows": rows()})
    with pytest.raises(TypeError, match="runs must be"):
        draw_probabilities({}, path)


@pytest.mark.parametrize("probabilities", [[], [1.5], [-0.1], "p", [[0.5]], [float("nan")]])
def test_probabilities_that_are_none_are_refused(stored, probabilities):
    with pytest.raises((ValueError, TypeError), match="probabilities must be"):
        probability_table({"mine": stored}, probabilities)


@pytest.mark.parametrize("truth", [[0], [0] * 10 + [0], [2] * 10, [-1] * 10, [0.5] * 10])
def test_classes_that_do_not_fit_have_no_bounds(stored, truth):
    with pytest.raises(ValueError, match="truth must"):
        true_class_bounds(stored.votes, truth)


def test_heads_name_their_probability(stored):
    head = probability_table({"mine": stored}, [0.520170505, 0.5]).splitlines()[0]
    assert re.split(r"\s{2,}", head)[2:] == ["p > 0.520170505", "p > 0.5"]
    title = draw_probabilities({"mine": stored}, alpha=1e-7).get_legend().get_title().get_text()
    assert title == "bounds that hold with probability 0.9999999 each"


def test_a_result_is_no_result_under_another_noise(key):
    result = jaxsmooth.certify(lambda x: x, Gaussian(0.25), key, np.eye(3, dtype=np.float32), n=500)
    assert len(log_rows(result, [0, 1, 2], noise=Gaussian(0.25))) == 3
    with pytest.raises(
        ValueError, match=r"noise must be that of the result, whose radius .* under Gaussian\(sigma=2.5\)"
    ):
        log_rows(result, [0, 1, 2], noise=Gaussian(2.5))
    both = jaxsmooth.certify(lambda x: x, Gaussian(0.25), key, np.eye(3, dtype=np.float32), n=500, bound="runner_up")
    assert len(log_rows(both, [0, 1, 2], noise=Gaussian(0.25))) == 3


def test_settings_of_rows_are_words(stored):
    radii = np.array([0.25, 0.5])
    rows = log_rows(stored.certificate, stored.truth, noise=NOISE, alpha=0.001, radii=radii, key=jax.random.key(3))
    assert rows[0].settings["radii"] == "0.25,0.5"
    assert rows[0].settings["key"] == "0,3"


def test_a_share_of_almost_all_is_not_rounded_up():
    stored = StoredRun(
        {}, np.arange(3000), np.zeros(3000, int), np.zeros(3000), certificate(
            Votes(counts=np.array([[1000, 0]] * 2999 + [[0, 1000]]), n=1000, selection=np.array([[1, 0]] * 3000)), NOISE
        ), np.zeros(3000, int),
    )  # fmt: skip
    assert probability_table({"a": stored}, [0.5]).splitlines()[1].split()[-1] == "0.999"


def test_top_k_of_stored_votes_is_reported_beside_the_run(stored):
    """Certificates that are decided from stored votes become rows that say what they claim."""
    top = top_k_certificate(stored.votes, NOISE, 1, labels=stored.truth, alpha=0.002)
    lines = log_rows(top, stored.truth, noise=NOISE, alpha=0.002, idx=stored.idx, n=2000)
    with pytest.raises(ValueError, match="k must be that of the result, 1, got 2"):
        log_rows(top, stored.truth, noise=NOISE, alpha=0.002, k=2)
    assert [row.idx for row in lines] == stored.idx.tolist()
    assert lines[-1].predict == -1
    table = report_table({"run": stored.rows(), "top": lines}, [0.0, 0.5])
    assert "top: k 1, alpha 0.002" in table
    assert stored.rows()[3].radius == stored.certificate.radius[3]


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"truth": [0]}, ValueError, "truth must have one integer for each of the 10 inputs"),
        ({"truth": [0.5] * 10}, ValueError, "truth must hold integers"),
        ({"truth": [-1] * 10}, ValueError, "truth must hold integers of at least 0"),
        ({"idx": [0, 1]}, ValueError, "idx must have one integer"),
        ({"alpha": 2.0}, ValueError, "alpha"),
        ({"noise": 0.5}, TypeError, "noise must be"),
        ({"result": 3}, TypeError, "result must be a Certificate"),
        ({"noise": Laplace(0.5)}, ValueError, "noise must be that of the result, of norm 2, got one of norm 1"),
        ({"alpha": 0.01}, ValueError, "alpha must be that of the result, 0.001, got 0.01"),
        ({"k": 3}, ValueError, "k is for a result that says it"),
        ({"kay": 3}, TypeError, "settings must be among .*, got kay"),
        ({"norm": 1}, TypeError, "settings must be among .*, got norm"),
        ({"mode": "top k"}, ValueError, "mode must be one word"),
        ({"idx": [0] * 10}, ValueError, "idx must name each input once"),
        ({"seconds": -1.0}, ValueError, "seconds must be"),
        ({"key": 3}, TypeError, "key must be"),
    ],
)
def test_rows_of_bad_arguments_are_refused(stored, change, error, match):
    arguments = {"result": stored.certificate, "truth": stored.truth, "noise": NOISE, "alpha": 0.001, **change}
    with pytest.raises(error, match=match):
        log_rows(arguments.pop("result"), arguments.pop("truth"), **arguments)
