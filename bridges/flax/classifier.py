"""A class for flax modules with the interface of ART's randomized smoothing, on the functions of jaxsmooth."""

from typing import Any

from bridges.flax.backend import FlaxBackend
from bridges.flax.losses import Loss
from bridges.flax.modules import as_model
from bridges.inputs import as_shape
from bridges.smoothing import as_key, fold_in
from bridges.trainable import TrainableClassifier
from jaxsmooth.checks import check_integer

_MODULE = 6  # stream of the key, beside those of the shared classes


class FlaxRandomizedSmoothing(TrainableClassifier):
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
        from_logits: whether the model returns logits, or probabilities. A loss of log-probabilities is recognised.
        seed, n0, sampling, output, check: see `RandomizedSmoothingMixin` and `SmoothedClassifier`.

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
        from_logits: bool = True,
        seed: Any = None,
        n0: int | None = None,
        sampling: bool = False,
        output: str = "one_hot",
        check: bool = True,
    ) -> None:
        network = as_model(model, variables)
        if optimizer is not None and not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
            raise TypeError(f"optimizer must be an optax transformation or None, got {type(optimizer).__name__}")
        nb_classes, input_shape = check_integer("nb_classes", nb_classes, 2), as_shape(input_shape)
        key, loss = as_key(seed), Loss(loss, nb_classes, from_logits)
        backend = FlaxBackend(network, loss, optimizer, nb_classes, input_shape, fold_in(key, _MODULE))
        super().__init__(
            backend,
            input_shape,
            nb_classes,
            channels_first,
            clip_values,
            preprocessing_defences,
            postprocessing_defences,
            preprocessing,
            sample_size=sample_size,
            scale=scale,
            alpha=alpha,
            seed=key,
            n0=n0,
            sampling=sampling,
            output=output,
            check=check,
        )
        self._flax = backend

    @property
    def variables(self) -> Any:
        """The variables of a linen module, as they are now; None for nnx, whose modules hold their own."""
        return getattr(self._flax.network, "variables", None)

    @property
    def loss(self) -> Any:
        """The loss, as it was given."""
        return self._flax.loss_function.function

    @property
    def from_logits(self) -> bool:
        """Whether the model returns logits."""
        return self._flax.loss_function.from_logits

    @property
    def optimizer(self) -> Any:
        """The optimizer, as it was given."""
        return self._flax.optimizer

    @property
    def optimizer_state(self) -> Any:
        """The optimizer's state; None before the first step."""
        return self._flax.optimizer_state

    def clone_for_refitting(self) -> Any:
        """Return a classifier with the same settings and architecture, fresh weights, and nothing shared."""
        clone = super().clone_for_refitting()
        self._flax.next_key()  # the next clone gets other weights
        return clone

    def _construct(self, settings: dict[str, Any], other: Any) -> None:
        super()._construct(settings, other)
        if self.optimizer is other.optimizer and self.model is other.model:
            self._flax.take_over(other._flax)

    def _step(self, scheduler: Any, epoch: int) -> None:
        scheduler(epoch)
