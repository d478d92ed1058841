"""ART's `TensorFlowV2RandomizedSmoothing` on the functions of jaxsmooth."""

from collections.abc import Callable, Mapping
from typing import Any

from bridges.classifier import SmoothedClassifier, arguments
from bridges.tensorflow.backend import TensorFlowBackend
from bridges.tensorflow.losses import Loss
from jaxsmooth.arguments import as_integer, refuse_other_framework


class TensorFlowV2RandomizedSmoothing(SmoothedClassifier):
    """A TensorFlow 2 or Keras model, smoothed (Cohen et al. 2019, arXiv:1902.02918), with the interface of ART's class.

    See `RandomizedSmoothingMixin` for noise, predictions and certificates, and `SmoothedClassifier` for the rest.

    Args:
        model: Keras model, `tf.Module` or function from `[N, *input_shape]` to `[N, nb_classes]`, or to `[N, 1]` for
            two classes under a binary cross-entropy. It is called as in `bridges.tensorflow.as_jax`.
        nb_classes: number of classes, at least 2.
        input_shape: shape of one input.
        loss_object: Keras loss, an object or a function of (labels, outputs); needed for losses and their gradients.
            It says how outputs are read, as logits or as probabilities. A loss with "Sparse" in its name gets class
            indices, another one rows.
        optimizer: of the model's variables; needed by `fit`, unless there is a `train_step`.
        train_step: function of (model, images, labels) that makes one training step.
        channels_first: where the channels of an image are.
        clip_values: `(min, max)` of the inputs, for attacks.
        preprocessing_defences, postprocessing_defences: as in ART, by their methods.
        preprocessing: `(mean, std)`, applied after the noise.
        sample_size, scale, alpha: votes, noise in the units of x, and failure probability.
        seed, n0, sampling, output, check: see `RandomizedSmoothingMixin` and `SmoothedClassifier`.
        from_logits: whether the model returns logits or probabilities. By default the loss says it, or else what the
            model returns for some inputs: rows that add up to one are probabilities.
        model_output: a function from what the model returns to its outputs, where `bridges.outputs.Reading` does not
            find them: it takes a tensor, a mapping with "logits", a tuple or list that begins with the outputs.

    Raises:
        ValueError, TypeError: an argument is not as described; it is named.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
        >>> classifier = TensorFlowV2RandomizedSmoothing(model, 3, (2, 2, 1), scale=0.5, seed=0)
        >>> label, radius = classifier.certify(np.zeros((5, 2, 2, 1)), n=1000)
        >>> label.shape, radius.dtype
        ((5,), dtype('float64'))
    """

    parameters = (
        *("model", "clip_values", "preprocessing_defences", "postprocessing_defences", "preprocessing"),
        *("channels_first", "nb_classes", "input_shape", "loss_object", "optimizer", "train_step", "sample_size"),
        *("scale", "alpha"),
    )

    kept = (*SmoothedClassifier.kept, "from_logits", "model_output")
    of_backend = ("model", "nb_classes", "loss_object", "from_logits", "optimizer", "train_step", "model_output")

    def __init__(
        self,
        model: Any,
        nb_classes: int,
        input_shape: tuple[int, ...],
        loss_object: Any = None,
        optimizer: Any = None,
        train_step: Any = None,
        channels_first: bool = False,
        clip_values: Any = None,
        preprocessing_defences: Any = None,
        postprocessing_defences: Any = None,
        preprocessing: Any = (0.0, 1.0),
        sample_size: int = 32,
        scale: float = 0.1,
        alpha: float = 0.001,
        *,
        seed: Any = None,
        n0: int | None = None,
        sampling: bool = False,
        output: str = "one_hot",
        check: bool = True,
        from_logits: bool | None = None,
        model_output: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(arguments(locals()))

    def _make_backend(self, settings: Mapping[str, Any], old: Any) -> TensorFlowBackend:
        del old
        model, optimizer, train_step = (settings[name] for name in ("model", "optimizer", "train_step"))
        _check_types(model, optimizer, train_step)
        classes = as_integer("nb_classes", settings["nb_classes"], 2)
        loss = Loss(settings["loss_object"], classes, settings["from_logits"])
        return TensorFlowBackend(model, loss, optimizer, train_step, classes, settings["model_output"])

    @property
    def loss_object(self) -> Any:
        """The loss, as it was given."""
        return self._backend.loss_function.function

    @property
    def from_logits(self) -> bool | None:
        """Whether the model returns logits, as it was given."""
        return self._backend.loss_function.from_logits

    @property
    def train_step(self) -> Any:
        """The training step, as it was given."""
        return self._backend.train_step

    def fit(  # pyright: ignore[reportIncompatibleMethodOverride]: ART's two classes differ in this order
        self,
        x: Any,
        y: Any,
        batch_size: int = 128,
        nb_epochs: int = 10,
        verbose: bool = False,
        *,
        training_mode: bool = True,
        drop_last: bool = False,
        scheduler: Any = None,
        objective: Any = None,
        **kwargs: Any,
    ) -> None:
        """Train the model on noisy inputs, with fresh noise in every batch.

        Args:
            x: inputs.
            y: labels.
            batch_size: rows in one training step.
            nb_epochs: number of passes, each in another order.
            verbose: show a progress bar.
            training_mode: train in training mode (batch normalisation, dropout) or in evaluation mode.
            drop_last: leave out a last batch that is smaller.
            scheduler: called with the index of the epoch after every epoch.
            objective: as in `SmoothedClassifier.fit`; it makes the steps that a `train_step` would.

        Raises:
            ValueError: there is no optimizer and no train_step, or an argument is not as described.
            TypeError: there is an optimizer and no loss_object, or an unknown keyword.
        """
        settings = (batch_size, nb_epochs, training_mode, drop_last, scheduler, verbose)
        super().fit(x, y, *settings, objective=objective, **kwargs)


def _check_types(model: Any, optimizer: Any, train_step: Any) -> None:
    refuse_other_framework("model", model, "tensorflow")
    if not callable(model) or isinstance(model, type):
        raise TypeError(f"model must be a Keras model, a tf.Module or a function, got {model!r}")
    if optimizer is not None and not hasattr(optimizer, "apply_gradients"):
        raise TypeError(f"optimizer must be a Keras optimizer or None, got {type(optimizer).__name__}")
    if train_step is not None and not callable(train_step):
        raise TypeError(f"train_step must be a function of (model, images, labels) or None, got {train_step!r}")
