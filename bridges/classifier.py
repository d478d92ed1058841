"""The shared surface of ART's smoothing classes: a network, smoothed, with its gradients and its training."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from bridges.art import own_class, restore
from bridges.backend import Backend
from bridges.batches import rows_drawn_at_once
from bridges.fitting import epochs, generated_batches, minibatches
from bridges.gradients import Copies, copies_at_once, smoothed_loss_gradient, weighted_gradient
from bridges.inputs import as_clip_values, as_inputs, as_labels, as_shape, input_ids
from bridges.layers import activation_loss
from bridges.network import Network
from bridges.preprocessing import Preprocessing
from bridges.smoothing import RandomizedSmoothingMixin, as_drawn, fold_in
from jaxsmooth import Gaussian
from jaxsmooth.checks import check_integer, check_scale
from jaxsmooth.samples import Task, stream_of

_GRADIENTS, _ORDER = 2, 3  # keys among `_keys`, beside those of the mixin
_FEW_ROWS = 32  # so many at once, where the outputs of a layer fit no cache anyway


class SmoothedClassifier(RandomizedSmoothingMixin, Network):
    """A network with preprocessing, smoothed. The framework's class builds the backend and passes the rest on.

    Gradients are float32 arrays, or tensors where the input is one. "The network" is the one that is not smoothed.

    Args:
        backend: the network.
        input_shape: shape of one input.
        nb_classes: number of classes, at least 2.
        channels_first: where the channels of an image are.
        clip_values: `(min, max)` of the inputs, for attacks; nothing here clips.
        preprocessing_defences, postprocessing_defences, preprocessing: as for `Preprocessing`.
        sample_size: votes behind a prediction.
        sampling: what the gradients differentiate when a call does not say: the network, or the smoothed classifier.
        **smoothing: `scale`, `alpha`, `seed`, `n0`, `output` and `check` of `RandomizedSmoothingMixin`.

    Attributes:
        parameters: names of the settings that `get_params` returns, arguments of the constructor.
        kept: names of attributes that are arguments of the constructor too, and that `set_params` leaves alone.
    """

    parameters: tuple[str, ...] = ()
    kept: tuple[str, ...] = ("n0", "sampling", "output", "check")

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make an instance that ART's attacks accept, if ART is loaded."""
        del args, kwargs
        return restore(cls)

    def __reduce__(self) -> Any:
        """Copy and pickle as our own class, whether or not ART is loaded."""
        return restore, (own_class(type(self)),), self.__getstate__()

    def __init__(
        self,
        backend: Backend,
        input_shape: Any,
        nb_classes: int,
        channels_first: bool,
        clip_values: Any,
        preprocessing_defences: Any,
        postprocessing_defences: Any,
        preprocessing: Any,
        *,
        sample_size: int,
        sampling: bool = False,
        **smoothing: Any,
    ) -> None:
        shape, clip_values = as_shape(input_shape), as_clip_values(clip_values)
        steps = Preprocessing(preprocessing_defences, preprocessing, postprocessing_defences, shape, channels_first)
        super().__init__(sample_size, backend, shape, nb_classes, channels_first, clip_values, steps, **smoothing)
        self.preprocessing_defences = preprocessing_defences
        self.postprocessing_defences = postprocessing_defences
        self.preprocessing = preprocessing
        self.sampling = sampling
        self._widest: int | None = None

    @property
    def estimator_params(self) -> list[str]:
        """Names of the settings that `get_params` returns and `set_params` takes."""
        return list(self.parameters)

    def get_params(self) -> dict[str, Any]:
        """Return the settings by name. `set_params(**get_params())` changes nothing."""
        return {name: getattr(self, name) for name in self.parameters}

    def set_params(self, **kwargs: Any) -> None:
        """Change settings, all or none: they are checked as by the constructor before any is taken over.

        Raises:
            ValueError: an unknown name. ValueError, TypeError: as the constructor.
        """
        unknown = sorted(set(kwargs) - set(self.parameters))
        if unknown:
            raise ValueError(f"unknown parameters {unknown}: expected some of {sorted(self.parameters)}")
        changed = restore(type(self))
        changed._construct({**self.get_params(), **kwargs}, self)
        changed._draws = self._draws
        self.__dict__.update(changed.__dict__)

    def _construct(self, settings: dict[str, Any], other: Any) -> None:
        """Set up an instance from all parameters and, for the rest, from another instance."""
        # Of our own class, whatever constructor a user's subclass has.
        own: Any = next(base for base in type(self).__mro__ if "parameters" in vars(base))
        kept: dict[str, Any] = {name: getattr(other, name) for name in self.kept}
        own.__init__(self, **settings, **kept, seed=other.key)

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
        inputs, is_smoothed = as_inputs(x, self._input_shape), self.sampling if sampling is None else sampling
        number = len(inputs)
        labels = as_labels(y, number, self._nb_classes) if is_smoothed else self._checked_labels(y, number)
        if number == 0:
            return np.zeros_like(inputs)
        if is_smoothed:
            gradient = smoothed_loss_gradient(self._backend, self._preprocessing, self._copies(inputs), labels)
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
            copies, mean = self._copies(inputs), lambda own, _: np.full(len(own), 1 / self.sample_size)
            gradients = [
                weighted_gradient(self._backend, self._preprocessing, copies, labels, mean) for labels in wanted
            ]
            return self._backend.like(x, np.stack(gradients, axis=1))
        prepared, _ = self._preprocessing.before(inputs)
        gradients = []
        for labels in wanted:
            chosen = np.eye(self._nb_classes, dtype=np.float32)[labels]
            gradient = self._backend.vjp(prepared, lambda _, chosen=chosen: chosen, training=training_mode)
            gradients.append(self._preprocessing.gradient(inputs, gradient))
        return self._backend.like(x, np.stack(gradients, axis=1))

    def custom_loss_gradient(
        self, loss_fn: Any, x: Any, y: Any, layer_name: Any, training_mode: bool = False
    ) -> np.ndarray:
        """Return the gradient in x of a loss between the activations of two batches of inputs at a layer.

        Args:
            loss_fn: function of the two activations, or of their difference if it takes one argument; one with an
                argument `p`, such as `torch.norm`, gets p = 2, as from ART.
            x: inputs, whose gradient is returned.
            y: inputs to compare with, as many.
            layer_name: name, or index among `layer_names`.
            training_mode: run the network in training mode.
        """
        inputs, others = as_inputs(x, self._input_shape), as_inputs(y, self._input_shape)
        if len(inputs) != len(others):
            raise ValueError(f"x and y must be as many inputs, got {len(inputs)} and {len(others)}")
        (prepared, _), (compared, _) = self._preprocessing.before(inputs), self._preprocessing.before(others)
        loss = activation_loss(loss_fn)
        if len(inputs) == 0:
            return np.zeros_like(inputs)
        gradient = self._backend.activation_gradient(loss, prepared, compared, layer_name, training=training_mode)
        return self._backend.like(x, self._preprocessing.gradient(inputs, gradient))

    def reduce_labels(self, y: Any) -> Any:
        """Return labels as the loss takes them: indices `i64[N]`, or rows as they are. Tensors stay tensors."""
        if not self._backend.takes_indices or np.ndim(y) == 1:
            return y
        return self._backend.like(y, as_labels(y, len(y), self._nb_classes))

    def _fit(
        self, epoch: Callable[[], Any], nb_epochs: int, training_mode: bool, scheduler: Any, verbose: bool
    ) -> None:
        """Train on noisy batches, epoch by epoch."""
        for index in epochs(nb_epochs, verbose):
            batches = (self._preprocessing.before(x, y, fit=True) for x, y in epoch())
            self._backend.fit(batches, training=training_mode)
            if scheduler is not None:
                self._step(scheduler, index)

    def _step(self, scheduler: Any, epoch: int) -> None:
        """Advance a scheduler at the end of an epoch."""
        raise NotImplementedError

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
        drawn = rows_drawn_at_once(len(x), batch_size, math.prod(self._input_shape))

        def epoch() -> Any:
            seed = jax.random.key_data(fold_in(self._keys[_ORDER], self._draws))
            order = np.random.default_rng(np.asarray(seed)).permutation(len(x))
            for rows in np.split(order, range(drawn, len(x), drawn)):
                yield from minibatches(self._add_training_noise(x[rows]), y[rows], batch_size, drop_last)

        self._fit(epoch, nb_epochs, training_mode, **options)

    def _fit_generator(self, generator: Any, nb_epochs: int, training_mode: bool, **options: Any) -> None:
        """Train on the batches of a generator."""
        batches = generated_batches(generator)

        def epoch() -> Any:
            for x, y in batches():
                inputs = as_inputs(x, self._input_shape)
                labels = self._checked_labels(y, len(inputs))
                yield self._add_training_noise(inputs), labels

        self._fit(epoch, nb_epochs, training_mode, **options)

    def _blanks_rows(self) -> bool:
        """Return whether a postprocessing defence may take the scores of a row away."""
        return bool(self._preprocessing.postprocessors)

    def _as_batch(self, noisy: Any) -> Any:
        """Leave noisy inputs on an accelerator, unless something before the network takes NumPy arrays alone."""
        on_cpu = not isinstance(noisy, jax.Array) or all(device.platform == "cpu" for device in noisy.devices())
        return noisy if self._preprocessing.is_affine and not on_cpu else self._on_host(noisy)

    def _on_host(self, noisy: Any) -> np.ndarray:
        """Return noisy inputs as a NumPy array."""
        return np.asarray(noisy)

    def _rows_at_once(self, x: np.ndarray, batch_size: int) -> int:
        """Return how many rows go through the network at once: many where they are small, few where they are large."""
        room = max(self._rows_with(x, self._backend.layer_values), min(batch_size, _FEW_ROWS))
        return min(room, max(batch_size, self._backend.most_rows))

    def _rows_of(self, total: int, most: int) -> int:
        """Return how many of so many rows go through the network at once: whole batches where others are not run."""
        least = self._backend.least_batch
        return most if least is not None and least > most else super()._rows_of(total, most)

    def _gradient_rows(self, x: np.ndarray) -> int:
        """Return how many rows at once make a gradient."""
        return min(self._backend.most_rows, max(_FEW_ROWS, self._rows_with(x, self._backend.gradient_values)))

    def _rows_with(self, x: np.ndarray, values: int) -> int:
        """Return how many rows the widest layer has so many values for: its size is found out on the first input."""
        if self._widest is None:
            prepared, _ = self._preprocessing.before(x[:1])
            self._widest = self._backend.widest_layer(prepared) if len(x) else None
        return values // max(math.prod(x.shape[1:]), self._widest or 0)

    def _copies(self, x: np.ndarray) -> Copies:
        """Return the noisy copies that gradients average over, the same in every pass."""
        noise, n = Gaussian(check_scale("scale", self.scale)), self.sample_size
        at_once = copies_at_once(self._gradient_rows(x), len(x), n)
        task = Task(noise, self._keys[_GRADIENTS], as_drawn(x), input_ids(x), np.uint32(0))
        stream = stream_of(task, n, at_once)

        def draw() -> Iterator[np.ndarray | jax.Array]:
            for noisy, _ in stream.draw():
                yield self._as_batch(noisy).reshape(-1, *x.shape[1:])

        return Copies(x, n, at_once, draw)
