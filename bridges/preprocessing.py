"""What happens between the noise and the model: defences in order, then mean and standard deviation."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np


@runtime_checkable
class Preprocessor(Protocol):
    """A step before the model. ART's preprocessors have this form."""

    @property
    def apply_fit(self) -> bool:
        """Whether it applies while fitting."""
        ...

    @property
    def apply_predict(self) -> bool:
        """Whether it applies in everything else."""
        ...

    def __call__(self, x: np.ndarray, y: Any = None) -> tuple[np.ndarray, Any]:
        """Return the inputs, and the labels, as they go on."""
        ...

    def estimate_gradient(self, x: np.ndarray, grad: np.ndarray) -> np.ndarray:
        """Return the gradient in x, from the gradient in the result."""
        ...


class Standardisation:
    """Subtract a mean and divide by a standard deviation, each a number or one for each channel.

    Args:
        mean, std: numbers, vectors with one entry for each channel, or arrays that broadcast against one input.
        shape: of one input.
        channels_first: which axis a vector belongs to where the first and the last one both fit.

    Raises:
        ValueError: an entry of std is not positive, one of both is not finite, or a shape does not fit.

    Example:
        >>> step = Standardisation([0.0, 1.0, 2.0], 2.0, (3, 8, 8), channels_first=True)
        >>> step(np.ones((1, 3, 8, 8), np.float32))[0][0, :, 0, 0]
        array([ 0.5,  0. , -0.5], dtype=float32)
    """

    apply_fit = True
    apply_predict = True

    def __init__(self, mean: Any, std: Any, shape: tuple[int, ...], channels_first: bool) -> None:
        self.mean = _along_channels("mean", mean, shape, channels_first)
        self.std = _along_channels("standard deviation", std, shape, channels_first)
        if not (self.std > 0).all():
            raise ValueError(f"the standard deviation in preprocessing must be positive, got {std}")

    def __call__(self, x: np.ndarray, y: Any = None) -> tuple[np.ndarray, Any]:
        """Return (x - mean) / std."""
        return (x - self.mean) / self.std, y

    def estimate_gradient(self, x: np.ndarray, grad: np.ndarray) -> np.ndarray:
        """Return the gradient divided by std."""
        del x
        return grad / self.std


class Preprocessing:
    """The steps before the model, their gradient, and the steps after it.

    Args:
        defences: one preprocessor, a list of them, or None.
        preprocessing: `(mean, std)`, a preprocessor, or None; applied last.
        postprocessors: one, a list, or None: objects with `apply_predict` that map scores to scores.
        shape: of one input.
        channels_first: see `Standardisation`.

    Raises:
        TypeError: an object is of another form. ValueError: as `Standardisation`.
    """

    def __init__(
        self, defences: Any, preprocessing: Any, postprocessors: Any, shape: tuple[int, ...], channels_first: bool
    ) -> None:
        steps = _as_list(defences)
        if isinstance(preprocessing, Sequence):
            if len(preprocessing) != 2:
                raise ValueError(f"preprocessing must be (mean, std), got {preprocessing!r}")
            mean, std = preprocessing
            # ART's default (0, 1) changes nothing, so it is no step.
            if np.any(np.asarray(mean) != 0) or np.any(np.asarray(std) != 1):
                steps.append(Standardisation(mean, std, shape, channels_first))
        elif preprocessing is not None:
            steps.append(preprocessing)
        for step in steps:
            if not isinstance(step, Preprocessor):
                raise TypeError(
                    f"a preprocessing defence must have apply_fit, apply_predict, __call__ and "
                    f"estimate_gradient, got {type(step).__name__}"
                )
        self.steps: list[Preprocessor] = steps
        self.postprocessors: list[Any] = _as_list(postprocessors)
        self._at_fit = [step for step in steps if step.apply_fit]
        self.at_predict = [step for step in steps if step.apply_predict]
        self.is_affine = all(isinstance(step, Standardisation) for step in self.at_predict)
        """Whether only standardisations come before the model. They take JAX arrays, too, and their gradient is the
        same at all inputs, so that it can be applied to sums of gradients."""
        for step in self.postprocessors:
            if not (callable(step) and hasattr(step, "apply_predict")):
                raise TypeError(
                    f"a postprocessing defence must have apply_predict and __call__, got {type(step).__name__}"
                )

    def before(self, x: Any, y: Any = None, *, fit: bool = False) -> tuple[Any, Any]:
        """Return inputs and labels as the model gets them, the inputs in float32; JAX arrays where such came."""
        in_jax = isinstance(x, jax.Array)
        for step in self._at_fit if fit else self.at_predict:
            x, y = _apply(step, x, y)
        return (jnp if in_jax else np).asarray(x, np.float32), y

    def before_of_tensor(self, x: Any, as_tensor: Callable[[np.ndarray], Any], *, fit: bool = False) -> Any:
        """Return a tensor as the model gets it, with its graph.

        Raises:
            ValueError: a defence takes arrays only, which would cut the graph.
        """
        for step in self._at_fit if fit else self.at_predict:
            if isinstance(step, Standardisation):
                x = (x - as_tensor(step.mean)) / as_tensor(step.std)
            elif takes_tensors(step):
                x, _ = step.forward(x, None)  # pyright: ignore[reportAttributeAccessIssue]
            else:
                raise ValueError(
                    f"x must be an array: {type(step).__name__} takes arrays only, which cuts the graph of a tensor"
                )
        return x

    def gradient(self, x: Any, gradient: np.ndarray, *, fit: bool = False) -> np.ndarray:
        """Return the gradient in the caller's x from the gradient in the model's input, in float32.

        If `is_affine`, x is not used, and one row of the gradient may be the sum of several.
        """
        applied = self._at_fit if fit else self.at_predict
        # The gradient of a step is taken at the input that it had.
        inputs = [x]
        for step in applied[:-1]:
            inputs.append(_apply(step, inputs[-1], None)[0])
        for step, x in zip(reversed(applied), reversed(inputs), strict=False):  # without steps there is an x too many
            gradient = step.estimate_gradient(x, gradient)
        return np.asarray(gradient, np.float32)

    def after(self, scores: np.ndarray) -> np.ndarray:
        """Return the scores after the postprocessing defences, NaN in the rows that a defence blanked with zeros.

        A row of NaN is no vote; one of zeros would be a vote for class 0.
        """
        if not self.postprocessors:
            return scores
        applied = [step for step in self.postprocessors if step.apply_predict]
        for step in applied:
            scores = step(np.array(scores))  # it may write to them
        if not applied:
            return scores
        scores = np.asarray(scores, np.float32)
        return np.where(scores.any(axis=-1, keepdims=True), scores, np.nan)


def takes_tensors(step: Any) -> bool:
    """Return whether a step runs on tensors, with their graph. ART's others have a `forward` that raises."""
    forward = getattr(type(step), "forward", None)
    return isinstance(step, Standardisation) or getattr(forward, "__qualname__", "Preprocessor.forward") != (
        "Preprocessor.forward"
    )


def _apply(step: Preprocessor, x: Any, y: Any) -> tuple[Any, Any]:
    """Apply a step to inputs. A step that is not ours may write to them, so it gets a copy."""
    return step(x if isinstance(step, Standardisation) else np.array(x), y)


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _along_channels(name: str, value: Any, shape: tuple[int, ...], channels_first: bool) -> np.ndarray:
    """Return a number, or a vector along the channel axis, that broadcasts against inputs `[N, *shape]`."""
    array = np.asarray(value, np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"the {name} in preprocessing must be finite, got {value}")
    if array.ndim == 1 and array.size > 1:
        # Both axes fit where there are as many rows as channels, for example: then `channels_first` decides.
        fits = [axis for axis in (0, len(shape) - 1) if shape[axis] == array.size]
        if not fits:
            raise ValueError(f"the {name} in preprocessing has {array.size} entries, which no axis of {shape} has")
        axis = fits[0] if channels_first else fits[-1]
        return array.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    if array.ndim == len(shape) + 1 and array.shape[0] == 1:  # of a batch, as ART takes it
        array = array[0]
    try:
        np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(f"the {name} in preprocessing has shape {array.shape}, inputs have {shape}") from None
    return array
