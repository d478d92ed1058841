"""A level of noise for each input: half spaces with exact radii, the twin without the selector's radius, the modes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsmooth import (
    ABSTAIN,
    Anytime,
    Fixed,
    Gaussian,
    Grid,
    Laplace,
    LatticeGaussian,
    Level,
    Within,
    certificate,
    certify,
    certify_dataset,
    certify_levels,
    certify_levels_dataset,
    key_of_seed,
    log_rows,
    merge_shares,
    probability_table,
    read_log,
    read_votes,
    report_table,
)
from jaxsmooth.stream import Stream, stream_key
from tests.classifiers import grid_of_features, half_space
from tests.guarantees.alarms import raises_alarm

KEY = key_of_seed(0)
NARROW, WIDE = Gaussian(0.25), Gaussian(1.0)
LEVELS = [Level(half_space, NARROW), Level(half_space, WIDE)]
NOISE = Gaussian(0.5)


def by_second_feature(x):
    """Level 1 where the second feature is positive: it changes at that distance."""
    return jnp.stack([-x[:, 1], x[:, 1]], axis=1)


def points(number, first, second):
    return jnp.zeros((number, 2)).at[:, 0].set(first).at[:, 1].set(second)


@pytest.mark.parametrize("mode", [Fixed(n0=50, n=300), Grid([0.05, 0.1, 0.11, 0.2, 0.4, 0.5], n=300, n0=50)])
def test_false_certificates_are_as_rare_as_claimed(mode):
    """The level holds within 0.1 and the class within 0.5 at either level: beyond 0.1 a certificate is false."""
    number, alpha = 3000, 0.05
    result = certify_levels(
        by_second_feature, LEVELS, NOISE, KEY, points(number, 0.5, 0.1), mode=mode, alpha=alpha, batch_size=4096
    )
    assert (result.radius > 0).any()
    # A selector at the wrong level is a false certificate, too, and only where its own radius is above 0.
    false = (result.radius > 0.1) | ((result.state.level == 0) & (result.radius > 0))
    assert not raises_alarm(false.sum(), number, alpha)
    # The twin takes the radius of the class alone.
    assert raises_alarm((result.state.radius > 0.1).sum(), number, alpha)


def test_false_certificates_of_the_class_are_as_rare_as_claimed():
    """The level is certain far beyond the class, which holds within 0.1."""
    number, alpha = 3000, 0.05
    result = certify_levels(
        by_second_feature, LEVELS, NOISE, KEY, points(number, 0.1, 3.0), mode=Fixed(n0=50, n=300), alpha=alpha,
        batch_size=4096,
    )  # fmt: skip
    assert (result.state.level == 1).all()
    false = (result.radius > 0.1).sum()
    assert not raises_alarm(false, number, alpha)
    # The twin takes the share of votes for the probability.
    k = np.asarray(result.votes.counts)[:, 0]
    assert raises_alarm((WIDE.unit_radius(k / 300) > 0.1).sum(), number, alpha)


def test_it_is_the_minimum_of_the_parts():
    x = np.array([[0.3, -2.0], [0.3, 2.0], [0.0, 2.0], [2.0, 0.01], [2.0, 0.2]], np.float32)
    mode = Fixed(n=2000)
    result = certify_levels(by_second_feature, LEVELS, NOISE, KEY, x, mode=mode, alpha=0.01, alpha_selector=0.002)
    chosen = certify(by_second_feature, NOISE, stream_key(KEY, Stream.LEVELS), x, n=2000, alpha=0.002)
    np.testing.assert_array_equal(result.state.level, chosen.label)
    np.testing.assert_array_equal(result.state.level, [0, 1, 1, -1, 1])
    for i, level in enumerate(result.state.level):
        if level == ABSTAIN:
            assert result.label[i] == ABSTAIN
            assert result.votes.n[i] == 0
            continue
        f, noise = LEVELS[level]
        own = certify(f, noise, KEY, x[i : i + 1], ids=[i], n=2000, alpha=0.008)
        assert result.label[i] == own.label[0]
        np.testing.assert_array_equal(result.votes.counts[i], own.votes.counts[0])
        np.testing.assert_array_equal(result.radius[i], min(own.radius[0], chosen.radius[i]) * (own.label[0] >= 0))
    assert result.label[2] == ABSTAIN
    assert result.radius[4] < result.state.radius[4]


@pytest.mark.parametrize("mode", [Within(0.1, n=5000), Grid([0.1, 0.2], n=2000)])
@pytest.mark.parametrize("compiled", [True, False])
def test_every_mode_and_loop(mode, compiled):
    x = points(4, 0.9, 1.5)
    selector_mode = Grid([0.5, 1.0], n=2000)
    result = certify_levels(
        by_second_feature, LEVELS, NOISE, KEY, x, mode=mode, selector_mode=selector_mode, compiled=compiled
    )
    assert (result.label == 0).all()
    assert (result.radius > 0.1 - 1e-9).all()
    with pytest.raises(ValueError, match="noise that other votes chose"):
        certificate(result.votes, WIDE)


def test_no_input_has_a_level():
    result = certify_levels(by_second_feature, LEVELS, NOISE, KEY, points(3, 1.0, 0.0), mode=Fixed(n=500))
    assert (result.label == ABSTAIN).all()
    assert (result.radius == 0).all()
    empty = certify_levels(by_second_feature, LEVELS, NOISE, KEY, np.zeros((0, 2), np.float32), mode=Fixed(n=500))
    assert empty.label.shape == (0,)


def test_components_share_the_level():
    levels = [Level(grid_of_features, NARROW), Level(grid_of_features, WIDE)]
    x = np.full((2, 6), 0.5, np.float32)
    result = certify_levels(by_second_feature, levels, NOISE, KEY, x, mode=Fixed(n=1000))
    assert result.radius.shape == (2, 2, 3)
    assert (result.radius <= np.asarray(result.state.selector.radius)[:, None, None]).all()


def test_what_a_lattice_rounds_is_said():
    levels = [Level(half_space, LatticeGaussian(0.25, 0.125)), Level(half_space, LatticeGaussian(1.0, 0.125))]
    result = certify_levels(by_second_feature, levels, NOISE, KEY, points(1, 0.51, 1.5), mode=Fixed(n=1000))
    assert result.rounded.all()


def three_classes(x):
    return jnp.stack([x[:, 0], x[:, 1], -x[:, 0]], axis=1)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"levels": LEVELS[:1]}, ValueError, "at least two"),
        ({"levels": LEVELS[0]}, TypeError, "levels must be a sequence"),
        ({"levels": [half_space, half_space]}, TypeError, "levels must be a sequence of at least two"),
        ({"levels": [(half_space, 0.5), LEVELS[0]]}, TypeError, "noise must be"),
        ({"levels": [(0.5, NOISE), LEVELS[0]]}, TypeError, "f must be a callable"),
        ({"levels": [*LEVELS, Level(half_space, Laplace(1.0))]}, ValueError, "of one norm"),
        ({"levels": [LEVELS[0], Level(three_classes, WIDE)]}, ValueError, "the same classes"),
        ({"levels": [*LEVELS, LEVELS[0]]}, ValueError, r"selector must return scores \[B, 3\]"),
        ({"mode": Anytime()}, TypeError, "mode must be Fixed"),
        ({"selector_mode": 100}, TypeError, "selector_mode must be Fixed"),
        ({"alpha_selector": 0.001}, ValueError, "alpha_selector must be below alpha"),
        ({"batch_size": 0}, ValueError, "batch_size"),
    ],
)
def test_what_is_not_as_described_is_refused_before_any_call(change, error, match):
    def never(x):
        assert isinstance(x, jax.core.Tracer), "the selector was called"
        return by_second_feature(x)

    arguments = {"levels": LEVELS, "mode": Fixed(n=100), **change}
    with pytest.raises(error, match=match):
        certify_levels(never, arguments.pop("levels"), NOISE, KEY, np.zeros((1, 2), np.float32), **arguments)


DATA = np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32), np.arange(12) % 2
RUN = {"mode": Fixed(n=1000), "progress": False}


def run_levels(path, selector=by_second_feature, levels=LEVELS, data=DATA, **settings):
    return certify_levels_dataset(selector, levels, NOISE, KEY, data, path, **{**RUN, **settings})


@pytest.mark.parametrize("mode", [Fixed(n=1000), Grid([0.1, 0.3, 0.5], n=1000), Within(0.1, n=2000)])
def test_a_run_gives_the_certificates_of_the_function(mode, tmp_path):
    rows = run_levels(tmp_path / "run.tsv", mode=mode)
    result = certify_levels(by_second_feature, LEVELS, NOISE, KEY, DATA[0], mode=mode)
    assert [row.predict for row in rows] == result.label.tolist()
    assert [row.radius for row in rows] == result.radius.tolist()
    assert [row.votes for row in rows] == (result.votes.n + np.asarray(result.state.selector.votes.n)).tolist()
    assert [row.label for row in rows] == DATA[1].tolist()
    assert len({row.predict for row in rows}) == 3
    assert [row._replace(seconds=0, radius=0) for row in read_log(tmp_path / "run.tsv")] == [
        row._replace(seconds=0, radius=0) for row in rows
    ]
    claimed = rows[0].settings
    assert claimed["noise"] == "levels(Gaussian(sigma=0.25),Gaussian(sigma=1.0))"
    assert (claimed["mode"], claimed["alpha"], claimed["inputs"]) == (f"levels-{mode.name}", "0.001", "12")
    assert claimed["selector"].startswith(f"noise=Gaussian(sigma=0.5);mode={mode.name};")
    assert "alpha=0.0005" in claimed["selector"]
    assert "norm 2" in report_table({"run": rows}, [0.1])
    direct = log_rows(result, DATA[1], noise=LEVELS, alpha=0.001)
    assert [row[:4] for row in direct] == [row[:4] for row in rows]
    assert direct[0].settings["noise"] == claimed["noise"]
    assert direct[0].votes == rows[0].votes
    with pytest.raises(TypeError, match="noise must be the levels"):
        log_rows(result, DATA[1], noise=NOISE, alpha=0.001)


def test_a_run_goes_on_where_it_was_ended(tmp_path):
    expected = run_levels(tmp_path / "whole.tsv")
    left = 0

    def counted(x):
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        return np.asarray(half_space(x))

    def chosen(x):
        counted(x)
        return np.asarray(by_second_feature(x))

    levels = [Level(counted, NARROW), Level(counted, WIDE)]
    path = tmp_path / "run.tsv"
    # A run takes 120 batches, five for each input at the selector and at its level.
    for most in (40, 50):
        left = most
        with pytest.raises(KeyboardInterrupt):
            run_levels(path, chosen, levels, compiled=False, check=False, group=1)
        assert not path.exists()
    left = 10_000
    rows = run_levels(path, chosen, levels, compiled=False, check=False, group=1)
    assert [row[:4] for row in rows] == [row[:4] for row in expected]
    # A finished run only votes again on the inputs by which it recognises its classifiers.
    left = 30
    rows = run_levels(path, chosen, levels, compiled=False, check=False, group=1)
    assert [row[:4] for row in rows] == [row[:4] for row in expected]


def test_shares_end_in_one_log(tmp_path):
    expected = run_levels(tmp_path / "whole.tsv")
    path = tmp_path / "run.tsv"
    parts = [run_levels(path, share=(index, 2)) for index in (0, 1)]
    assert [len(part) for part in parts] == [6, 6]
    rows = run_levels(path, share=(0, 1))
    assert [row[:4] for row in rows] == [row[:4] for row in expected]


def test_what_a_run_is_not_of_is_refused(tmp_path):
    path = tmp_path / "run.tsv"
    run_levels(path)
    with pytest.raises(ValueError, match="settings"):
        run_levels(path, alpha=0.01)
    with pytest.raises(ValueError, match="data must be those of the run"):
        run_levels(path, data=(DATA[0], DATA[1][::-1].copy()))
    with pytest.raises(ValueError, match="data must be those of the run"):
        run_levels(path, data=(DATA[0] + 1, DATA[1]))
    other = tmp_path / "other.tsv"
    with pytest.raises(TypeError, match="not be an iterator"):
        run_levels(other, data=iter(list(zip(*DATA, strict=True))))
    with pytest.raises(ValueError, match=r"selector must return scores \[B, 2\]"):
        run_levels(other, three_classes)
    with pytest.raises(ValueError, match="the same classes"):
        run_levels(other, levels=[LEVELS[0], Level(three_classes, WIDE)])
    assert not list(tmp_path.glob("other*"))
    other.write_text("something else\n")
    with pytest.raises(ValueError, match="is not overwritten"):
        run_levels(other)
    assert run_levels(tmp_path / "none.tsv", most=0) == []
    data = DATA[0], np.full(12, 2)
    with pytest.raises(ValueError, match="must be a class below 2"):
        run_levels(tmp_path / "labels.tsv", data=data)


def test_the_run_of_a_selector_has_no_truth(tmp_path):
    path = tmp_path / "run.tsv"
    run_levels(path)
    selector = tmp_path / "run.selector.tsv"
    with pytest.raises(ValueError, match="whose true classes are not known"):
        report_table({"selector": read_log(selector)}, [0.1])
    with pytest.raises(ValueError, match="whose true classes are not known"):
        probability_table({"selector": read_votes(f"{selector}.votes")})
    assert "level" in report_table({"level": read_log(tmp_path / "run.level-0.tsv")}, [0.1])


def test_logs_of_other_runs_stay(tmp_path):
    path = tmp_path / "run.tsv"
    certify_dataset(half_space, NARROW, KEY, DATA, path, mode=Fixed(n=100), share=(0, 2), progress=False)
    before = sorted(tmp_path.iterdir())
    for settings in ({}, {"share": (0, 2)}):
        with pytest.raises(ValueError, match="is a log of another run"):
            run_levels(path, **settings)
    assert sorted(tmp_path.iterdir()) == before


def test_a_call_for_fewer_inputs_keeps_the_log(tmp_path):
    path = tmp_path / "run.tsv"
    whole = run_levels(path)
    assert [row[:4] for row in run_levels(path, most=3)] == [row[:4] for row in whole[:3]]
    assert [row[:3] for row in read_log(path)] == [row[:3] for row in whole]
    assert run_levels(tmp_path / "few.tsv", most=3)[2][:4] == whole[2][:4]
    assert [row[:4] for row in run_levels(tmp_path / "few.tsv")] == [row[:4] for row in whole]


def test_data_that_change_between_two_passes_are_refused(tmp_path):
    class Shuffled:
        """As an iterable that draws its order anew."""

        def __init__(self):
            self.passes = 0

        def __iter__(self):
            self.passes += 1
            pairs = list(zip(*DATA, strict=True))
            return iter(pairs if self.passes < 3 else pairs[::-1])

    with pytest.raises(ValueError, match="data must be the same each time"):
        run_levels(tmp_path / "run.tsv", data=Shuffled(), check=False)
    assert not (tmp_path / "run.tsv").exists()


def test_merging_the_shares_of_a_run_at_levels_says_how(tmp_path):
    run_levels(tmp_path / "run.tsv", share=(0, 2))
    with pytest.raises(ValueError, match="certify_levels_dataset without share="):
        merge_shares(tmp_path / "run.tsv")
