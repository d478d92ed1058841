"""The shared surface of ART's smoothing classes: a network over a backend, its gradients and its training."""

import copy
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxsmooth
from bridges.art import own_class
from bridges.backend import Backend
from bridges.batches import fill_rows, plan_gradients, rows_drawn
from bridges.fitting import epochs, generated_batches, minibatches
from bridges.gradients import Copies, refuse_versions, smoothed_loss_gradient, weighted_gradient
from bridges.inputs import (
    as_clip_values,
    as_hard_labels,
    as_inputs,
    as_labels,
    as_real,
    as_shape,
    as_targets,
    input_ids,
    one_hot,
    refuse_keywords,
    refuse_prediction_keywords,
    to_numpy,
)
from bridges.layers import activation_loss
from bridges.objectives import BackendNetwork, ClassObjective, objective_at
from bridges.preprocessing import Preprocessing, Standardisation, takes_tensors
from bridges.settings import WithSettings
from bridges.smoothing import RandomizedSmoothingMixin, check_smoothing
from jaxsmooth import Stream
from jaxsmooth.arguments import as_flag, as_integer, as_scale, refuse_unknown, refuse_unpaired

_REDUCTIONS = ("none", "mean", "sum")
_STEPS = ("preprocessing_defences", "postprocessing_defences", "preprocessing", "input_shape", "channels_first")


def _setting(name: str) -> Any:
    """Return a property for a setting of the steps around the network: to set it is to call `set_params`."""

    def read(classifier: Any) -> Any:
        return vars(classifier)["_steps"][name]

    def write(classifier: Any, value: Any) -> None:
        classifier.set_params(**{name: value})

    return property(read, write, doc=f"The setting `{name}`, as it was given.")


class SmoothedClassifier(WithSettings, RandomizedSmoothingMixin):
    """A network with preprocessing, smoothed. A framework's class names the arguments and makes the backend.

    Inputs are arrays, lists or tensors `[N, *input_shape]`; labels are class indices, one-hot rows or probabilities.
    Gradients are float32 arrays, or tensors where the input is one. "The network" is the one that is not smoothed.

    Args:
        settings: the arguments of the framework's class by name: those in `parameters`, and `seed`, `n0`, `sampling`,
            `output`, `check` and others in `kept`.

    Attributes:
        of_backend: names of the settings that the backend is made from.
        own_objective: what `fit` trains by, where the call does not say; None for the loss.
    """

    kept: tuple[str, ...] = ("n0", "sampling", "output", "check")
    of_backend: tuple[str, ...] = ()
    own_objective: ClassObjective | None = None

    def __init__(self, settings: Mapping[str, Any]) -> None:
        # The next class is ART's, where ART is loaded: its constructor is not called.
        settings = {**settings, "seed": jaxsmooth.key_of_seed(settings["seed"])}
        self._backend: Any = None
        self._take(settings)
        self._begin(settings["seed"], settings["n0"], settings["output"], settings["check"])

    def _make_backend(self, settings: Mapping[str, Any], old: Any) -> Backend:
        """Return the backend of these settings, which are checked; the old one tells how far training is."""
        raise NotImplementedError

    @property
    def model(self) -> Any:
        """The network."""
        return self._backend.model

    @property
    def _model_for_art(self) -> Any:
        """The network as ART's tools call it."""
        return self.model

    @property
    def _takes_indices(self) -> bool:
        """Whether the loss takes class indices; ART's trainers ask."""
        return self._backend.loss_function.takes_indices

    @property
    def optimizer(self) -> Any:
        """The optimizer, as it was given; None if there is none."""
        return self._backend.optimizer

    @property
    def model_output(self) -> Callable[[Any], Any] | None:
        """The function from what the model returns to its outputs, as it was given."""
        return self._backend.reading.output

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

    preprocessing = _setting("preprocessing")
    preprocessing_defences = _setting("preprocessing_defences")
    postprocessing_defences = _setting("postprocessing_defences")

    @property
    def preprocessing_operations(self) -> tuple[Any, ...]:
        """The steps before the network, in order. `set_params` changes them."""
        return tuple(self._preprocessing.steps)

    def _update_preprocessing_operations(self) -> None:
        """Do nothing: a setting of ours holds once it is set. ART's tools call this afterwards."""

    def _apply_preprocessing(self, x: Any, y: Any, fit: bool = False, no_grad: bool = True) -> tuple[Any, Any]:
        """Return inputs and labels after the steps before the network, as ART's tools ask for them."""
        del no_grad
        if self._backend.is_tensor(x):
            return self._preprocessing.before_of_tensor(x, self._backend.as_tensor, fit=fit), y
        return self._preprocessing.before(as_inputs(x, self._input_shape), y, fit=fit)

    def _apply_preprocessing_gradient(self, x: Any, gradients: Any, fit: bool = False) -> Any:
        """Return the gradient in x from that in the network's input, as ART's tools ask for it."""
        values = to_numpy("gradients", gradients)
        return self._backend.like(gradients, self._preprocessing.gradient(to_numpy("x", x), values, fit=fit))

    @property
    def all_framework_preprocessing(self) -> bool:
        """Whether every step before the network can run on tensors of the framework."""
        return all(map(takes_tensors, self._preprocessing.steps))

    def __repr__(self) -> str:
        """Return the class with its settings by name; of networks and other objects their types."""
        words = (f"{name}={_word(getattr(self, name, None))}" for name in self.parameters)
        return f"{own_class(type(self)).__name__}({', '.join(words)})"

    def _take(self, settings: Mapping[str, Any]) -> None:
        """Check all settings, then take them over. Nothing after the checks can fail."""
        sizes = {name: settings[name] for name in ("sample_size", "scale", "alpha")}
        sample_size, alpha = check_smoothing(**sizes, n0=settings["n0"], output=settings["output"])
        as_flag("check", settings["check"])
        if (read := settings["model_output"]) is not None and not callable(read):
            raise TypeError(f"model_output must be a function of what the model returns, got {read!r}")
        shape = as_shape(settings["input_shape"])
        classes = as_integer("nb_classes", settings["nb_classes"], 2)
        channels_first = as_flag("channels_first", settings["channels_first"])
        sampling = as_flag("sampling", settings["sampling"])
        clip_values = as_clip_values(settings["clip_values"])
        if self.own_objective is not None:
            self.own_objective.check(settings)
        preprocessing = None
        if self._changes(settings, _STEPS):
            preprocessing = Preprocessing(
                settings["preprocessing_defences"],
                settings["preprocessing"],
                settings["postprocessing_defences"],
                shape,
                channels_first,
            )
        backend = self._backend
        if self._changes(settings, self.of_backend):  # last, since it moves the model to its device
            backend = self._make_backend(settings, self._backend)
        if preprocessing is not None or backend is not self._backend:
            self._widest: int | None = None
            self._was_checked = False
        self._preprocessing = preprocessing or self._preprocessing
        self._backend = backend
        self._limits = backend.limits
        self._input_shape = shape
        self._nb_classes = classes
        self._channels_first = channels_first
        self.sampling = sampling
        self._clip_values = clip_values
        self._steps = {name: settings[name] for name in _STEPS[:3]}
        self.sample_size = sample_size
        self.scale = settings["scale"]
        self.alpha = alpha
        for name in () if self.own_objective is None else self.own_objective.names:
            setattr(self, name, settings[name])

    def _objective(self, objective: Any, batch_size: int) -> tuple[Any, int]:
        """Return the objective of a training run, and how many inputs a step takes."""
        own = self.own_objective
        if objective is not None or own is None:
            return objective, batch_size
        settings = {name: getattr(self, name) for name in own.names}
        own.check(settings)  # anyone may set an attribute
        return own.make(settings), max(1, batch_size // own.copies(settings))

    def _changes(self, settings: Mapping[str, Any], names: tuple[str, ...]) -> bool:
        """Return whether one of these settings is another one than now.

        By identity, because equality of models, optimizers and arrays is not one truth value. Taking over an equal
        value again costs time only.
        """
        return self._backend is None or any(settings[name] is not getattr(self, name) for name in names)

    def loss_gradient(self, x: Any, y: Any, training_mode: bool = False, *, sampling: bool | None = None) -> np.ndarray:
        """Return the gradient in x of a loss, `f32[N, *input_shape]`.

        Args:
            x: inputs.
            y: labels; with sampling class indices or one-hot rows.
            training_mode: run the network in training mode.
            sampling: if false, the loss is the network's, under its own reduction. If true, it is the mean over the
                batch of -log of the probability of the label averaged over `sample_size` noisy copies (Salman et al.
                2019, arXiv:1906.04584), at least 1e-20. The instance's `sampling` by default.
        """
        x_ = as_inputs(x, self._input_shape)
        training_mode = as_flag("training_mode", training_mode)
        is_smoothed = self.sampling if sampling is None else as_flag("sampling", sampling)
        if is_smoothed:
            labels = as_targets(y, len(x_), self._nb_classes, self._nb_classes, indices=True, rows=False)
        else:
            labels = self._as_targets(y, len(x_))
        if len(x_) == 0:
            return np.zeros_like(x_)
        if is_smoothed:
            gradient = self._smoothed_loss_gradient(x_, labels)
        else:
            # Labels go along, since a defence may make several versions of each input.
            prepared, labels = self._preprocessing.before(x_, labels)
            gradient = self._backend.loss_gradient(prepared, labels, training=training_mode)
            gradient = self._preprocessing.gradient(x_, gradient)
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
        x_ = as_inputs(x, self._input_shape)
        wanted = self._as_classes(label, len(x_))
        if len(x_) == 0:
            return np.zeros((0, len(wanted), *self._input_shape), np.float32)
        training_mode = as_flag("training_mode", training_mode)
        if self.sampling if sampling is None else as_flag("sampling", sampling):
            gradients = self._smoothed_class_gradients(x_, wanted)
            return self._backend.like(x, np.stack(gradients, axis=1))
        self._read_outputs(x_)
        prepared, _ = self._preprocessing.before(x_)
        refuse_versions(prepared, x_)
        gradients = []
        for labels in wanted:
            chosen = one_hot(labels, self._nb_classes)
            gradient = self._backend.vjp(prepared, lambda _, chosen=chosen: chosen, training=training_mode)
            gradients.append(self._preprocessing.gradient(x_, gradient))
        return self._backend.like(x, np.stack(gradients, axis=1))

    def _smoothed_loss_gradient(self, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return the gradient of the mean over the batch of -log of the averaged probability of the label."""
        return smoothed_loss_gradient(self._backend, self._preprocessing, self._copies(x), labels)

    def _smoothed_class_gradients(self, x: np.ndarray, wanted: list[np.ndarray]) -> list[np.ndarray]:
        """Return the gradients of the averaged probabilities, of one class of each input at a time."""
        copies = self._copies(x)

        def weigh(own: np.ndarray, _: np.ndarray) -> np.ndarray:
            return np.full(len(own), 1 / copies.n)

        return [weighted_gradient(self._backend, self._preprocessing, copies, labels, weigh) for labels in wanted]

    def custom_loss_gradient(
        self, loss_fn: Any, x: Any, y: Any, layer_name: Any, training_mode: bool = False
    ) -> np.ndarray:
        """Return the gradient in x of a loss between the activations of two batches of inputs at a layer.

        Args:
            loss_fn: function of the two activations, or of their difference if it takes one argument; one with an
                argument `p`, such as `torch.norm`, gets p = 2, as from ART.
            x: inputs, whose gradient is returned.
            y: inputs to compare with, one for each input of x.
            layer_name: name, or index among `layer_names`.
            training_mode: run the network in training mode.
        """
        training_mode = as_flag("training_mode", training_mode)
        x_ = as_inputs(x, self._input_shape)
        others = as_inputs(y, self._input_shape)
        if len(x_) != len(others):
            raise ValueError(f"x and y must hold the same number of inputs, got {len(x_)} and {len(others)}")
        (prepared, _) = self._preprocessing.before(x_)
        (compared, _) = self._preprocessing.before(others)
        loss = activation_loss(loss_fn)
        if len(x_) == 0:
            return np.zeros_like(x_)
        gradient = self._backend.activation_gradient(loss, prepared, compared, layer_name, training=training_mode)
        return self._backend.like(x, self._preprocessing.gradient(x_, gradient))

    def compute_loss(self, x: Any, y: Any, reduction: str = "none", training_mode: bool = False) -> np.ndarray:
        """Return the loss of the network: `f32[N]`, or the loss's own mean or sum of them, 0 for no inputs.

        A loss with class weights, or one that ignores a class, has a mean of its own.

        Args:
            x: inputs.
            y: labels.
            reduction: "none", "mean" or "sum".
            training_mode: run the network in training mode.
        """
        refuse_unknown("reduction", reduction, _REDUCTIONS)
        training_mode = as_flag("training_mode", training_mode)
        x = as_inputs(x, self._input_shape)
        y = self._as_targets(y, len(x))
        if len(x) == 0:
            return np.zeros((0,) if reduction == "none" else (), np.float32)
        prepared, y = self._preprocessing.before(x, y)
        loss = self._backend.loss(prepared, y, reduction, training=training_mode)
        return _of_each(loss, len(x)) if reduction == "none" else loss

    def compute_losses(self, x: Any, y: Any, reduction: str = "none") -> dict[str, np.ndarray]:
        """Return `compute_loss` as the one entry "total"."""
        return {"total": self.compute_loss(x, y, reduction)}

    def compute_loss_from_predictions(self, pred: Any, y: Any, reduction: str = "none") -> np.ndarray:
        """Return the loss of outputs of the network."""
        refuse_unknown("reduction", reduction, _REDUCTIONS)
        scores = as_real("pred", pred, f"[N, {self._nb_classes}]")
        is_binary = scores.ndim == 2 and (scores.shape[1], self._nb_classes) == (1, 2)
        if not is_binary and (scores.ndim != 2 or scores.shape[1] != self._nb_classes):
            raise ValueError(f"pred must have shape [N, {self._nb_classes}], got {scores.shape}")
        y = self._as_targets(y, len(scores))
        if len(scores) == 0:
            return np.zeros((0,) if reduction == "none" else (), np.float32)
        return self._backend.loss_from_scores(scores, y, reduction)

    def get_activations(self, x: Any, layer: Any = None, batch_size: int = 128, framework: bool = False) -> Any:
        """Return what a layer of the network returns for the inputs.

        Args:
            x: inputs.
            layer: name, or index among `layer_names`.
            batch_size: rows in one call of the network.
            framework: return a tensor instead of an array, made in one call. If x is a tensor, it has its graph to x.

        Raises:
            ValueError, IndexError, TypeError: there is no such layer; the message lists those there are.
        """
        batch_size = as_integer("batch_size", batch_size, 1)
        if as_flag("framework", framework) and self._backend.is_tensor(x):
            if tuple(x.shape[1:]) != self._input_shape or x.shape[0] == 0:
                raise ValueError(
                    f"x must have shape (N, {', '.join(map(str, self._input_shape))}), got {tuple(x.shape)}"
                )
            prepared = self._preprocessing.before_of_tensor(self._backend.as_tensor(x), self._backend.as_tensor)
            return self._backend.activations(prepared, layer, framework=True)
        x = as_inputs(x, self._input_shape)
        prepared, _ = self._preprocessing.before(x)
        if len(x) == 0:  # not every network takes no rows
            row = np.zeros((1, *prepared.shape[1:]), np.float32)
            return self._backend.activations(row, layer, framework=framework)[:0]
        if framework:
            return self._backend.activations(prepared, layer, framework=True)
        starts = range(0, len(x), batch_size)
        return np.concatenate([self._backend.activations(prepared[s : s + batch_size], layer) for s in starts])

    def fit(
        self,
        x: Any,
        y: Any,
        batch_size: int = 128,
        nb_epochs: int = 10,
        training_mode: bool = True,
        drop_last: bool = False,
        scheduler: Any = None,
        verbose: bool = False,
        *,
        objective: Any = None,
        **kwargs: Any,
    ) -> None:
        """Train the network on noisy inputs, with fresh noise in every batch.

        Args:
            x: inputs.
            y: labels.
            batch_size: rows in one training step.
            nb_epochs: number of passes, each in another order.
            training_mode: train in training mode (batch normalisation, dropout) or in evaluation mode.
            drop_last: leave out a last batch that is smaller.
            scheduler: called after every epoch: its `step()` in PyTorch, itself with the index of the epoch elsewhere.
            verbose: show a progress bar.
            objective: one of `jaxsmooth.losses`, such as `losses.macer` or `functools.partial(losses.macer, m=4)`, in
                place of the instance's loss, which still says how outputs are read; or a
                `bridges.objectives.EpochObjective`. A function of your own may choose between them and their settings,
                and must return what one of them returns, as it is. Attacks stay within the objective's `clip_values`,
                or else the instance's. By default the instance's loss at one noisy copy of each input.

        Raises:
            ValueError: there is no optimizer, or an argument is not as described. TypeError: an unknown keyword.
        """
        if kwargs.pop("validation_data", None) is not None:  # said by ART's trainers
            raise TypeError("validation_data must be None: nothing here uses such data")
        refuse_keywords(kwargs, ("training_mode", "drop_last", "scheduler", "verbose"))
        objective, batch_size = self._objective(objective, as_integer("batch_size", batch_size, 1))
        self._backend.refuse_untrainable(by_objective=objective is not None)
        x = as_inputs(x, self._input_shape)
        y = self._as_targets(y, len(x))
        drop_last = as_flag("drop_last", drop_last)
        if objective is not None:
            y = as_hard_labels(y, len(x), self._nb_classes)

            def clean() -> Any:
                order = self._order(len(x))
                return minibatches(x[order], y[order], batch_size, drop_last)

            self._train_by(objective, clean, nb_epochs, training_mode, scheduler, verbose)
            return
        drawn = rows_drawn(len(x), batch_size, math.prod(self._input_shape))

        def epoch() -> Any:
            order = self._order(len(x))
            for rows in np.split(order, range(drawn, len(x), drawn)):
                yield from minibatches(self._add_training_noise(x[rows]), y[rows], batch_size, drop_last)

        self._train(epoch, nb_epochs, training_mode, scheduler, verbose)

    def _order(self, inputs: int) -> np.ndarray:
        """Return the order of an epoch."""
        seed = jax.random.key_data(jaxsmooth.stream_key(self.key, Stream.ORDER, self._draws))
        return np.random.default_rng(np.asarray(seed)).permutation(inputs)

    def _train_by(
        self,
        objective: Any,
        epoch: Callable[[], Any],
        nb_epochs: int,
        training_mode: bool,
        scheduler: Any,
        verbose: bool,
    ) -> None:
        """Train by an objective, epoch by epoch, on pairs of clean inputs and labels: it draws its noise itself."""
        objective_at(objective, 0)  # refuses what is none, before anything is changed
        training = as_flag("training_mode", training_mode)
        network = BackendNetwork(self._backend, self._preprocessing, self._nb_classes, training, self._clip_values)
        noise = jaxsmooth.Gaussian(as_scale("scale", self.scale))
        try:
            for index in epochs(nb_epochs, verbose):
                loss = objective_at(objective, index)
                for x, y in epoch():
                    self._read_outputs(x)
                    labels = as_hard_labels(y, len(x), self._nb_classes)
                    network.train(loss, noise, self._next_training_key(), x, labels)
                if scheduler is not None:
                    self._backend.advance(scheduler, index)
        finally:
            self._backend.loss_function.forget_last()

    def fit_generator(
        self,
        generator: Any,
        nb_epochs: int = 20,
        verbose: bool = False,
        *,
        training_mode: bool = True,
        scheduler: Any = None,
        objective: Any = None,
    ) -> None:
        """Train on noisy batches of a generator.

        Args:
            generator: gives batches; one epoch is one pass. A torch `DataLoader`, a `tf.data.Dataset`, one of ART's, or
                any iterable of (x, y).
            nb_epochs: number of epochs.
            verbose: show a progress bar.
            training_mode, scheduler, objective: as in `fit`.
        """
        objective, _ = self._objective(objective, 1)
        self._backend.refuse_untrainable(by_objective=objective is not None)
        batches = generated_batches(generator)

        def clean() -> Any:
            for place, pair in enumerate(batches()):
                refuse_unpaired("generator", pair, f"in batch {place}")
                x = as_inputs(pair[0], self._input_shape)
                yield x, self._as_targets(pair[1], len(x))

        def noisy() -> Any:
            return ((self._add_training_noise(x), y) for x, y in clean())

        if objective is None:
            self._train(noisy, nb_epochs, training_mode, scheduler, verbose)
            return
        self._train_by(objective, clean, nb_epochs, training_mode, scheduler, verbose)

    def _train(
        self, epoch: Callable[[], Any], nb_epochs: int, training_mode: bool, scheduler: Any, verbose: bool
    ) -> None:
        """Train on noisy batches, epoch by epoch."""
        training_mode = as_flag("training_mode", training_mode)
        # Generators all the way: noise and preprocessing of a batch are computed when the backend takes it.
        try:
            for index in epochs(nb_epochs, verbose):
                batches = (self._preprocessing.before(x, self._for_defences(y), fit=True) for x, y in epoch())
                self._backend.fit(batches, training=training_mode)
                if scheduler is not None:
                    self._backend.advance(scheduler, index)
        finally:
            self._backend.loss_function.forget_last()

    def _for_defences(self, y: np.ndarray) -> np.ndarray:
        """Return labels as a defence of ART's takes them: as one-hot rows."""
        is_foreign = any(not isinstance(step, Standardisation) for step in self._preprocessing.steps)
        return one_hot(y, self._nb_classes) if is_foreign and y.ndim == 1 else y

    def reduce_labels(self, y: Any) -> Any:
        """Return labels as the loss takes them: indices `i64[N]`, or rows as they are. Tensors stay tensors."""
        if not self._backend.loss_function.takes_indices or np.ndim(y) == 1:
            return y
        labels = self._backend.loss_function.labels(y, len(y), self._nb_classes)
        return y if labels.ndim > 1 else self._backend.like(y, labels)

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
        self._backend.loss_function.forget_last()

    def reset(self) -> None:
        """Give every weight of the network a fresh initialisation, drawn again each time."""
        self._backend.reset()
        self._backend.loss_function.forget_last()

    def clone_for_refitting(self) -> Any:
        """Return a classifier with the same settings and architecture, fresh weights, and nothing shared."""
        clone = copy.deepcopy(self)
        clone.reset()
        return clone

    def _predict_framework(self, x: Any, y: Any = None, training_mode: bool = False) -> Any:
        """Return the outputs of the network for a tensor, with the graph, as ART's tools ask for them.

        Returns:
            Outputs `[N, C]`, of which no noise is part.
        """
        del y
        prepared = self._preprocessing.before_of_tensor(self._backend.as_tensor(x), self._backend.as_tensor)
        return self._backend.outputs(prepared, training=as_flag("training_mode", training_mode))

    def _predict_classifier(self, x: Any, batch_size: int, training_mode: bool, **kwargs: Any) -> np.ndarray:
        """Return the scores of the network, after postprocessing, for at most `batch_size` rows at a time."""
        if kwargs:
            refuse_prediction_keywords(kwargs)
        # Written at once into one array: outputs that stay alive keep the allocator from using their memory again.
        scores = np.empty((len(x), self._nb_classes), np.float32)
        with self._backend.scoring(training=training_mode) as score:
            for start in range(0, len(x), batch_size):
                part = scores[start : start + batch_size]
                prepared, _ = self._preprocessing.before(x[start : start + batch_size])
                outputs = score(prepared)
                if len(outputs) != len(part):
                    outputs = _of_each(outputs, len(part))
                if self._preprocessing.postprocessors:
                    outputs = self._preprocessing.after(outputs)
                if outputs.shape != part.shape:  # it would be spread over the rows, or leave some without scores
                    raise ValueError(f"scores must have shape {part.shape} after all defences, got {outputs.shape}")
                part[...] = outputs
        return scores

    def _scores(self, x: Any, rows: int, training_mode: bool, kwargs: dict[str, Any]) -> np.ndarray:
        """Return the scores of a batch. Where sizes are compiled for, the last call is filled up."""
        if self._limits.least == 0:
            return self._predict_classifier(x, rows, training_mode, **kwargs)
        filled, size = self._filled(x, rows)
        return self._predict_classifier(filled, size, training_mode, **kwargs)[: len(x)]

    def _filled(self, x: Any, rows: int) -> tuple[Any, int]:
        """Return inputs that are filled up where sizes are compiled for, and how many of them make a call."""
        least = self._limits.least
        if least == 0 or len(x) % rows == 0:
            return x, rows
        size = rows if len(x) > rows else min(rows, max(least, len(x)))
        return fill_rows(x, -(-len(x) // size) * size), size

    def _as_targets(self, y: Any, inputs: int) -> np.ndarray:
        """Return labels in the form in which they came, once they were found to be labels."""
        array = to_numpy("y", y)
        indices = as_labels(array, inputs, self._nb_classes)
        return array if array.ndim == 2 and array.shape[1] == self._nb_classes else indices

    def _as_classes(self, label: Any, inputs: int) -> list[Any]:
        """Return, for each gradient that is wanted, the class of each input."""
        if label is None:
            return [np.full(inputs, c) for c in range(self._nb_classes)]
        if to_numpy("label", label).ndim == 0:
            return [np.full(inputs, as_integer("label", label, 0, self._nb_classes - 1))]
        return [as_labels(label, inputs, self._nb_classes, "label")]

    def _scores_to_check(self, x: Any, rows: int, kwargs: dict[str, Any]) -> np.ndarray:
        """Return the outputs of the network after the defences that follow it, unless those are random.

        Random ones are sound: their numbers are new for each row, and independent of the noise.
        """
        del kwargs
        filled, size = self._filled(x, rows)
        parts: list[np.ndarray] = []
        with self._backend.scoring() as score:
            for start in range(0, len(filled), size):
                part = filled[start : start + size]
                outputs = _of_each(score(self._preprocessing.before(part)[0]), len(part))
                one, other = (np.asarray(self._preprocessing.after(outputs)) for _ in range(2))
                parts.append(one if np.array_equal(one, other, equal_nan=True) else outputs)
        return np.concatenate(parts)[: len(x)]

    def _blanks_rows(self) -> bool:
        """Return whether a postprocessing defence may take the scores of a row away."""
        return bool(self._preprocessing.postprocessors)

    def _as_batch(self, noisy: jax.Array) -> Any:
        """Leave noisy inputs on an accelerator, unless something before the network takes only NumPy arrays."""
        on_cpu = next(iter(noisy.devices())).platform == "cpu"
        return noisy if self._preprocessing.is_affine and not on_cpu else self._backend.on_host(noisy)

    def _read_outputs(self, x: np.ndarray) -> None:
        """Find out what the outputs of the network are, where neither the caller nor the loss says it.

        It is seen on up to eight noisy copies of these inputs, since a network may not run on others.
        """
        loss = self._backend.loss_function
        if loss.needs_last and len(x):
            some = np.resize(x[:8], (8, *x.shape[1:]))
            noise = np.random.default_rng(0).standard_normal(some.shape, np.float32)
            prepared, _ = self._preprocessing.before(some + np.float32(np.asarray(self.scale)) * noise)
            loss.set_last(self._backend.last_operation(prepared))

    def _find_widest(self, x: np.ndarray) -> int:
        """Return how many values the widest layer has for one input. It is found out on the first input."""
        if self._widest is None:
            prepared, _ = self._preprocessing.before(x[:1])
            self._widest = self._backend.widest_layer(prepared) if len(x) else None
        if self._backend.loss_function.needs_last:
            self._read_outputs(x)
        return self._widest or 0

    def _plan_copies(self, x: np.ndarray) -> tuple[jaxsmooth.Gaussian, int, int]:
        """Return the noise of the copies that gradients average over, how many of each input, and how many at once."""
        noise = jaxsmooth.Gaussian(as_scale("scale", self.scale))
        n = self.sample_size
        return noise, n, plan_gradients(len(x), n, math.prod(x.shape[1:]), self._find_widest(x), self._limits)

    def _copies(self, x: np.ndarray) -> Copies:
        """Return the noisy copies that gradients average over, the same in every pass."""
        noise, n, rows = self._plan_copies(x)
        key = self._streams[Stream.GRADIENTS]
        ids = input_ids(x)

        def draw() -> Iterator[np.ndarray | jax.Array]:
            for noisy, _ in jaxsmooth.stream_samples(noise, key, x, n=n, batch_size=rows, ids=ids):
                yield self._as_batch(noisy)

        return Copies(x, n, rows, draw)


def arguments(local: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a constructor by name, from its `locals()`.

    Example:
        >>> def make(model, scale=0.1):
        ...     return arguments(locals())
        >>> make("net")
        {'model': 'net', 'scale': 0.1}
    """
    return {name: value for name, value in local.items() if name not in ("self", "__class__")}


def _of_each(scores: np.ndarray, inputs: int) -> np.ndarray:
    """Return the mean of the scores of each input, where a defence makes several versions of it, one after the other.

    ART's expectation over transformations does so.

    Example:
        >>> _of_each(np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 0.0], [2.0, 4.0]]), 2)
        array([[0.5, 0.5],
               [2. , 2. ]])
    """
    if inputs == 0 or len(scores) == inputs or len(scores) % inputs:
        return scores
    return scores.reshape(inputs, -1, scores.shape[1]).mean(axis=1)


def _word(value: Any) -> str:
    """Return a setting in brief: a number, a text or a short tuple as it is, of another object its type.

    Example:
        >>> _word((1, 2)), _word(np.zeros(2)), _word(object())
        ('(1, 2)', 'float64[2]', 'object')
    """
    if isinstance(value, np.ndarray):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    text = repr(value)
    plain = value is None or isinstance(value, (bool, int, float, str, tuple, list, np.generic))
    return text if plain and len(text) <= 60 else getattr(value, "__name__", type(value).__name__)


def _folder(path: str | Path | None) -> Path:
    """Return the folder that is meant."""
    if path is not None:
        return Path(path)
    art = sys.modules.get("art.config")
    return Path.cwd() if art is None else Path(art.ART_DATA_PATH)
