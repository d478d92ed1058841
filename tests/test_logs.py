"""Logs: what is written is read, radii never grow, damage is named."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsmooth import LogRow, certified_accuracy, read_log, write_log

# The forms of the files that Cohen et al. published: three significant digits, abstention -1, clock times or seconds.
PUBLISHED = (
    "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
    "0\t3\t3\t0.464\t1\t0:00:18.512\n20\t7\t-1\t0.0\t0\t15.6\n40\t4\t5\t0.921\t0\t1 day, 0:01:02\n"
)

HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"


def test_what_is_written_is_read(tmp_path):
    rows = [LogRow(0, 3, 3, 0.125, 1.25, 480, "norm=2 alpha=0.001"), LogRow(7, 2, -1, 0.0, 0.0)]
    rows += [LogRow(9, 1, 0, 3.811456, 90_000.5)]
    write_log(tmp_path / "log.tsv", rows)
    assert read_log(tmp_path / "log.tsv") == rows
    assert [path.name for path in tmp_path.iterdir()] == ["log.tsv"]


def test_published_logs_are_read(tmp_path):
    (tmp_path / "log.tsv").write_text(PUBLISHED)
    rows = read_log(tmp_path / "log.tsv")
    assert [row.correct for row in rows] == [True, False, False]
    assert [row.seconds for row in rows] == [18.512, 15.6, 86_462]
    predicted, radius, truth = zip(*((row.predict, row.radius, row.label) for row in rows), strict=True)
    np.testing.assert_allclose(certified_accuracy(predicted, radius, truth, [0.0, 0.5]), [1 / 3, 0])


@given(st.floats(0, 1e6, width=32))
def test_radii_are_rounded_down_and_by_less_than_a_millionth(tmp_path_factory, radius):
    path = tmp_path_factory.mktemp("log") / "log.tsv"
    write_log(path, [LogRow(0, 1, 1, np.float32(radius), 0.0)])
    written = Fraction(path.read_text().splitlines()[1].split("\t")[3])
    assert Fraction(radius) - Fraction(1, 10**6) < written <= Fraction(radius)
    assert read_log(path)[0].radius <= radius


@pytest.mark.parametrize(("radius", "seconds"), [(-0.1, 0.0), (np.nan, 0.0), (0.1, np.inf)])
def test_nothing_is_written_when_a_number_is_bad(tmp_path, radius, seconds):
    path = tmp_path / "log.tsv"
    path.write_text("kept")
    with pytest.raises(ValueError, match="must be finite and not negative"):
        write_log(path, [LogRow(0, 1, 1, 0.5, 0.0), LogRow(1, 1, 1, radius, seconds)])
    assert path.read_text() == "kept"


@pytest.mark.parametrize("claim", ["alpha", "a=1  b=2", "a=1\tb=2", "a=1\nb=2", " a=1", "a=1\r"])
def test_a_claim_that_could_not_be_read_again_is_refused(tmp_path, claim):
    with pytest.raises(ValueError, match="claim must be name=value words"):
        write_log(tmp_path / "log.tsv", [LogRow(0, 1, 1, 0.5, 0.0, 10, claim)])
    assert list(tmp_path.iterdir()) == []


def test_a_claim_is_read_by_name():
    assert LogRow(0, 1, 1, 0.5, 0.0, 10, "norm=2 radii=0.25,0.5").settings == {"norm": "2", "radii": "0.25,0.5"}
    assert LogRow(0, 1, 1, 0.5, 0.0).settings == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must begin with the columns"),
        ("idx\tpredict\n", "must begin with the columns"),
        (HEADER + "0\t3\t3\t0.4", "line 2 is torn"),
        (HEADER + "0\t3\t3\t0.4\t1\t15.", "line 2 is torn"),
        (HEADER + "0\t3\t3\t0.4\n", "line 2: expected the columns idx label"),
        (HEADER + "0\t3\t3\t0.4\t1\t15.2\t100\t\n", "line 2: expected the columns idx label"),
        (HEADER + "0\t3\t3\tnan\t1\t0:00:01\n", "line 2, column radius: expected a radius of at least 0, got 'nan'"),
        (HEADER + "0\t3\t3\t-0.1\t1\t0:00:01\n", "line 2, column radius: expected"),
        (
            HEADER + "0\t3\t3\t0.5\t1\t0:00:01\n1\t3\t3\t0.5\t0\t0:00:01\n",
            "line 3, column correct: expected 1, as predict says, got '0'",
        ),
    ],
)
def test_damage_is_named(tmp_path, text, message):
    (tmp_path / "log.tsv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_log(tmp_path / "log.tsv")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, "-1", "column idx: expected an index of at least 0, got '-1'"),
        (1, "-1", "column label: expected a class of at least 0, got '-1'"),
        (2, "-2", "column predict: expected a class, or -1, got '-2'"),
        (3, "inf", "column radius: expected a radius of at least 0, got 'inf'"),
        (4, "yes", "column correct: expected 1, as predict says, got 'yes'"),
        (5, "-3", "column time: expected a time, as 0:00:01.5, got '-3'"),
        (5, "nan", "column time: expected a time"),
        (6, "-7", "column votes: expected a number of at least 0, got '-7'"),
    ],
)
def test_a_value_that_cannot_be_names_its_column(tmp_path, place, value, message):
    path = tmp_path / "log.tsv"
    write_log(path, [LogRow(0, 1, 1, 0.5, 1.0, 10, "norm=2")])
    head, line = path.read_text().splitlines()
    fields = line.split("\t")
    fields[place] = value
    path.write_text(f"{head}\n" + "\t".join(fields) + "\n")
    with pytest.raises(ValueError, match=f"line 2, {message}"):
        read_log(path)


def test_published_truth_values_are_read(tmp_path):
    path = tmp_path / "log.tsv"
    lines = ["idx\tlabel\tpredict\tradius\tcorrect\ttime", "0\t1\t1\t0.5\tTrue\t0:00:01", "1\t1\t0\t0.5\tFalse\t2.5"]
    path.write_text("\n".join(lines) + "\n")
    assert [row.correct for row in read_log(path)] == [True, False]
    path.write_text(path.read_text().replace("True", "False"))
    with pytest.raises(ValueError, match="column correct: expected 1, as predict says, got 'False'"):
        read_log(path)


def test_other_files_are_called_what_they_are(tmp_path):
    path = tmp_path / "log.tsv"
    write_log(path, [LogRow(0, 1, 1, 0.5, 1.0)])
    text = path.read_text()
    for data, message in (
        (text.encode("utf-16"), "is in UTF-16: save it as UTF-8"),
        (text.encode("utf-8-sig"), "begins with a byte order mark"),
        (b"\xff" + text.encode(), "is no text in UTF-8"),
        (b"jaxsmooth votes 4\n", "is a file of votes, not a log: read_votes reads it"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            read_log(path)
    with pytest.raises(ValueError, match="is a directory, not a log"):
        read_log(tmp_path)


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "log.tsv"
    link.symlink_to(tmp_path / "disk" / "real.tsv")
    for idx in range(2):
        write_log(link, [LogRow(idx, 1, 1, 0.5, 1.0)])
        assert link.is_symlink()
        assert [row.idx for row in read_log(tmp_path / "disk" / "real.tsv")] == [idx]


def test_an_index_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / "a.tsv"
    write_log(path, [LogRow(0, 1, 1, 0.5, 1.0), LogRow(3, 1, 1, 0.5, 1.0)])
    path.write_text(path.read_text() + path.read_text().splitlines()[2] + "\n")
    with pytest.raises(ValueError, match=r"a\.tsv, line 4: idx 3 is there before, in line 3"):
        read_log(path)


def test_a_radius_of_a_grid_is_read_as_it_was_given(tmp_path):
    """0.3 is a little less than 3/10 as a float, and 0.299999 would not count at 0.3."""
    given = [0.3, 0.7, 1.1, float(np.float32(0.3)), float(np.float32(0.7)), 0.2999999]
    write_log(tmp_path / "a.tsv", [LogRow(index, 0, 0, radius, 1.0) for index, radius in enumerate(given)])
    read = [row.radius for row in read_log(tmp_path / "a.tsv")]
    assert read == [0.3, 0.7, 1.1, 0.3, 0.699999, 0.299999]
    assert all(found <= radius for found, radius in zip(read, given, strict=True))
    write_log(
        tmp_path / "c.tsv", [LogRow(0, 0, 0, np.nextafter(np.longdouble(0.3), 0), 1.0), LogRow(1, 0, 0, 1e30, 1.0)]
    )
    assert [row.radius for row in read_log(tmp_path / "c.tsv")] == [0.299999, 1e30]
    write_log(tmp_path / "b.tsv", [LogRow(0, 0, 0, np.float32(0.7), 1.0)])
    assert read_log(tmp_path / "b.tsv")[0].radius == 0.699999
