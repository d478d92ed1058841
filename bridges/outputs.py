"""Which part of what a model returns are its scores. One place for all frameworks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxsmooth.descriptions import described

# What Hugging Face's models call what is not scores.
_NO_SCORES = {"last_hidden_state", "hidden_states", "pooler_output", "loss", "attentions", "image_embeds"}


class Reading(NamedTuple):
    """How scores are read from what a model returns.

    An array is the scores. Of a mapping, such as a `ModelOutput` of Hugging Face, or a NamedTuple, they are the entry
    "logits", or the only entry, unless its name says that it is something else, such as "last_hidden_state"; of an
    object its attribute `logits`; of a tuple or list its first entry, where no other entry could be meant: no other is
    a matrix of another width. Of several matrices of one width the first is taken, as auxiliary outputs come after the
    scores. What is ambiguous is refused.

    Attributes:
        output: the user's function from what the model returns to scores, in place of these rules; None for none.
        classes: number of classes, where it is known: only matrices of this width could be meant then.

    Example:
        >>> Reading()({"logits": np.zeros((2, 3)), "features": np.zeros((2, 9))}).shape
        (2, 3)
        >>> Reading()((np.zeros((2, 3)), np.zeros((2, 9))))
        Traceback (most recent call last):
        ...
        ValueError: the model returns a tuple of arrays of shapes (2, 3), (2, 9): say which are the scores by a \
function of it, such as output=lambda result: result[0]
        >>> Reading(output=lambda result: result[0])((np.zeros((2, 3)), np.zeros((2, 9)))).shape
        (2, 3)
    """

    output: Callable[[Any], Any] | None = None
    classes: int | None = None
    argument: str = "output"

    def __call__(self, result: Any, model: str = "the model") -> Any:
        """Return the scores.

        Args:
            result: what the model returned.
            model: its name, for errors.

        Raises:
            TypeError: there are no scores in it. ValueError: it is ambiguous which they are.
        """
        if self.output is not None:
            try:
                scores = self.output(result)
            except Exception as error:
                error.add_note(f"{self.argument} was called on {_words(result)}, which {model} returned")
                raise
            if not _is_array(scores):
                raise TypeError(
                    f"{self.argument} must return an array of scores, got {_words(scores)} for {_words(result)}"
                )
            return scores
        if _is_array(result):
            return result
        if isinstance(result, Mapping):
            return self._of_mapping(result, model)
        if isinstance(result, tuple) and hasattr(result, "_fields") and len(result) > 1:  # a NamedTuple has names
            return self._of_mapping(dict(zip(result._fields, result, strict=True)), model)  # pyright: ignore
        logits = getattr(result, "logits", None)
        if _is_array(logits):
            return logits
        if isinstance(result, Sequence) and not isinstance(result, (str, bytes)) and len(result) > 0:
            return self._of_sequence(result, model)
        raise TypeError(
            f"{model} must return an array of scores, or a mapping, tuple or list with one, got {_words(result)}"
        )

    def _of_mapping(self, result: Mapping[Any, Any], model: str) -> Any:
        chosen = result.get("logits")
        if chosen is None and len(result) == 1 and not set(result) & _NO_SCORES:
            (chosen,) = result.values()
        if not _is_array(chosen):
            raise self._ambiguous(result, model, "result['...']")
        return chosen

    def _of_sequence(self, result: Sequence[Any], model: str) -> Any:
        first = result[0]
        if _is_array(first) and len(first.shape) >= 2:
            widths = {entry.shape[1] for entry in result if _is_array(entry) and len(entry.shape) == 2}
            others = widths - {first.shape[1]}
            if self.classes is not None:
                others &= {self.classes}
            # A matrix among the other entries may be the scores, too.
            if len(first.shape) == 2 and not others:
                return first
            if len(first.shape) > 2 and not any(map(_is_array, result[1:])):
                return first
        if len(result) == 1 and _is_array(first):
            return first
        raise self._ambiguous(result, model, "result[0]")

    def _ambiguous(self, result: Any, model: str, example: str) -> ValueError:
        return ValueError(
            f"{model} returns {_words(result)}: say which are the scores by a function of it, such as "
            f"{self.argument}=lambda result: {example}"
        )


def settings_as_weights(*settings: Any) -> dict[str, np.ndarray]:
    """Return what is beside the weights of a model and changes its scores, in the form of weights.

    Example:
        >>> same = [settings_as_weights(lambda result, i=i: result[i]) for i in (0, 1)]
        >>> same[0] == same[1]
        False
    """
    words = [described(value) for value in settings if value is not None]
    return {f"settings {' '.join(words)}": np.zeros(0, np.uint8)} if words else {}


def _is_array(value: Any) -> bool:
    """Return whether a value is an array or a tensor of any framework, traced or not."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _words(value: Any) -> str:
    """Return what a value is: an array by its shape, a mapping by its keys, a sequence by its entries."""
    if _is_array(value):
        return f"an array of shape {tuple(value.shape)}"
    name = type(value).__name__
    if isinstance(value, Mapping):
        return f"a {name} with the keys {', '.join(map(repr, value))}"
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        if value and all(map(_is_array, value)):
            return f"a {name} of arrays of shapes {', '.join(str(tuple(entry.shape)) for entry in value)}"
        return f"a {name} of {', '.join(map(_words, value)) or 'nothing'}"
    return f"{value!r}" if value is None else f"an instance of {name}"
