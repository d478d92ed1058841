"""Runs over data sets, reports, and files: what is refused writes nothing, and nothing in a file is run."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import numpy as np

import jaxsmooth
from jaxsmooth import Gaussian, LogRow
from tests.bad_input.arrays import LEVELS, WORDS, folder, inputs, scores
from tests.bad_input.harness import Subject
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
    modes = {"n0": INTEGERS, "radii": [make for make in RADII if make() is not None], "until": constants(3, "until")}
    modes |= {"precision": constants(0.0, 1.0, -1, "p", [0.1], True), "bound": constants("other", 3, [])}
    words = {**WORDS, "data": ("x must", "f must", "the label of")}

    def good():
        settings = {"path": folder() / "run.tsv", "n": 20, "batch_size": 20, "verbose": False}
        data = (inputs(), np.arange(3))
        return {"f": scores, "noise": Gaussian(0.5), "key": jax.random.key(7), "data": data, **settings}

    def rows(function, f, noise, key, data, path, **settings):
        return [row[:4] for row in function(f, noise, key, data, path, **settings)]

    def state(arguments):
        # Data that turn out to be bad on the way leave what was done before.
        return names_in(arguments["path"]) if isinstance(arguments["data"], tuple) else None

    certify, predict = partial(rows, jaxsmooth.certify_dataset), partial(rows, jaxsmooth.predict_dataset)
    yield Subject("certify_dataset", certify, good, {**odd, **modes}, words=words, state=state)
    yield Subject("predict_dataset", predict, good, odd, words=words, state=state)


def reports() -> Iterator[Subject]:
    runs = [*constants({"a": []}, {"a": [1]}, {"a": None}), *ANYTHING]
    radii = [*constants([], [-1.0], [np.nan], "r", None, [[0.1]], ["a"]), *ANYTHING]
    odd = {"runs": runs, "alpha": LEVELS, "delta": LEVELS}
    words = {"runs": ("run",)}
    table = {**odd, "radii": radii, "style": [*constants("html", None, 3), *ANYTHING]}
    arguments = {"runs": {"a": ROWS}, "radii": [0.0, 0.3]}
    yield Subject("report_table", jaxsmooth.report_table, lambda: dict(arguments), table, words=words)
    picture = partial(dict, runs={"a": ROWS})
    yield Subject("draw_curves", jaxsmooth.draw_curves, lambda: picture(path=folder() / "a.png"), odd, words=words)
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
    yield Subject("write_log", written, good, {"rows": rows}, words=words, state=lambda a: names_in(a["path"]))


def broken(content):
    """Return contents of files that are cut, bent, doubled or something else."""
    cuts = [content[:k] for k in range(0, len(content), max(1, len(content) // 12))]
    places = range(0, len(content), max(1, len(content) // 30))
    bent = [content[:k] + bytes([content[k] ^ 0x55]) + content[k + 1 :] for k in places]
    others = [b"", BOMB, b"\x80\x04\x95", b"\xff\xfe" * 50, b"PK\x03\x04", content + BOMB, BOMB + content, content * 2]
    return constants(*others, *cuts, *bent)


def files() -> Iterator[Subject]:
    path, data = folder() / "run.tsv", (inputs(), np.arange(3))
    jaxsmooth.certify_dataset(scores, Gaussian(0.5), jax.random.key(7), data, path, n=20, verbose=False)
    votes = path.with_name("run.tsv.votes").read_bytes()
    readers = {"a.tsv": (jaxsmooth.read_log, LOG), "a.tsv.votes": (jaxsmooth.read_votes, votes)}
    readers["b.tsv.votes"] = (lambda place: jaxsmooth.merge_shares(place.with_name("b.tsv")), votes)
    for name, (reader, whole) in readers.items():

        def read(content, name=name, reader=reader):
            place = folder() / name
            place.write_bytes(content)
            result = reader(place)
            assert not MARK.exists(), "something in the file was run"
            return result

        words = {"content": (name, "utf-8")}
        function = {"a.tsv": "read_log", "a.tsv.votes": "read_votes"}.get(name, "merge_shares")
        odd = {"content": broken(whole)}
        yield Subject(function, read, lambda whole=whole: {"content": whole}, odd, words=words)
