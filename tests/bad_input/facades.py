"""The classes of ART's interface, a method each, in every framework: what is refused leaves them as they were."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from tests.bad_input.arrays import folder
from tests.bad_input.files import BOMB, MARK
from tests.bad_input.harness import Same, Subject
from tests.bad_input.values import (
    ANYTHING,
    INTEGERS,
    NUMBERS,
    changed_arrays,
    constants,
    forms_of_array,
    forms_of_integer,
)
from tests.bridges.frameworks import inputs, labels

X = [*ANYTHING, *forms_of_array(partial(inputs, 3)), *changed_arrays(partial(inputs, 3))]
Y = [
    *ANYTHING,
    *constants([0, 1], [0, 1, 3], [0, 1, -1], [0, 1, 0.5], [np.nan, 0, 1], ["0", "1", "2"], [[0, 1, 2]], 2**70),
    lambda: Same([0, 1, 2]),
    lambda: Same(np.array([0.0, 1.0, 2.0])),
    lambda: Same(np.array([[0], [1], [2]], np.uint8)),
    lambda: Same(np.arange(3).astype(">i8")),
    lambda: np.full((3, 3), np.nan),
    lambda: np.eye(3, 4),
]
N = [*INTEGERS, *forms_of_integer(10)]
KEYWORDS = {"x": ("y must have shape",)}  # as many labels as inputs


def finite(result: Any) -> None:
    for array in result if isinstance(result, tuple) else (result,):
        assert np.isfinite(np.asarray(array)).all()


def certified(result: Any) -> None:
    finite(result)
    label, radius = result
    assert (radius >= 0).all()
    assert ((label >= 0) | ((label == -1) & (radius == 0))).all()


def methods(framework: Any) -> Iterator[Subject]:
    """Return the methods of a framework's class, each called on a new instance of the same weights and seed."""
    kept: list[Any] = []

    def subject(method, good, odd, holds=lambda _: None, words=None, trainable=False):
        def call(**arguments):
            classifier = framework.smoothed(sample_size=10, trainable=trainable)
            kept[:] = [classifier]
            result = getattr(classifier, method)(**arguments)
            kept.clear()
            return result

        def state(_):
            if not kept:
                return
            classifier = kept.pop()
            expected = framework.smoothed(sample_size=10, trainable=trainable)
            same = [
                np.array_equal(a, b) for a, b in zip(*map(framework.variables, (classifier, expected)), strict=True)
            ]
            numbers = (
                classifier.scale,
                classifier.sample_size,
                classifier.alpha,
                classifier._predicted,
                classifier._draws,
            )
            plain = (expected.scale, expected.sample_size, expected.alpha, expected._predicted, expected._draws)
            assert all(same), "the weights changed"
            assert numbers == plain, f"{numbers} instead of {plain}"

        return Subject(f"{framework.name} {method}", call, good, odd, holds, words or KEYWORDS, state)

    x, pair = (lambda: {"x": inputs(3)}), (lambda: {"x": inputs(3), "y": labels(3)})
    batches = {"batch_size": [*INTEGERS, *forms_of_integer(128)]}
    yield subject("predict", x, {"x": X, **batches, "is_abstain": constants(None, 0, "yes")}, finite)
    yield subject(
        "certify", lambda: {"x": inputs(3), "n": 10, "batch_size": 128}, {"x": X, "n": N, **batches}, certified
    )
    yield subject("compute_loss", pair, {"x": X, "y": Y, "reduction": [*ANYTHING, *constants(Same("none"))]}, finite)
    yield subject("loss_gradient", pair, {"x": X, "y": Y}, finite)
    yield subject("loss_gradient", lambda: {**pair(), "sampling": True}, {"x": X, "y": Y}, finite)
    classes = [*INTEGERS, *constants([0, 1], [0, 1, 3], [0.5, 1, 1], ["a", "b", "c"]), *ANYTHING]
    yield subject(
        "class_gradient",
        lambda: {**x(), "label": 1},
        {"x": X, "label": classes},
        finite,
        {**KEYWORDS, "label": ("y must",)},
    )
    scores = lambda: {"pred": np.zeros((3, 3), np.float32), "y": labels(3)}  # noqa: E731
    yield subject(
        "compute_loss_from_predictions", scores, {"pred": ANYTHING, "y": Y}, words={**KEYWORDS, "pred": ("y must",)}
    )
    yield subject(
        "get_activations",
        lambda: {**x(), "layer": 0},
        {"x": X, "layer": [*constants(99, "none", 0.5, None), *ANYTHING], **batches},
        words={**KEYWORDS, "layer": ("layer",)},
    )
    yield subject(
        "fit",
        lambda: {**pair(), "nb_epochs": 0},
        {"x": X, "y": Y, "nb_epochs": constants(-1, 0.5, "1", None, True), "batch_size": INTEGERS},
        trainable=True,
    )
    settings = {
        "scale": [*NUMBERS, *ANYTHING],
        "alpha": [*NUMBERS, *ANYTHING],
        "sample_size": INTEGERS,
        "clip_values": constants((1, 0), (0,), "ab", 3, (np.nan, 1), (0, 0)),
        "unknown": constants(1),
    }
    yield subject("set_params", dict, settings)

    def construct(**changes):
        return framework.smoothed(**changes).scale

    numbers = {
        "scale": [*NUMBERS, *ANYTHING],
        "alpha": [*NUMBERS, *ANYTHING],
        "sample_size": INTEGERS,
        "nb_classes": INTEGERS,
        "seed": [*NUMBERS, *ANYTHING],
        "n0": [k for k in INTEGERS if k() is not None],
        "output": constants("hard", None, 3, []),
    }
    shapes = {
        "input_shape": constants((), (0, 4), "ab", 3.5, None, (4.5,), (-1, 2)),
        "clip_values": settings["clip_values"],
    }
    yield Subject(
        f"{framework.name} constructor",
        construct,
        dict,
        {**numbers, **shapes},
        words={"seed": ("key",), "nb_classes": ("class",), "input_shape": ("shape",)},
    )
    yield saved(framework)


def saved(framework: Any) -> Subject:
    """Saved weights that are not what `save` wrote: nothing in them is run, and the network stays as it was."""
    place = folder()
    framework.smoothed(trainable=True).save("net", place)
    good = {path.name: path.read_bytes() for path in place.iterdir()}

    def load(file, content):
        place = folder()
        for name, data in good.items():
            (place / name).write_bytes(content(data) if name == file else data)
        classifier = framework.smoothed(trainable=True)
        before = framework.variables(classifier)
        try:
            classifier.load("net", place)
        except (ValueError, TypeError) as error:
            raise ValueError(f"content: {error}") from error
        finally:
            assert not MARK.exists(), "something in the file was run"
            after = framework.variables(classifier)
            assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True)), "the weights changed"

    contents = [
        lambda _: b"",
        lambda _: BOMB,
        lambda data: data[: len(data) // 2],
        lambda data: BOMB + data,
        lambda _: b"PK\x03\x04" + BOMB,
    ]
    files = constants(*good)
    return Subject(
        f"{framework.name} load",
        load,
        lambda: {"file": next(iter(good)), "content": bytes},
        {"file": files, "content": constants(*contents)},
    )
