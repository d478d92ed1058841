"""A class for flax modules with the interface of ART's randomized smoothing, on the functions of jaxsmooth."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

import jaxsmooth
from bridges.batches import few_sizes, fill_rows
from bridges.classifier import SmoothedClassifier, arguments
from bridges.flax.backend import FlaxBackend
from bridges.flax.gradients import SmoothedFunction
from bridges.flax.losses import Loss
from bridges.flax.modules import as_model
from bridges.inputs import as_shape, input_ids, refuse_prediction_keywords
from bridges.losses import PROBABILITIES
from bridges.outputs import Reading
from bridges.smoothing import Voter
from jaxsmooth import Stream
from jaxsmooth.arguments import as_integer


class FlaxRandomizedSmoothing(SmoothedClassifier):
    """A flax module, smoothed (Cohen et al. 2019, arXiv:1902.02918), with the interface of ART's PyTorch class.

    See `RandomizedSmoothingMixin` for noise, predictions and certificates, and `SmoothedClassifier` for the rest.
    Predictions and certificates run the module in evaluation mode, as `bridges.flax.as_jax` does.

    Args:
        model: `flax.linen` or `flax.nnx` module from `[N, *input_shape]` to `[N, nb_classes]`, or to `[N, 1]` for two
            classes under a binary cross-entropy. `fit`, `load` and `reset` change an nnx module in place; a linen
            module's new variables are in the attribute `variables`.
        loss: function of (outputs, labels), of optax or of yours. optax's functions of integer labels get class
            indices, another function gets rows `f32[N, nb_classes]`, one-hot or as given.
        input_shape: shape of one input.
        nb_classes: number of classes, at least 2.
        optimizer: optax transformation, needed by `fit`.
        channels_first: where the channels of an image are.
        clip_values: `(min, max)` of the inputs, for attacks.
        preprocessing_defences, postprocessing_defences: as in ART, by their methods.
        preprocessing: `(mean, std)`, applied after the noise.
        sample_size, scale, alpha: votes, noise in the units of x, and failure probability.
        variables: of a linen module, as its `init` returns them; None for nnx.
        from_logits: whether the model returns logits or probabilities. By default the loss says it, or else what the
            model returns for some inputs: rows that add up to one are probabilities.
        seed, n0, sampling, output, check: see `RandomizedSmoothingMixin` and `SmoothedClassifier`.
        model_output: a function from what the model returns to its outputs, where `bridges.outputs.Reading` does not
            find them: it takes an array, a mapping with "logits", a tuple or list that begins with the outputs.

    Raises:
        ValueError, TypeError: an argument is not as described; it is named.

    Example:
        >>> import numpy as np
        >>> import optax
        >>> from flax import nnx
        >>> loss = optax.softmax_cross_entropy_with_integer_labels
        >>> model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
        >>> classifier = FlaxRandomizedSmoothing(model, loss, (4,), 3, optax.adam(0.01), scale=0.5, seed=0)
        >>> classifier.fit(np.eye(4), [0, 1, 2, 0], nb_epochs=1)
        >>> label, radius = classifier.certify(np.zeros((5, 4)), n=1000)
        >>> label.shape, radius.dtype
        ((5,), dtype('float64'))
    """

    parameters = (
        *("model", "variables", "clip_values", "preprocessing_defences", "postprocessing_defences", "preprocessing"),
        *("channels_first", "nb_classes", "input_shape", "loss", "from_logits", "optimizer", "sample_size"),
        *("scale", "alpha"),
    )

    kept = (*SmoothedClassifier.kept, "model_output")
    of_backend = ("model", "variables", "loss", "from_logits", "optimizer", "nb_classes", "input_shape", "model_output")

    def __init__(
        self,
        model: Any,
        loss: Any,
        input_shape: tuple[int, ...],
        nb_classes: int,
        optimizer: Any = None,
        channels_first: bool = False,
        clip_values: Any = None,
        preprocessing_defences: Any = None,
        postprocessing_defences: Any = None,
        preprocessing: Any = (0.0, 1.0),
        sample_size: int = 32,
        scale: float = 0.1,
        alpha: float = 0.001,
        *,
        variables: Any = None,
        from_logits: bool | None = None,
        seed: Any = None,
        n0: int | None = None,
        sampling: bool = False,
        output: str = "one_hot",
        check: bool = True,
        model_output: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(arguments(locals()))

    def _make_backend(self, settings: Mapping[str, Any], old: Any) -> FlaxBackend:
        model = settings["model"]
        optimizer = settings["optimizer"]
        if optimizer is not None and not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
            raise TypeError(f"optimizer must be an optax transformation or None, got {type(optimizer).__name__}")
        classes = as_integer("nb_classes", settings["nb_classes"], 2)
        shape = as_shape(settings["input_shape"])
        network = as_model(model, settings["variables"], Reading(settings["model_output"], classes, "model_output"))
        loss = Loss(settings["loss"], classes, settings["from_logits"])
        key = jaxsmooth.stream_key(settings["seed"] if old is None else self.key, Stream.MODULE)
        backend = FlaxBackend(network, loss, optimizer, classes, shape, key)
        if old is not None and old.model is model and old.optimizer is optimizer:
            backend.take_over(old)
        return backend

    @property
    def variables(self) -> Any:
        """The variables of a linen module, as they are now; None for nnx, whose modules hold their own."""
        return getattr(self._backend.network, "variables", None)

    @property
    def loss(self) -> Any:
        """The loss, as it was given."""
        return self._backend.loss_function.function

    @property
    def from_logits(self) -> bool | None:
        """Whether the model returns logits, as it was given."""
        return self._backend.loss_function.from_logits

    @property
    def optimizer_state(self) -> Any:
        """The optimizer's state; None before the first step."""
        return self._backend.optimizer_state

    def clone_for_refitting(self) -> Any:
        """Return a classifier with the same settings and architecture, fresh weights, and nothing shared."""
        clone = super().clone_for_refitting()
        self._backend.next_key()  # the next clone gets other weights
        return clone

    def _voter(self, x: np.ndarray, n: int, batch_size: Any, *, even: bool, verbose: bool, **kwargs: Any) -> Voter:
        """Return a JAX function that compiled code runs, unless a defence or a progress bar needs the host."""
        voter = super()._voter(x, n, batch_size, even=even, verbose=verbose, **kwargs)
        steps = self._preprocessing
        training_mode = kwargs.pop("training_mode", False)
        refuse_prediction_keywords(kwargs)
        if verbose or training_mode or not steps.is_affine or steps.postprocessors:
            return voter
        return Voter(self._backend.as_voter(steps.at_predict, x), voter.plan, compiled=True)

    def _certify_by(self, voter: Voter, x: np.ndarray, n0: int, n: int, verbose: bool) -> jaxsmooth.Certificate:
        """Return the certificate of each input, and of padding after them."""
        if not voter.compiled:
            return super()._certify_by(voter, x, n0, n, verbose)
        filled, ids = _filled(x)
        certify = functools.partial(jaxsmooth.certify, n0=n0, n=n, alpha=self.alpha, batch_size=voter.plan.rows)
        result = certify(voter.f, jaxsmooth.Gaussian(self.scale), self._key, filled, ids=ids)
        # With NumPy, because JAX would compile a program for each number of inputs.
        label, radius = (np.asarray(values)[: len(x)] for values in (result.label, result.radius))
        return replace(result, label=label, radius=radius)

    def _count_votes(self, voter: Voter, x: np.ndarray, n: int, first: int, verbose: bool) -> np.ndarray:
        """Return the votes of samples first to first + n - 1 of each input."""
        if not voter.compiled:
            return super()._count_votes(voter, x, n, first, verbose)
        filled, ids = _filled(x)
        counts = jaxsmooth.count_votes(
            voter.f,
            jaxsmooth.Gaussian(self.scale),
            self._streams[Stream.PREDICTION],
            filled,
            n=n,
            batch_size=voter.plan.rows,
            ids=ids,
            first=first,
        )
        return np.asarray(counts)[: len(x)]

    def _smoothed_loss_gradient(self, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
        smoothed = self._smoothed(x)
        if smoothed is None:
            return super()._smoothed_loss_gradient(x, labels)
        return smoothed.gradients(x, [labels], of_loss=True)[0] / np.float32(len(x))

    def _smoothed_class_gradients(self, x: np.ndarray, wanted: list[np.ndarray]) -> list[np.ndarray]:
        smoothed = self._smoothed(x)
        if smoothed is None:
            return super()._smoothed_class_gradients(x, wanted)
        return smoothed.gradients(x, wanted, of_loss=False)

    def _smoothed(self, x: np.ndarray) -> SmoothedFunction | None:
        """Return the smoothed classifier of inputs like x, or None where compiled code cannot run it."""
        noise, n, rows = self._plan_copies(x)  # reads what the outputs are
        if not self._preprocessing.is_affine or self._backend.loss_function.output == PROBABILITIES:
            return None
        f = self._backend.as_voter(self._preprocessing.steps, x)
        key = self._streams[Stream.GRADIENTS]
        return SmoothedFunction(f, noise, key, n, rows)


def _filled(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and their ids with zeros after them.

    Attacks call with ever-changing N; padding N to 2^k or 3 * 2^k keeps the number of compiled programs small.
    """
    inputs = few_sizes(len(x))
    return fill_rows(x, inputs), fill_rows(input_ids(x), inputs)
