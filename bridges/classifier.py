"""The shared surface of ART's smoothing classes over a backend: gradients, losses, training."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bridges.backend import Backend
from bridges.fitting import epochs, generated_batches, minibatches
from bridges.gradients import Samples, smoothed_loss_gradient, weighted_gradient
from bridges.inputs import as_inputs, as_labels, as_reduction, input_ids, refuse_keywords, to_numpy
from bridges.preprocessing import Preprocessing
from bridges.smoothing import RandomizedSmoothingMixin
from jaxsmooth import Gaussian, stream_samples
from jaxsmooth.checks import check_integer

_GRADIENTS, _ORDER = 4, 5  # streams of the key, beside those of the mixin


class SmoothedClassifier(RandomizedSmoothingMixin):
    """A network with preprocessing, smoothed. The framework's class builds the backend and passes the rest on.

    Inputs are arrays, lists or tensors `[N, *input_shape]`; labels are class indices, one-hot rows or probabilities.
    Gradients are float32 arrays, or tensors where the input is one. "The network" is the one that is not smoothed.

    Args:
        backend: the network.
        input_shape: shape of one input.
        nb_classes: number of classes, at least 2.
        channels_first: where the channels of an image are.
        clip_values: `(min, max)` of the inputs, for attacks; nothing here clips.
        preprocessing: between the noisy input and the network.
        sampling: what the gradients differentiate when a call does not say: the network, or the smoothed classifier.
        **smoothing: goes to `RandomizedSmoothingMixin`.
    """

    def __init__(
        self,
        backend: Backend,
        input_shape: tuple[int, ...],
        nb_classes: int,
        channels_first: bool,
        clip_values: Any,
        preprocessing: Preprocessing,
        *,
        sampling: bool = False,
        **smoothing: Any,
    ) -> None:
        super().__init__(**smoothing)
        self.sampling = sampling
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
    def layer_names(self) -> list[str]:
        """Names of the direct children of the network."""
        return self._backend.layer_names

    @property
    def preprocessing_operations(self) -> list[Any]:
        """The steps before the network, in order."""
        return self._preprocessing.steps

    def loss_gradient(self, x: Any, y: Any, training_mode: bool = False, *, sampling: bool | None = None) -> np.ndarray:
        """Return the gradient in x of a loss, `f32[N, *input_shape]`.

        Args:
            x: inputs.
            y: labels.
            training_mode: run the network in training mode.
            sampling: if false, the loss is the network's, under its own reduction. If true, it is the mean over the
                batch of -log of the probability of the label averaged over `sample_size` noisy copies (Salman et al.
                2019, arXiv:1906.04584), at least 1e-20. The instance's `sampling` by default.
        """
        inputs = as_inputs(x, self._input_shape)
        labels = self._checked_labels(y, len(inputs))
        if len(inputs) == 0:
            return np.zeros_like(inputs)
        if self.sampling if sampling is None else sampling:
            indices = as_labels(labels, len(inputs), self._nb_classes)
            gradient = smoothed_loss_gradient(
                self._backend, self._preprocessing, self._gradient_samples, inputs, indices, self.sample_size
            )
        else:
            prepared, _ = self._preprocessing.before(inputs)
            gradient = self._backend.loss_gradient(prepared, labels, training=training_mode)
            gradient = self._preprocessing.gradient(inputs, gradient)
        return self._backend.like(x, gradient)

    def class_gradient(
        self, x: Any, label: Any = None, training_mode: bool = False, *, sampling: bool | None = None
    ) -> np.ndarray:
        """Return gradients in x of the outputs for some classes.

        Args:
            x: inputs.
            label: None for every class, an int for one class, or one class for each input.
            training_mode: run the network in training mode.
            sampling: if false, of the network's outputs; if true, of the class probabilities averaged over
                `sample_size` noisy copies. The instance's `sampling` by default.

        Returns:
            `f32[N, C, *input_shape]` for None, else `f32[N, 1, *input_shape]`.
        """
        inputs = as_inputs(x, self._input_shape)
        wanted = self._checked_classes(label, len(inputs))
        if len(inputs) == 0:
            return np.zeros((0, len(wanted), *self._input_shape), np.float32)
        if self.sampling if sampling is None else sampling:
            weights = np.full(len(inputs), 1 / self.sample_size)
            gradients = [
                weighted_gradient(
                    self._backend, self._preprocessing, self._gradient_samples(inputs), inputs, labels, weights
                )
                for labels in wanted
            ]
            return self._backend.like(x, np.stack(gradients, axis=1))
        prepared, _ = self._preprocessing.before(inputs)
        gradients = []
        for labels in wanted:
            chosen = np.eye(self._nb_classes, dtype=np.float32)[labels]
            gradient = self._backend.vjp(prepared, lambda _, chosen=chosen: chosen, training=training_mode)
            gradients.append(self._preprocessing.gradient(inputs, gradient))
        return self._backend.like(x, np.stack(gradients, axis=1))

    def compute_loss(self, x: Any, y: Any, reduction: str = "none", training_mode: bool = False) -> np.ndarray:
        """Return the loss of the network: `f32[N]`, or its mean or sum.

        Args:
            x: inputs.
            y: labels.
            reduction: "none", "mean" or "sum".
            training_mode: run the network in training mode.
        """
        reduce, inputs = as_reduction(reduction), as_inputs(x, self._input_shape)
        y = self._checked_labels(y, len(inputs))
        prepared, _ = self._preprocessing.before(inputs)
        return reduce(self._backend.loss(prepared, y, training=training_mode))

    def compute_losses(self, x: Any, y: Any, reduction: str = "none") -> dict[str, np.ndarray]:
        """Return `compute_loss` as the one entry "total"."""
        return {"total": self.compute_loss(x, y, reduction)}

    def compute_loss_from_predictions(self, pred: Any, y: Any, reduction: str = "none") -> np.ndarray:
        """Return the loss of outputs of the network."""
        reduce, scores = as_reduction(reduction), to_numpy("pred", pred).astype(np.float32)
        if scores.ndim != 2 or scores.shape[1] != self._nb_classes:
            raise ValueError(f"pred must have shape [N, {self._nb_classes}], got {scores.shape}")
        return reduce(self._backend.loss_from_scores(scores, self._checked_labels(y, len(scores))))

    def _fit(
        self, epoch: Callable[[], Any], nb_epochs: int, training_mode: bool, scheduler: Any, verbose: bool
    ) -> None:
        """Train on noisy batches, epoch by epoch."""
        for index in epochs(nb_epochs, verbose):
            batches = (self._training_batch(x, y) for x, y in epoch())
            self._backend.fit(batches, training=training_mode)
            if scheduler is not None:
                self._step(scheduler, index)

    def _step(self, scheduler: Any, epoch: int) -> None:
        """Advance a scheduler at the end of an epoch."""
        raise NotImplementedError

    def _training_batch(self, x: Any, y: Any) -> tuple[np.ndarray, Any]:
        """Return a batch as the network is trained on it: noise first, then preprocessing."""
        noisy = self._add_training_noise(as_inputs(x, self._input_shape))
        return self._preprocessing.before(noisy, self._checked_labels(y, len(noisy)), fit=True)

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
        if framework or len(inputs) == 0:
            return self._backend.activations(prepared, layer, framework=framework)
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
        """Load what `save` saved under the same name and path."""
        self._backend.load(_folder(path) / filename)

    def reset(self) -> None:
        """Give every weight of the network a fresh initialisation, drawn anew each time."""
        self._backend.reset()

    def clone_for_refitting(self) -> Any:
        """Return a classifier with the same settings and architecture, fresh weights, and nothing shared."""
        clone = copy.deepcopy(self)
        clone.reset()
        return clone

    def _fit_arrays(
        self, x: Any, y: Any, batch_size: int, nb_epochs: int, training_mode: bool, drop_last: bool, **options: Any
    ) -> None:
        """Train on arrays, reshuffled in every epoch."""
        x, batch_size = as_inputs(x, self._input_shape), check_integer("batch_size", batch_size, 1)
        y = self._checked_labels(y, len(x))

        def epoch() -> Any:
            seed = jax.random.key_data(jax.random.fold_in(jax.random.fold_in(self.key, _ORDER), self._draws))
            return minibatches(x, y, batch_size, np.random.default_rng(np.asarray(seed)), drop_last)

        self._fit(epoch, nb_epochs, training_mode, **options)

    def _fit_generator(self, generator: Any, nb_epochs: int, training_mode: bool, **options: Any) -> None:
        """Train on the batches of a generator."""
        self._fit(generated_batches(generator), nb_epochs, training_mode, **options)

    def _predict_classifier(self, x: np.ndarray, batch_size: int, training_mode: bool, **kwargs: Any) -> np.ndarray:
        """Return the scores of the network, after postprocessing."""
        refuse_keywords(kwargs)
        scores = [np.zeros((0, self._nb_classes), np.float32)]
        for start in range(0, len(x), batch_size):
            prepared, _ = self._preprocessing.before(x[start : start + batch_size])
            scores.append(self._preprocessing.after(self._backend.scores(prepared, training=training_mode)))
        return np.concatenate(scores)

    def _gradient_samples(self, x: np.ndarray) -> Samples:
        """Return the noisy copies that gradients average over, the same in every pass."""
        key, noise = jax.random.fold_in(self.key, _GRADIENTS), Gaussian(self.scale)
        batch_size = self._chunk(x, 32)
        return stream_samples(noise, key, x, n=self.sample_size, batch_size=batch_size, ids=input_ids(x))

    def _checked_labels(self, y: Any, number: int) -> np.ndarray:
        """Return labels in the form in which they came, once they were found to be labels."""
        array = to_numpy("y", y)
        indices = as_labels(array, number, self._nb_classes)
        return array if array.ndim == 2 and array.shape[1] == self._nb_classes else indices

    def _checked_classes(self, label: Any, number: int) -> list[Any]:
        """Return, for each gradient wanted, the class of each input."""
        if label is None:
            return [np.full(number, c) for c in range(self._nb_classes)]
        if np.ndim(label) == 0:
            return [np.full(number, check_integer("label", label, 0, self._nb_classes - 1))]
        return [as_labels(label, number, self._nb_classes)]


def _folder(path: str | Path | None) -> Path:
    if path is not None:
        return Path(path)
    art = sys.modules.get("art.config")
    return Path.cwd() if art is None else Path(art.ART_DATA_PATH)
