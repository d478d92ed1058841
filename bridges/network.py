"""A network over a backend, without noise: the part of ART's classifier surface that smoothing does not touch."""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridges.backend import Backend
from bridges.inputs import as_inputs, as_labels, as_real, as_reduction, refuse_keywords, to_numpy
from bridges.preprocessing import Preprocessing, Standardisation
from jaxsmooth.checks import check_integer
from jaxsmooth.samples import equal_part, few_sizes


class Network:
    """A network with what goes before and after it.

    Inputs are arrays, lists or tensors `[N, *input_shape]`; labels are class indices, one-hot rows or probabilities.

    Args:
        backend: the network.
        input_shape: shape of one input.
        nb_classes: number of classes, at least 2.
        channels_first: where the channels of an image are.
        clip_values: `(min, max)` of the inputs, for attacks; nothing here clips.
        preprocessing: the steps before and after the network.
    """

    def __init__(
        self,
        backend: Backend,
        input_shape: tuple[int, ...],
        nb_classes: int,
        channels_first: bool,
        clip_values: Any,
        preprocessing: Preprocessing,
    ) -> None:
        self._backend = backend
        self._input_shape = input_shape
        self._nb_classes = nb_classes
        self._channels_first = channels_first
        self._clip_values = clip_values
        self._preprocessing = preprocessing

    @property
    def model(self) -> Any:
        """The network."""
        return self._backend.model

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self._input_shape

    @property
    def nb_classes(self) -> int:
        """Number of classes."""
        return self._nb_classes

    @property
    def channels_first(self) -> bool:
        """Whether the channels of an image come first."""
        return self._channels_first

    @property
    def clip_values(self) -> Any:
        """Smallest and largest value of an input, `f32[2]`, or None."""
        return self._clip_values

    @property
    def layer_names(self) -> list[str] | None:
        """Names of the direct children of the network, None where it has no such thing."""
        return self._backend.layer_names

    @property
    def preprocessing_operations(self) -> list[Any]:
        """The steps before the network, in order."""
        return self._preprocessing.steps

    @property
    def all_framework_preprocessing(self) -> bool:
        """Whether every step before the network can run on tensors of the framework."""
        return all(isinstance(step, Standardisation) or hasattr(step, "forward") for step in self._preprocessing.steps)

    def compute_loss(self, x: Any, y: Any, reduction: str = "none", training_mode: bool = False) -> np.ndarray:
        """Return the loss of the network: `f32[N]`, or its mean or sum, 0 for no inputs.

        Args:
            x: inputs.
            y: labels.
            reduction: "none", "mean" or "sum".
            training_mode: run the network in training mode.
        """
        reduce, inputs = as_reduction(reduction), as_inputs(x, self._input_shape)
        y = self._checked_labels(y, len(inputs))
        if len(inputs) == 0:
            return np.zeros((0,) if reduction == "none" else (), np.float32)
        prepared, _ = self._preprocessing.before(inputs)
        return reduce(self._backend.loss(prepared, y, training=training_mode))

    def compute_losses(self, x: Any, y: Any, reduction: str = "none") -> dict[str, np.ndarray]:
        """Return `compute_loss` as the one entry "total"."""
        return {"total": self.compute_loss(x, y, reduction)}

    def compute_loss_from_predictions(self, pred: Any, y: Any, reduction: str = "none") -> np.ndarray:
        """Return the loss of outputs of the network."""
        reduce, scores = as_reduction(reduction), as_real("pred", pred, f"[N, {self._nb_classes}]")
        if scores.ndim != 2 or scores.shape[1] != self._nb_classes:
            raise ValueError(f"pred must have shape [N, {self._nb_classes}], got {scores.shape}")
        return reduce(self._backend.loss_from_scores(scores, self._checked_labels(y, len(scores))))

    def get_activations(self, x: Any, layer: Any = None, batch_size: int = 128, framework: bool = False) -> Any:
        """Return what a layer of the network returns for the inputs.

        Args:
            x: inputs.
            layer: name, or index among `layer_names`.
            batch_size: rows in one call of the network.
            framework: return a tensor with its graph, made in one call, instead of an array.

        Raises:
            ValueError, IndexError, TypeError: there is no such layer; the message lists those there are.
        """
        inputs = as_inputs(x, self._input_shape)
        batch_size = check_integer("batch_size", batch_size, 1)
        prepared, _ = self._preprocessing.before(inputs)
        if len(inputs) == 0:  # not every network takes no rows
            row = np.zeros((1, *prepared.shape[1:]), np.float32)
            return self._backend.activations(row, layer, framework=framework)[:0]
        if framework:
            return self._backend.activations(prepared, layer, framework=True)
        starts = range(0, len(inputs), batch_size)
        return np.concatenate([self._backend.activations(prepared[s : s + batch_size], layer) for s in starts])

    def save(self, filename: str, path: str | Path | None = None) -> None:
        """Save the weights and the optimizer's state under this name.

        Args:
            filename: name without its ending.
            path: folder, made if need be; the working directory by default, or ART's data path if ART is loaded.
        """
        self._backend.save(_folder(path) / filename)

    def load(self, filename: str, path: str | Path | None = None) -> None:
        """Load what `save` saved under the same name and path. Nothing in the files is executed.

        Raises:
            FileNotFoundError: there are none. ValueError: they are damaged, or not what `save` wrote for such a
                network, which stays as it was.
        """
        file = _folder(path) / filename
        try:
            self._backend.load(file)
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:  # each framework has its own
            raise ValueError(
                f"{file} is not what save wrote for this network: {type(error).__name__}: {error}"
            ) from error

    def reset(self) -> None:
        """Give every weight of the network a fresh initialisation, drawn anew each time."""
        self._backend.reset()

    def _predict_classifier(self, x: Any, batch_size: int, training_mode: bool, **kwargs: Any) -> np.ndarray:
        """Return the scores of the network, after postprocessing."""
        refuse_keywords({name: value for name, value in kwargs.items() if name != "logits"})  # said by ART's attacks
        # Written at once into one array: outputs that stay alive keep the allocator from using their memory again.
        scores = np.empty((len(x), self._nb_classes), np.float32)
        least = self._backend.least_batch
        number = len(x)
        batch_size = equal_part(number, batch_size) if least is None else min(batch_size, max(least, few_sizes(number)))
        with self._backend.scoring(training=training_mode) as score:
            for start in range(0, len(x), batch_size):
                prepared, _ = self._preprocessing.before(x[start : start + batch_size])
                rows = len(prepared)
                if least is not None and rows < batch_size:
                    join = jnp.concatenate if isinstance(prepared, jax.Array) else np.concatenate
                    prepared = join([prepared, np.zeros((batch_size - rows, *prepared.shape[1:]), np.float32)])
                outputs = self._preprocessing.after(score(prepared)[:rows])
                part = scores[start : start + batch_size]
                if outputs.shape != part.shape:  # it would be spread over the rows, or leave some without scores
                    raise ValueError(f"scores must have shape {part.shape} after all defences, got {outputs.shape}")
                part[...] = outputs
        return scores

    def _checked_labels(self, y: Any, number: int) -> np.ndarray:
        """Return labels in the form in which they came, once they were found to be labels."""
        array = to_numpy("y", y)
        indices = as_labels(array, number, self._nb_classes)
        return array if array.ndim == 2 and array.shape[1] == self._nb_classes else indices

    def _checked_classes(self, label: Any, number: int) -> list[Any]:
        """Return, for each gradient wanted, the class of each input."""
        if label is None:
            return [np.full(number, c) for c in range(self._nb_classes)]
        if to_numpy("label", label).ndim == 0:
            return [np.full(number, check_integer("label", label, 0, self._nb_classes - 1))]
        return [as_labels(label, number, self._nb_classes)]


def _folder(path: str | Path | None) -> Path:
    if path is not None:
        return Path(path)
    art = sys.modules.get("art.config")
    return Path.cwd() if art is None else Path(art.ART_DATA_PATH)
