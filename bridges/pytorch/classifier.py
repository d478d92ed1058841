"""ART's `PyTorchRandomizedSmoothing` on the functions of jaxsmooth."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn

from bridges.classifier import SmoothedClassifier, arguments
from bridges.pytorch.arguments import as_device, check_types
from bridges.pytorch.backend import TorchBackend
from bridges.pytorch.listing import ListingModule
from bridges.pytorch.losses import Loss
from bridges.pytorch.modes import BATCH_NORMS
from jaxsmooth.arguments import as_flag, as_integer, refuse_unknown

_DROPOUTS = (nn.modules.dropout._DropoutNd,)  # pyright: ignore[reportPrivateUsage]
# Not arguments of the constructor; `set_params` takes them.
MIXED_PRECISION = {"use_amp": False, "opt_level": "O1", "loss_scale": "dynamic"}


class PyTorchRandomizedSmoothing(SmoothedClassifier):
    """A PyTorch network, smoothed (Cohen et al. 2019, arXiv:1902.02918), with the interface of ART's class.

    See `RandomizedSmoothingMixin` for noise, predictions and certificates, and `SmoothedClassifier` for the rest.

    Args:
        model: `nn.Module` from `[N, *input_shape]` to `[N, nb_classes]`, or to `[N, 1]` for two classes under a binary
            loss. It is used as it is, moved to the device.
        loss: PyTorch loss, an object or a function of (outputs, labels). It says how outputs are read: NLLLoss as
            log-probabilities, BCELoss as probabilities, CrossEntropyLoss as logits. A function of your own gets class
            indices if it takes them, else rows.
        input_shape: shape of one input.
        nb_classes: number of classes, at least 2.
        optimizer: of the model's parameters; only `fit` needs it.
        channels_first: where the channels of an image are.
        clip_values: `(min, max)` of the inputs, for attacks.
        preprocessing_defences, postprocessing_defences: as in ART, by their methods.
        preprocessing: `(mean, std)`, applied after the noise.
        device_type: "gpu" (CUDA where there is one, else the CPU), "cpu", or a PyTorch device such as "cuda:1".
        sample_size, scale, alpha: votes, noise in the units of x, and failure probability.
        seed, n0, sampling, output, check: see `RandomizedSmoothingMixin` and `SmoothedClassifier`.
        from_logits: whether the model returns logits or probabilities. By default the loss says it, or else what the
            model returns for some inputs: rows that add up to one are probabilities.
        acceleration: faster ways to compute the votes of `predict` and `certify`, any of: "channels_last" (memory
            order, gains on deep convolutional networks), "compile" (`torch.compile`, some 20 seconds at first), and
            "bfloat16" (autocast). Certificates stay valid, for the classifier that is run: under "bfloat16" that is
            another one than in float32, and `certified_dtype` says so.
        model_output: a function from what the model returns to its outputs, where `bridges.outputs.Reading` does not
            find them: it takes a tensor, a mapping with "logits", a tuple or list that begins with the outputs.

    Raises:
        ValueError, TypeError: an argument is not as described; it is named.

    Example:
        >>> import numpy as np
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> classifier = PyTorchRandomizedSmoothing(model, nn.CrossEntropyLoss(), (1, 2, 2), 3, scale=0.5, seed=0)
        >>> label, radius = classifier.certify(np.zeros((5, 1, 2, 2)), n=1000)
        >>> label.shape, radius.dtype
        ((5,), dtype('float64'))
    """

    parameters = (
        *("model", "clip_values", "preprocessing_defences", "postprocessing_defences", "preprocessing"),
        *("channels_first", "device_type", "nb_classes", "loss", "input_shape", "optimizer", "use_amp", "opt_level"),
        *("loss_scale", "sample_size", "scale", "alpha"),
    )
    kept = (*SmoothedClassifier.kept, "from_logits", "acceleration", "model_output")
    of_backend = (
        "model",
        "loss",
        "from_logits",
        "optimizer",
        "nb_classes",
        "device_type",
        "acceleration",
        "model_output",
    )

    def __init__(
        self,
        model: nn.Module,
        loss: Any,
        input_shape: tuple[int, ...],
        nb_classes: int,
        optimizer: torch.optim.Optimizer | None = None,
        channels_first: bool = True,
        clip_values: Any = None,
        preprocessing_defences: Any = None,
        postprocessing_defences: Any = None,
        preprocessing: Any = (0.0, 1.0),
        device_type: str = "gpu",
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
        acceleration: Collection[str] = (),
        model_output: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__({**arguments(locals()), **MIXED_PRECISION})

    def _make_backend(self, settings: Mapping[str, Any], old: Any) -> TorchBackend:
        model = settings["model"]
        optimizer = settings["optimizer"]
        check_types(model, optimizer)
        classes = as_integer("nb_classes", settings["nb_classes"], 2)
        device = as_device(settings["device_type"])
        loss = Loss(settings["loss"], classes, settings["from_logits"])
        backend = TorchBackend(
            model, loss, optimizer, classes, device, settings["acceleration"], settings["model_output"]
        )
        if old is not None:
            backend.frozen = old.frozen
        return backend

    def _take(self, settings: Mapping[str, Any]) -> None:
        use_amp = as_flag("use_amp", settings["use_amp"])
        refuse_unknown("opt_level", settings["opt_level"], ("O0", "O1", "O2", "O3"))
        super()._take(settings)
        self._device_type = settings["device_type"]
        self._opt_level = settings["opt_level"]
        self._loss_scale = settings["loss_scale"]
        self._backend.use_amp = use_amp

    @property
    def _model_for_art(self) -> Any:
        """The network as ART's tools call it: it returns a list."""
        return ListingModule(self.model, self._backend.reading)

    def _predict_framework(self, x: Any, y: Any = None, training_mode: bool = False) -> Any:
        """Return the outputs of the network for a tensor, with the graph, and the labels, as ART's tools expect."""
        return super()._predict_framework(x, y, training_mode), y

    @property
    def loss(self) -> Any:
        """The loss, as it was given."""
        return self._backend.loss_function.function

    @property
    def from_logits(self) -> bool | None:
        """Whether the model returns logits, as it was given."""
        return self._backend.loss_function.from_logits

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self._backend.device

    @property
    def device_type(self) -> str:
        """The device that was asked for."""
        return self._device_type

    @property
    def opt_level(self) -> str:
        """Kept for ART's callers; autocast has no such level."""
        return self._opt_level

    @property
    def loss_scale(self) -> Any:
        """Kept for ART's callers; autocast has no such scale."""
        return self._loss_scale

    @property
    def acceleration(self) -> frozenset[str]:
        """The faster ways in which votes are computed."""
        return self._backend.accelerated.ways

    @property
    def certified_dtype(self) -> str:
        """What the certified classifier computes in: the network's dtype, or "bfloat16 autocast"."""
        return self._backend.accelerated.dtype_name

    @property
    def use_amp(self) -> bool:
        """Whether training runs under `torch.autocast`; set by `set_params`."""
        return self._backend.use_amp

    def set_batchnorm(self, train: bool) -> None:
        """Let batch normalisation be in training mode, or not, in the calls that ask for training mode."""
        self._backend.set_training(BATCH_NORMS, train)

    def set_dropout(self, train: bool) -> None:
        """Let dropout be in training mode, or not, in the calls that ask for training mode."""
        self._backend.set_training(_DROPOUTS, train)

    def set_multihead_attention(self, train: bool) -> None:
        """Let multi-head attention be in training mode, or not, in the calls that ask for training mode."""
        self._backend.set_training((nn.MultiheadAttention,), train)
