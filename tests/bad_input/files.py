"""Runs over data sets, reports, and files: what is refused writes nothing, and nothing in a file is run."""

import math
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import numpy as np

import jaxsmooth
from jaxsmooth import Anytime, Fixed, Gaussian, Grid, LogRow, Within, merge_shares, read_log, read_votes
from tests.bad_input.arrays import LEVELS, WORDS, folder, inputs, scores
from tests.bad_input.harness import Same, Subject
from tests.bad_input.sampling import RADII
from tests.bad_input.values import ANYTHING, CLASSIFIERS, INTEGERS, KEYS, NOISES, constants

GIVEN = [make for make in INTEGERS if make() is not None]
MARK = Path("/tmp/bad-input-was-run")
BOMB = f"cos\nsystem\n(S'touch {MARK}'\ntR.".encode()
ROWS = [LogRow(i, 1, 1, 0.5, 1.0, 10, "alpha=0.01 n=10") for i in range(3)]
LOG = b"idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\t1\t0.5\t1\t0:00:01\n"


def names_in(path):
    return sorted(found.name for found in path.parent.iterdir())


def whole_data() -> Iterator[Subject]:
    x = inputs()
    pairs = [[(x[0], -1)], [(x[0], 1.5)], [(x[0], "a")], [(x[0],)], [(x[0], 0), (x[0, :3], 0)], [(x[0], 0), 3]]
    pairs += [[(x[0] * np.nan, 0)], [("x", 0)], [(x[0].astype(int), 0)], (x, np.arange(2)), [(x[0], [0, 1])]]
    odd = {"f": CLASSIFIERS, "noise": NOISES, "key": KEYS, "data": [*ANYTHING, *constants(*pairs)]}
    odd |= {"n": INTEGERS, "batch_size": INTEGERS, "alpha": LEVELS, "skip": INTEGERS, "group": GIVEN, "most": GIVEN[2:]}
    odd["share"] = constants((2, 2), (-1, 2), (0, 0), (0,), "0/2", 3, (0.5, 2), [0, 1, 2])
    words = {**WORDS, "data": ("x must", "f must", "the label of")}

    def good(**more):
        settings = {"path": folder() / "run.tsv", "batch_size": 20, "progress": False}
        data = (inputs(), np.arange(3))
        return {"f": scores, "noise": Gaussian(0.5), "key": jax.random.key(7), "data": data, **settings, **more}

    def rows(function, f, noise, key, data, path, **settings):
        found = function(f, noise, key, data, path, **settings)
        are_rows(found)
        is_read_again(path, found)
        return [row[:4] for row in found]

    def state(arguments):
        # Data that turn out to be bad on the way leave what was done before.
        return names_in(arguments["path"]) if isinstance(arguments["data"], tuple) else None

    predict = partial(rows, jaxsmooth.predict_dataset)
    yield Subject("predict_dataset", predict, partial(good, n=20), odd, are_fields, words, state)
    modes = [*ANYTHING, *constants(Fixed, Grid, "fixed", Same(Fixed(n0=100, n=20)), Grid([0.1], n=100), Within(n=100))]
    modes += constants(Anytime(n=300), Fixed(n=20, bound="runner_up"))
    one = {name: values for name, values in {**odd, "mode": modes}.items() if name != "n"}
    certify = partial(rows, jaxsmooth.certify_dataset)
    yield Subject("certify_dataset", certify, partial(good, mode=Fixed(n=20)), one, are_fields, words, state)
    for kind, arguments, own in of_modes():

        def call(kind=kind, **arguments):
            mode = kind(**arguments)
            return [row[:4] for row in rows(jaxsmooth.certify_dataset, **good(mode=mode, most=1))]

        names = {"n": ("looks",), "looks": ("n",)}
        yield Subject(f"{kind.__name__} of a run", call, partial(dict, arguments), own, are_fields, names)


def of_modes():
    """Yield each mode, good arguments for it, and odd ones."""
    sizes = {"n0": GIVEN, "n": GIVEN}
    bounds = constants("other", 3, [], Same("cohen"), "runner_up")
    radii = [make for make in RADII if make() is not None]
    precisions = constants(0.0, 1.0, -1, "p", [0.1], True, 0.2)
    yield Fixed, {"n0": 10, "n": 20, "bound": "cohen"}, {**sizes, "bound": bounds}
    looks = constants([64, 100], [64, 64, 100], [0, 100], "looks", [1.5, 100], [100], [])
    yield Grid, {"radii": [0.1], "n": 100, "n0": 10}, {**sizes, "radii": radii, "beta": LEVELS, "looks": looks}
    yield Within, {"precision": 0.1, "n": 50, "n0": 10}, {**sizes, "precision": precisions, "bound": bounds}
    asked = constants(3, "until", None, lambda _: True, lambda result: result.radius[0] > 0)
    yield Anytime, {"n0": 10, "votes": 50, "n": 300}, {**sizes, "votes": GIVEN, "until": asked}


def are_rows(rows):
    """Check rows of a log: classes or abstentions, radii, times, what they claim."""
    assert [row.idx for row in rows] == sorted({row.idx for row in rows})
    for row in rows:
        assert row.predict >= -1
        assert row.predict >= 0 or row.radius == 0
        assert math.isfinite(row.radius)
        assert row.radius >= 0
        assert math.isfinite(row.seconds)
        assert row.seconds >= 0
        assert row.votes >= 0


def are_fields(result):
    are_rows([LogRow(*fields, 0.0) for fields in result])


def is_read_again(path, rows):
    """Check that what was written is what was returned, in the log and among the votes."""
    logged, stored = read_log(path), read_votes(path.with_name(path.name + ".votes")) if rows else None
    assert [row[:3] for row in logged] == [row[:3] for row in rows]
    assert all(0 <= row.radius - log.radius < 1e-6 for row, log in zip(rows, logged, strict=True))
    if stored is not None:
        assert sorted(stored.idx.tolist()) == [row.idx for row in rows]
        assert (stored.votes.counts >= 0).all()
        assert (stored.votes.counts.sum(axis=-1) <= stored.votes.n).all()


def is_a_run(run):
    """Check what is read of a file of votes, whole or cut at its end."""
    assert len(run.idx) == len(run.truth) == len(run.seconds) == len(run.votes.counts) <= 3
    assert (run.votes.counts.sum(axis=-1) <= run.votes.n).all()
    assert run.votes.rule == "fixed"
    assert isinstance(run.settings, dict)
    certificate = run.certificate
    assert ((certificate.label >= 0) | ((certificate.label == -1) & (certificate.radius == 0))).all()


def is_a_table(result):
    assert isinstance(result, str)
    assert "a" in result
    assert "at least" in result


def are_axes(result):
    assert 0 < len(result.lines) <= 2
    assert result.get_ylim() == (0, 1)


def reports() -> Iterator[Subject]:
    runs = [*constants({"a": []}, {"a": [1]}, {"a": None}), *ANYTHING]
    radii = [*constants([], [-1.0], [np.nan], "r", None, [[0.1]], ["a"]), *ANYTHING]
    odd = {"runs": runs, "alpha": LEVELS, "delta": LEVELS}
    words = {"runs": ("run",)}
    table = {**odd, "radii": radii, "style": [*constants("html", None, 3), *ANYTHING]}
    arguments = {"runs": {"a": ROWS}, "radii": [0.0, 0.3]}
    yield Subject("report_table", jaxsmooth.report_table, lambda: dict(arguments), table, is_a_table, words)
    picture = partial(dict, runs={"a": ROWS})

    def drawn(path, **settings):
        ax = jaxsmooth.draw_curves(path=path, **settings)
        assert path.read_bytes().startswith(b"\x89PNG")
        return ax

    odd |= {"ax": ANYTHING, "title": ANYTHING, "styles": [*constants({"b": {}}, {"a": 3}, [1]), *ANYTHING]}
    yield Subject("draw_curves", drawn, lambda: picture(path=folder() / "a.png"), odd, are_axes, words)
    fields = [("radius", -1.0), ("radius", np.nan), ("radius", "a"), ("radius", None), ("seconds", -1.0)]
    fields += [("seconds", np.inf), ("claim", "a b"), ("claim", "x\ty=1"), ("claim", 3), ("claim", "a=\n")]
    fields += [("idx", "a\tb"), ("idx", 0.5), ("label", None), ("votes", "many"), ("predict", [1])]
    rows = [*ANYTHING, lambda: [1], lambda: [ROWS[0][:3]]]
    rows += constants(*([ROWS[0]._replace(**{name: value})] for name, value in fields))

    def written(path, rows):
        jaxsmooth.write_log(path, rows)
        return jaxsmooth.read_log(path)

    def good():
        return {"path": folder() / "a.tsv", "rows": ROWS}

    words = {"rows": LogRow._fields}
    yield Subject("write_log", written, good, {"rows": rows}, are_rows, words, lambda a: names_in(a["path"]))


def stored_reports() -> Iterator[Subject]:
    """Reports of stored votes, and rows of certificates."""
    path = folder() / "run.tsv"
    data = inputs(), np.arange(3)
    settings = {"mode": Fixed(n=20), "progress": False}
    jaxsmooth.certify_dataset(scores, Gaussian(0.5), jax.random.key(7), data, path, **settings)
    run = read_votes(f"{path}.votes")
    runs = [*constants({"a": []}, {"a": [1]}, {"a": None}), *ANYTHING]
    words = {"runs": ("run",)}
    odd = {"runs": runs, "alpha": LEVELS, "style": [*constants("html", None, 3), *ANYTHING]}
    odd["probabilities"] = [*constants([], [-1.0], [np.nan], "r", None, [[0.1]], ["a"], [2.0]), *ANYTHING]
    of_runs = {"runs": {"a": run}, "probabilities": [0.5]}
    yield Subject("probability_table", jaxsmooth.probability_table, lambda: dict(of_runs), odd, is_text, words)

    def drawn(path, **settings):
        ax = jaxsmooth.draw_probabilities(path=path, **settings)
        assert path.read_bytes().startswith(b"\x89PNG")
        return ax

    odd = {"runs": runs, "alpha": LEVELS}
    picture = partial(dict, runs={"a": run})
    yield Subject("draw_probabilities", drawn, lambda: picture(path=folder() / "a.png"), odd, are_axes, words)

    def good():
        return {"result": run.certificate, "truth": [0, 1, 2], "noise": Gaussian(0.5), "idx": [0, 1, 2]}

    classes = constants([0, 1], [0.5, 1, 2], [-1, 0, 1], [[0], [1], [2]], ["a", "b", "c"])
    odd = {"result": ANYTHING, "truth": [*ANYTHING, *classes], "noise": NOISES, "alpha": LEVELS}
    odd |= {"idx": [*ANYTHING[1:], *classes, *constants([0, 0, 1])], "seconds": constants(-1, np.nan, "1", None)}
    yield Subject("log_rows", jaxsmooth.log_rows, good, odd, are_rows, {"noise": ("the scale of", "sigma")})


def at_levels() -> Iterator[Subject]:
    """A run over a data set at a level of noise for each input."""
    data = inputs(), np.arange(3)

    def good():
        levels = [(scores, Gaussian(0.5)), (scores, Gaussian(1.0)), (scores, Gaussian(0.25))]
        settings = {"path": folder() / "run.tsv", "mode": Fixed(n0=10, n=20), "batch_size": 20, "progress": False}
        return {
            "selector": scores,
            "levels": levels,
            "noise": Gaussian(0.5),
            "key": jax.random.key(7),
            "data": data,
            **settings,
        }

    def rows(selector, levels, noise, key, data, path, **settings):
        found = jaxsmooth.certify_levels_dataset(selector, levels, noise, key, data, path, **settings)
        are_rows(found)
        return [row[:4] for row in found]

    one = [(scores, Gaussian(0.5))]
    odd = {"selector": CLASSIFIERS[:8], "noise": NOISES, "key": KEYS, "data": ANYTHING, "batch_size": INTEGERS}
    odd |= {"levels": [*constants(one, [scores] * 3, [(scores, 0.5)] * 3), *ANYTHING], "alpha": LEVELS}
    odd |= {"mode": [*ANYTHING, *constants(Fixed, "fixed", Anytime(n=300))], "skip": INTEGERS, "group": GIVEN}
    words = {**WORDS, "selector": ("f must",), "levels": ("f must", "noise"), "data": ("x must", "f must", "the label")}
    words |= {"alpha": ("alpha_selector",)}
    yield Subject("certify_levels_dataset", rows, good, odd, are_fields, words, lambda a: names_in(a["path"]))


def votes_only() -> Iterator[Subject]:
    """A run over a data set that counts votes."""

    def good():
        settings = {"path": folder() / "run.votes", "n0": 10, "n": 20, "batch_size": 20, "progress": False}
        return {"f": scores, "noise": Gaussian(0.5), "key": jax.random.key(7), "data": inputs(), **settings}

    def counts(f, noise, key, data, path, **settings):
        run = jaxsmooth.count_dataset(f, noise, key, data, path, **settings)
        assert (run.votes.counts.sum(axis=-1) <= run.votes.n).all()
        return run.idx, run.votes.counts

    odd = {"f": CLASSIFIERS[:8], "noise": NOISES, "key": KEYS, "data": ANYTHING, "batch_size": INTEGERS}
    odd |= {"n": INTEGERS, "n0": INTEGERS, "skip": INTEGERS, "group": GIVEN, "path": constants("run.tsv", "a/b", "run")}
    words = {**WORDS, "data": ("x must", "f must", "the label"), "n": ("n0",), "n0": ("n must",)}
    yield Subject("count_dataset", counts, good, odd, are_counted, words)


def are_counted(result):
    idx, counts = result
    assert len(idx) == len(counts)
    assert (counts >= 0).all()


def without_chance() -> Iterator[Subject]:
    """A run over a data set with every place of the cuts."""
    data = np.random.default_rng(0).integers(0, 5, (3, 5)) / 4, np.arange(3)

    def good():
        settings = {"path": folder() / "run.tsv", "levels": 4, "batch_size": 20, "progress": False}
        return {"f": scores, "noise": jaxsmooth.Splitting(0.5), "key": jax.random.key(7), "data": data, **settings}

    def rows(f, noise, key, data, path, **settings):
        found = jaxsmooth.certify_splitting_dataset(f, noise, key, data, path, **settings)
        are_rows(found)
        return [row[:4] for row in found]

    odd = {"f": CLASSIFIERS[:8], "key": KEYS, "data": ANYTHING, "batch_size": INTEGERS, "levels": INTEGERS}
    odd |= {"skip": INTEGERS, "group": GIVEN, "noise": [*constants(Gaussian(0.5), jaxsmooth.Splitting(0.0)), *ANYTHING]}
    words = {**WORDS, "noise": ("half_width",), "levels": ("x must", "half_width")}
    words |= {"data": ("x must", "f must", "the label")}
    yield Subject("certify_splitting_dataset", rows, good, odd, are_fields, words, lambda a: names_in(a["path"]))


def is_text(result):
    assert isinstance(result, str)
    assert "a" in result


def broken(content):
    """Return contents of files that are cut, bent, doubled or something else."""
    cuts = [content[:k] for k in range(0, len(content), max(1, len(content) // 12))]
    places = range(0, len(content), max(1, len(content) // 30))
    bent = [content[:k] + bytes([content[k] ^ 0x55]) + content[k + 1 :] for k in places]
    others = [b"", BOMB, b"\x80\x04\x95", b"\xff\xfe" * 50, b"PK\x03\x04", content + BOMB, BOMB + content, content * 2]
    return constants(*others, *cuts, *bent)


def files() -> Iterator[Subject]:
    path, data = folder() / "run.tsv", (inputs(), np.arange(3))
    settings = {"mode": Fixed(n=20), "progress": False}
    jaxsmooth.certify_dataset(scores, Gaussian(0.5), jax.random.key(7), data, path, **settings)
    votes = path.with_name("run.tsv.votes").read_bytes()
    readers = {"a.tsv": (read_log, LOG, are_rows), "a.tsv.votes": (read_votes, votes, is_a_run)}
    readers["b.tsv.votes"] = (lambda place: merge_shares(place.with_name("b.tsv")), votes, are_rows)
    for name, (reader, whole, holds) in readers.items():

        def read(content, name=name, reader=reader):
            place = folder() / name
            place.write_bytes(content)
            with warnings.catch_warnings():
                # A damaged record is left out with a warning, and what is before it is read.
                warnings.filterwarnings("ignore", ".* is damaged in record", UserWarning)
                result = reader(place)
            assert not MARK.exists(), "something in the file was run"
            return result

        words = {"content": (name, "utf-8")}
        function = {"a.tsv": "read_log", "a.tsv.votes": "read_votes"}.get(name, "merge_shares")
        odd = {"content": broken(whole)}
        yield Subject(function, read, lambda whole=whole: {"content": whole}, odd, holds, words)
