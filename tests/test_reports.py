"""Reports: the figures of the curves, in three forms and a picture."""

import re

import pytest

from jaxsmooth import LogRow, draw_curves, read_log, report_table
from tests.test_logs import PUBLISHED

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
    assert " of " not in report_table({"mine": rows[:1] * 50}, [0.0])


def test_norms_that_differ_are_said():
    runs = {name: [LogRow(0, 1, 1, 0.5, 1.0, 10, f"norm={norm}")] for name, norm in (("one", 1), ("two", 2))}
    assert "The radii are in different norms (L1, L2): they do not compare." in report_table(runs, [0.0])
    assert "different norms" not in report_table({"two": runs["two"], "again": runs["two"]}, [0.0])


@pytest.mark.parametrize("word", ["noise", "norm", "mode"])
def test_a_run_of_two_claims_is_refused(word):
    rows = [LogRow(idx, 1, 1, 0.5, 1.0, 10, f"{word}={idx}") for idx in range(2)]
    with pytest.raises(ValueError, match=rf"run 'mine' must be of one {word}, got \['0', '1'\]"):
        report_table({"mine": rows}, [0.0])
