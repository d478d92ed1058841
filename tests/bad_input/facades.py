"""The classes of ART's interface, a method each, in every framework: what is refused leaves them as they were."""

from collections.abc import Iterator
from functools import cache, partial
from operator import attrgetter
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
from tests.bridges.reference import inputs, labels

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
BATCHES = {"batch_size": [*INTEGERS, *forms_of_integer(128)]}
SETTINGS = {
    "scale": [*NUMBERS, *ANYTHING],
    "alpha": [*NUMBERS, *ANYTHING],
    "sample_size": INTEGERS,
    "clip_values": constants((1, 0), (0,), "ab", 3, (np.nan, 1), (0, 0)),
}
KEYWORDS = {"x": ("y must have shape",)}  # as many labels as inputs


def finite(result: Any) -> None:
    for array in result if isinstance(result, tuple) else (result,):
        assert np.isfinite(np.asarray(array)).all()


def certified(result: Any) -> None:
    finite(result)
    label, radius = result
    assert (radius >= 0).all()
    assert ((label >= 0) | ((label == -1) & (radius == 0))).all()


def method(
    framework: Any,
    name: str,
    good: Any,
    odd: dict[str, Any],
    holds: Any = lambda _: None,
    words: Any = KEYWORDS,
    trainable: bool = False,
) -> Subject:
    """Return a method of a framework's class, called on a new instance of the same weights and seed each time."""
    kept: list[Any] = []

    def call(**arguments):
        classifier = framework.smoothed(sample_size=10, trainable=trainable)
        kept[:] = [classifier]
        result = getattr(classifier, name)(**arguments)
        kept.clear()
        return result

    def state(_):
        if kept:
            settings, *now = state_of(framework, kept.pop(), trainable)
            new_settings, *new = state_of_new(framework, trainable)
            assert settings == new_settings, "the settings changed"
            what = ("the weights", "the next votes", "the noise of training")
            for name, ours, theirs in zip(what, now, new, strict=False):
                assert all(map(np.array_equal, ours, theirs)), f"{name} changed"

    return Subject(f"{framework.name} {name}", call, good, odd, holds, words, state)


def state_of(framework: Any, classifier: Any, trainable: bool) -> list[Any]:
    """Return settings and weights, the votes that come next, and what the next noise of training makes of the weights.

    A classifier that a refusal left as it was has those of a new one.
    """
    found = [attrgetter("scale", "sample_size", "alpha")(classifier), framework.variables(classifier)]
    classifier.output = "frequencies"
    found.append([classifier.predict(inputs(3))])
    if trainable:
        classifier.fit(inputs(3), labels(3), nb_epochs=1)
        found.append(framework.variables(classifier))
    return found


@cache
def state_of_new(framework: Any, trainable: bool) -> list[Any]:
    return state_of(framework, framework.smoothed(sample_size=10, trainable=trainable), trainable)


def one() -> dict[str, Any]:
    return {"x": inputs(3)}


def pair() -> dict[str, Any]:
    return {"x": inputs(3), "y": labels(3)}


def methods(framework: Any) -> Iterator[Subject]:
    """Return the subjects of a framework."""
    subject = partial(method, framework)
    yield subject("predict", one, {"x": X, **BATCHES, "is_abstain": constants(None, 0, "yes")}, finite)
    yield subject("certify", lambda: {**one(), "n": 10, "batch_size": 128}, {"x": X, "n": N, **BATCHES}, certified)
    yield from of_losses(subject)
    layers = {"x": X, "layer": [*constants(99, "none", 0.5, None), *ANYTHING], **BATCHES}
    yield subject("get_activations", lambda: {**one(), "layer": 0}, layers, words={**KEYWORDS, "layer": ("layer",)})
    fitted = {"x": X, "y": Y, "nb_epochs": constants(-1, 0.5, "1", None, True), "batch_size": INTEGERS}
    yield subject("fit", lambda: {**pair(), "nb_epochs": 0}, fitted, trainable=True)
    yield subject("set_params", dict, {**SETTINGS, "unknown": constants(1)})
    yield constructor(framework)
    yield saved(framework)


def of_losses(subject: Any) -> Iterator[Subject]:
    reductions = [*ANYTHING, *constants(Same("none"))]
    yield subject("compute_loss", pair, {"x": X, "y": Y, "reduction": reductions}, finite)
    yield subject("loss_gradient", pair, {"x": X, "y": Y}, finite)
    yield subject("loss_gradient", lambda: {**pair(), "sampling": True}, {"x": X, "y": Y}, finite)
    classes = [*INTEGERS, *constants([0, 1], [0, 1, 3], [0.5, 1, 1], ["a", "b", "c"]), *ANYTHING]
    words = {**KEYWORDS, "label": ("y must",), "pred": ("y must",)}
    yield subject("class_gradient", lambda: {**one(), "label": 1}, {"x": X, "label": classes}, finite, words)
    scores = lambda: {"pred": np.zeros((3, 3), np.float32), "y": labels(3)}  # noqa: E731
    yield subject("compute_loss_from_predictions", scores, {"pred": ANYTHING, "y": Y}, words=words)


def constructor(framework: Any) -> Subject:
    odd = {
        **SETTINGS,
        "nb_classes": INTEGERS,
        "seed": [*NUMBERS, *ANYTHING],
        "n0": [k for k in INTEGERS if k() is not None],
        "output": constants("hard", None, 3, []),
        "input_shape": constants((), (0, 4), "ab", 3.5, None, (4.5,), (-1, 2)),
    }
    words = {"seed": ("key",), "nb_classes": ("class",), "input_shape": ("shape",)}
    call = lambda **changes: framework.smoothed(**changes).scale  # noqa: E731
    return Subject(f"{framework.name} constructor", call, dict, odd, words=words)


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
