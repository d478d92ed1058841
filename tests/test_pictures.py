"""Pictures: what is drawn is what was certified, where the caller wants it, and nothing is cut off."""

import itertools
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxsmooth import (
    Ablation,
    Fixed,
    Gaussian,
    LogRow,
    RandomClassifier,
    Splitting,
    certified_accuracy,
    certified_accuracy_bound,
    certify,
    certify_anytime,
    certify_changed,
    certify_dataset,
    certify_levels,
    certify_radii,
    certify_splitting,
    certify_top_k,
    certify_within,
    count_votes,
    decision_keys,
    draw_curves,
    draw_votes,
    read_votes,
    report_table,
    stream_samples,
)
from tests.classifiers import half_space

NOISE = Gaussian(0.5)
CLAIM = "noise=Gaussian(sigma=0.5) norm=2 mode=fixed n0=100 n=1000 alpha=0.001"


def rows(number=50, radius=0.6, claim=CLAIM):
    return [LogRow(i, 1, 1, radius * (i + 1) / number, 1.0, 1000, claim) for i in range(number)]


@pytest.fixture(scope="module")
def result():
    x = np.zeros((40, 2), np.float32)
    x[:, 0] = np.linspace(-0.4, 1.6, 40)
    truth = np.zeros(40, int)
    return certify(half_space, NOISE, jax.random.key(0), x, n=1000, alpha=0.01), truth


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_a_result_with_its_classes_is_a_run(result):
    table = report_table({"mine": result}, [0.0, 0.5])
    certificate, truth = result
    accuracy = certified_accuracy(certificate.label, certificate.radius, truth, [0.0, 0.5])
    bound = certified_accuracy_bound(certificate.label, certificate.radius, truth, [0.0, 0.5], alpha=0.01)
    lines = table.splitlines()
    assert lines[1].split()[2:4] == [f"{value:.3f}" for value in accuracy]
    # The level of the certificate counts, and not the default of the report.
    assert lines[2].split()[2:4] == [f"{value:.3f}" for value in bound]
    default = certified_accuracy_bound(certificate.label, certificate.radius, truth, [0.0, 0.5], alpha=0.001)
    assert (default > bound).all()
    assert lines[3] == "norm 2, alpha 0.01"
    ax = draw_curves({"mine": result})
    assert ax.get_xlabel() == "L2 radius"
    drawn = ax.lines[0]
    expected = certified_accuracy(certificate.label, certificate.radius, truth, drawn.get_xdata())
    np.testing.assert_array_equal(drawn.get_ydata(), expected)


def test_results_of_two_norms_are_refused_and_no_chance_has_no_band(result):
    x = np.array([[0.2, 0.2], [0.8, 0.8]], np.float32)
    exact = certify_splitting(lambda x: jnp.stack([1 - x[:, 0], x[:, 1]], 1), Splitting(0.5),
                              jax.random.key(0), x)  # fmt: skip
    with pytest.raises(ValueError, match="of one norm, got L1 and L2"):
        report_table({"two": result, "one": (exact, [0, 1])}, [0.0])
    ax = draw_curves({"exact": (exact, [0, 1])})
    assert ax.get_xlabel() == "L1 radius"
    assert legend(ax) == ["exact"]
    assert any("probability 0.999" in text for text in legend(draw_curves({"mine": result})))


def test_a_run_that_is_not_finished_says_so_beside_its_curve():
    rows = [LogRow(idx, 1, 1, 0.5, 1.0, 100, "norm=2 alpha=0.001 n=100 n0=10 inputs=12") for idx in range(3)]
    whole = [row._replace(idx=idx, claim=row.claim.replace("=12", "=3")) for idx, row in enumerate(rows)]
    ax = draw_curves({"half": rows, "whole": whole})
    assert legend(ax)[:2] == ["half (3 of 12 inputs)", "whole"]
    assert ax.get_title() == "n 100, alpha 0.001"


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda result: result[0], r"a Certificate alone for run 'mine': give \(result, truth\)"),
        (lambda result: (*result, 3), "a tuple of 3 for run 'mine'"),
        (lambda result: (result[0], [0]), "run 'mine': truth must have one integer for each of the 40 inputs"),
        (lambda result: (result[0], result[1] + 0.5), "run 'mine': truth must hold integers"),
        (lambda result: (result[1], result[0]), "got tuple for run 'mine'"),
    ],
)
def test_what_is_no_run_is_named(result, run, message):
    with pytest.raises((TypeError, ValueError), match=message):
        report_table({"mine": run(result)}, [0.0])


def test_a_certificate_that_does_not_say_its_level_is_refused(result):
    unknown = replace(result[0], alpha=None)
    with pytest.raises(ValueError, match="a certificate that says its alpha"):
        report_table({"mine": (unknown, result[1])}, [0.0])
    known = replace(unknown, alpha=0.2)
    assert report_table({"mine": (known, result[1])}, [0.0]).splitlines()[-1] == "norm 2, alpha 0.2"


def test_every_mode_says_its_level_and_its_norm(key):
    x = np.array([[1.0, 0.0], [0.5, 0.0]], np.float32)
    arguments = (half_space, NOISE, key, x)
    split = certify_splitting(lambda x: x, Splitting(0.5), key, np.eye(2, dtype=np.float32))
    levels = [(half_space, Gaussian(0.25)), (half_space, NOISE)]
    results = {
        "certify": certify(*arguments, n=100, alpha=0.2),
        "called": certify(*arguments, n=100, alpha=0.2, compiled=False),
        "jit": jax.jit(lambda x: certify(half_space, NOISE, key, x, n=100, alpha=0.2))(x),
        "radii": certify_radii(*arguments, [0.1], n=100, alpha=0.2),
        "within": certify_within(*arguments, n=100, alpha=0.2),
        "anytime": next(certify_anytime(*arguments, alpha=0.2)),
        "top k": certify_top_k(half_space, NOISE, key, x, k=1, n=100, alpha=0.2),
        "levels": certify_levels(half_space, levels, NOISE, key, x, mode=Fixed(n=100), alpha=0.2),
        "changed": certify_changed(half_space, lambda x: x, NOISE, key, x, m=50, alpha=0.2,
                                   votes=certify(*arguments, n=100).votes),
    }  # fmt: skip
    assert {name: (found.alpha, found.norm) for name, found in results.items()} == dict.fromkeys(results, (0.2, 2))
    assert (split.alpha, split.norm) == (0, 1)


def test_heads_of_columns_name_their_radius():
    """0.375 is not 0.38, and two columns do not share a head."""
    head = report_table({"mine": rows()}, [0.0, 0.25, 0.375, 1 / 255, 2 / 255, 0.30000000000000004]).splitlines()[0]
    assert head.split()[2:-3] == ["0.00", "0.25", "0.375", "0.00392156", "0.00784313", "0.30"]


def test_predictions_are_no_certificates():
    with pytest.raises(ValueError, match="must be of certificates, got predictions"):
        report_table({"mine": rows(claim="mode=prediction norm=2 n=10 alpha=0.001")}, [0.0])


def test_names_that_would_be_one_are_refused():
    with pytest.raises(ValueError, match="names that differ"):
        report_table({1: rows(), "1": rows()}, [0.0])


def test_curves_are_drawn_on_the_axes_of_the_caller(tmp_path):
    figure = Figure(figsize=(7, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    styles = {"mine": {"color": "black", "linestyle": "--", "label": "ResNet-110"}}
    assert draw_curves({"mine": rows(), "other": rows(radius=1.2)}, ax=left, title="", styles=styles) is left
    assert left.get_title() == ""
    assert legend(left)[:2] == ["ResNet-110", "other"]
    assert left.lines[0].get_linestyle() == "--"
    assert not right.lines
    # The band has the colour of its curve.
    assert mpl.colors.to_hex(left.collections[0].get_facecolor()[0]) == "#000000"
    draw_curves({"mine": rows()}, tmp_path / "both.pdf", ax=right)
    assert (tmp_path / "both.pdf").read_bytes().startswith(b"%PDF")
    assert b"/Type3" not in (tmp_path / "both.pdf").read_bytes()


@pytest.mark.parametrize("title", [None, "A" * 200, "many words that go on and on " * 12, "two\nlines", "short"])
@pytest.mark.parametrize("columns", [1, 3])
def test_no_title_is_cut(title, columns):
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = np.ravel(figure.subplots(1, columns))
    claim = CLAIM.replace("mode", "levels=" + ",".join(f"Gaussian(sigma={i})" for i in range(12)) + " mode")
    for ax in axes:
        draw_curves({"mine": rows(claim=claim)}, ax=ax, title=title)
    figure.draw_without_rendering()
    extents = [ax.title.get_window_extent() for ax in axes]
    assert all(left.x1 <= right.x0 for left, right in itertools.pairwise(extents))
    for ax in axes:
        drawn = ax.title.get_window_extent()
        assert drawn.x0 >= figure.bbox.x0
        assert drawn.x1 <= figure.bbox.x1
        assert drawn.y1 <= figure.bbox.y1
        assert title is None or "".join(ax.get_title().split()) == "".join(title.split())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"styles": {"none": {}}}, "styles must be of the runs mine, got none"),
        ({"styles": [1]}, "styles must be a mapping"),
        ({"ax": 3}, "ax must be matplotlib axes"),
        ({"title": 3}, "title must be text"),
    ],
)
def test_bad_arguments_of_curves_are_named(changes, message):
    with pytest.raises((TypeError, ValueError), match=message):
        draw_curves({"mine": rows()}, **changes)


def test_the_votes_that_are_drawn_are_those_of_the_certificate(key, tmp_path):
    x = np.random.default_rng(0).uniform(size=(3, 5, 4)).astype(np.float32)
    weights = np.random.default_rng(1).normal(size=(20, 3)).astype(np.float32)

    def f(x):
        return x.reshape(len(x), -1) @ weights

    figure = draw_votes(f, NOISE, key, x, tmp_path / "votes.png", y=[2, 0, 1], copies=4, names=["a", "b", "c"], n=500)
    grid = np.array(figure.axes).reshape(3, 6)
    expected = certify(f, NOISE, key, x, n=500)
    _, estimation = decision_keys(key)
    ((noisy, row),) = stream_samples(NOISE, estimation, x, n=4, batch_size=12)
    labels = np.asarray(f(noisy)).argmax(axis=1)
    for index, axes in enumerate(grid):
        np.testing.assert_array_equal(axes[0].images[0].get_array(), x[index])
        assert axes[0].get_xlabel() == f"true: {'cab'[index]}"
        copies = np.asarray(noisy)[row == index]
        for ax, copy, label in zip(axes[1:5], copies, labels[row == index], strict=True):
            np.testing.assert_array_equal(ax.images[0].get_array(), copy)
            assert ax.get_title() == "abc"[label]
        heights = [bar.get_height() for bar in axes[5].patches]
        assert heights == expected.votes.counts[index].tolist()
        label, radius = int(expected.label[index]), float(expected.radius[index])
        said = axes[5].get_xlabel()
        if label < 0:
            assert said == "abstains"
        else:
            shown = re.fullmatch(rf"{'abc'[label]}, radius (\d\.\d{{3}})", said).group(1)
            assert radius - 0.001 < float(shown) <= radius
    # The copies are a part of what is counted: the first four of the 500 samples.
    assert (count_votes(f, NOISE, estimation, x, n=4) <= np.asarray(expected.votes.counts)).all()
    assert (tmp_path / "votes.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("shape", "image"),
    [((4, 4), None), ((4, 4, 1), None), ((4, 4, 3), None), ((3, 4, 4), None), ((1, 4, 4), None), ((16,), None),
     ((2, 8, 2), lambda one: one.reshape(4, 8))],
)  # fmt: skip
def test_inputs_of_many_shapes_are_drawn(key, shape, image):
    x = np.random.default_rng(0).uniform(0, 255, size=(2, *shape)).astype(np.float32)
    figure = draw_votes(lambda x: x.reshape(len(x), -1)[:, :2], Gaussian(20.0), key, x, image=image, n=100)
    assert len(figure.axes) == 2 * 7
    drawn = [ax for ax in figure.axes if ax.images or ax.lines]
    assert len(drawn) == 2 * 6
    colours = [ax.images[0].get_array() for ax in drawn if ax.images and ax.images[0].get_array().ndim == 3]
    assert all(array.min() >= 0 and array.max() <= 1 for array in colours)


def test_wide_integers_keep_their_class_and_long_names_their_place(key):
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)

    def f(rows):  # in 32 bits, class 0 would be negative
        return np.stack([np.full(len(rows), 3_000_000_000), np.zeros(len(rows), np.int64)], axis=-1)

    names = ["Staffordshire bullterrier", "German short-haired pointer"]
    figure = draw_votes(f, NOISE, key, x, n=200, y=[0, 1], names=names, compiled=False)
    first = figure.axes[: len(figure.axes) // 2]
    assert [axes.get_title() for axes in first[1:-1]] == ["Staffordshire…"] * 5
    assert first[-1].get_xlabel().splitlines()[0] == "Staffordshire…"
    width = figure.bbox.width
    for axes in figure.axes:
        for text in (axes.title, axes.xaxis.label):
            box = text.get_window_extent()
            assert 0 <= box.x0 <= box.x1 <= width


def test_odd_classifiers_are_drawn_as_they_are(key):
    x = np.full((1, 4), 0.3, np.float32)
    broken = draw_votes(lambda x: jnp.where(x > 0, x, jnp.nan), NOISE, key, x, n=100, compiled=False)
    assert "invalid" in [ax.get_title() for ax in broken.axes]
    noisy = RandomClassifier(lambda x, keys: x + jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys))
    assert [ax.get_title() for ax in draw_votes(noisy, NOISE, key, x, copies=2, n=100).axes][1:3] == ["", ""]
    many = draw_votes(lambda x: jnp.tile(x, (1, 10)), NOISE, key, x, copies=1, n=100)
    assert len(many.axes[-1].patches) == 12
    masked = Ablation(4, 1, mask=0.0)
    kept = draw_votes(lambda x: jnp.stack([x.sum(1), x.sum(1) - 5], 1), masked, key, x, copies=1, n=2000)
    assert kept.axes[-1].get_xlabel() == "0, 1 may change"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": np.zeros((17, 4), np.float32)}, "x must hold 1 to 16 inputs to draw, got 17"),
        ({"x": np.zeros((2, 4, 1, 4), np.float32)}, "x must hold images"),
        ({"names": ["a"]}, "names must hold one name for each of 4 classes"),
        ({"names": "abcd"}, "names must hold one name"),
        ({"copies": -1}, "copies must be"),
        ({"image": 3}, "image must be a function"),
        ({"n": 0}, "n must be"),
        ({"y": [0]}, "y must have one label for each of the 2 inputs"),
        ({"y": [0, 4]}, r"y must lie in \[0, 4\)"),
    ],
)
def test_bad_arguments_of_votes_are_named(key, changes, message):
    arguments = {"x": np.zeros((2, 4), np.float32), "n": 50, **changes}
    with pytest.raises((TypeError, ValueError), match=message):
        draw_votes(lambda x: x.reshape(len(x), -1)[:, :4], NOISE, key, **arguments)


def test_a_stored_run_is_a_run(tmp_path):
    data = (np.eye(2, dtype=np.float32), np.arange(2))
    path, mode = tmp_path / "a.tsv", Fixed(n=100)
    made = certify_dataset(half_space, NOISE, jax.random.key(0), data, path, mode=mode, progress=False)
    stored = read_votes(tmp_path / "a.tsv.votes")
    assert report_table({"a": stored}, [0.0]) == report_table({"a": made}, [0.0])
    assert stored.certificate.alpha == 0.001
    assert stored.certificate.norm == 2
