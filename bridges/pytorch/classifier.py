"""ART's `PyTorchRandomizedSmoothing` on the functions of jaxsmooth."""

from collections.abc import Collection
from typing import Any

import jax
import numpy as np
import torch
from torch import nn

from bridges.pytorch.arguments import as_device, check_types
from bridges.pytorch.backend import TorchBackend
from bridges.pytorch.losses import Loss
from bridges.pytorch.transfer import to_torch
from bridges.trainable import TrainableClassifier
from jaxsmooth.checks import check_integer

_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)  # pyright: ignore[reportPrivateUsage]
_DROPOUTS = (nn.modules.dropout._DropoutNd,)  # pyright: ignore[reportPrivateUsage]


class PyTorchRandomizedSmoothing(TrainableClassifier):
    """A PyTorch network, smoothed (Cohen et al. 2019, arXiv:1902.02918), with the interface of ART's class.

    See `RandomizedSmoothingMixin` for noise, predictions and certificates, and `SmoothedClassifier` for the rest.

    Args:
        model: `nn.Module` from `[N, *input_shape]` to `[N, nb_classes]`, or to `[N, 1]` for two classes under a binary
            loss. It is used as it is, moved to the device.
        loss: PyTorch loss, an object or a function of (outputs, labels). It says how outputs are read: NLLLoss as
            log-probabilities, BCELoss as probabilities, any other as logits.
        input_shape: shape of one input.
        nb_classes: number of classes, at least 2.
        optimizer: of the model's parameters; needed by `fit` alone.
        channels_first: where the channels of an image are.
        clip_values: `(min, max)` of the inputs, for attacks.
        preprocessing_defences, postprocessing_defences: as in ART, by their methods.
        preprocessing: `(mean, std)`, applied after the noise.
        device_type: "gpu" (CUDA where there is one, else the CPU), "cpu", or a PyTorch device such as "cuda:1".
        sample_size, scale, alpha: votes, noise in the units of x, and failure probability.
        seed, n0, sampling, output, check: see `RandomizedSmoothingMixin` and `SmoothedClassifier`.
        acceleration: faster ways to compute the votes of `predict` and `certify`, any of: "channels_last" (memory
            order, gains on deep convolutional networks), "compile" (`torch.compile`, some 20 seconds at first), and
            "bfloat16" (autocast). Certificates stay valid, for the classifier that is run: under "bfloat16" that is
            another one than in float32, and `certified_dtype` says so.

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
    kept = (*TrainableClassifier.kept, "acceleration")

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
        acceleration: Collection[str] = (),
    ) -> None:
        check_types(model, optimizer)
        nb_classes = check_integer("nb_classes", nb_classes, 2)
        device = as_device(device_type)
        backend = TorchBackend(model, Loss(loss, nb_classes), optimizer, nb_classes, device, acceleration)
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
            seed=seed,
            n0=n0,
            sampling=sampling,
            output=output,
            check=check,
        )
        self._torch = backend
        self._device_type = device_type
        self._mixed_precision: dict[str, Any] = {"opt_level": "O1", "loss_scale": "dynamic"}

    @property
    def loss(self) -> Any:
        """The loss, as it was given."""
        return self._torch.loss_function.function

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The optimizer, as it was given."""
        return self._torch.optimizer

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self._torch.device

    @property
    def acceleration(self) -> frozenset[str]:
        """The faster ways in which votes are computed."""
        return self._torch.accelerated.ways

    @property
    def certified_dtype(self) -> str:
        """What the certified classifier computes in: the network's dtype, or "bfloat16 autocast"."""
        return self._torch.accelerated.dtype_name

    @property
    def use_amp(self) -> bool:
        """Whether training runs under `torch.autocast`; set by `set_params`."""
        return self._torch.use_amp

    @property
    def opt_level(self) -> str:
        """Kept for ART's callers; autocast has no such level."""
        return self._mixed_precision["opt_level"]

    @property
    def loss_scale(self) -> Any:
        """Kept for ART's callers; autocast has no such scale."""
        return self._mixed_precision["loss_scale"]

    @property
    def device_type(self) -> str:
        """The device that was asked for."""
        return self._device_type

    def _on_host(self, noisy: jax.Array) -> np.ndarray:
        """Return a view that may be written to, as a network may: nothing reads noisy inputs again."""
        return to_torch(jax.block_until_ready(noisy)).cpu().numpy()

    def _construct(self, settings: dict[str, Any], other: Any) -> None:
        mixed = {name: settings.pop(name) for name in ("opt_level", "loss_scale")}
        use_amp = bool(settings.pop("use_amp"))
        super()._construct(settings, other)
        self._mixed_precision, self._torch.use_amp, self._torch.frozen = mixed, use_amp, other._torch.frozen

    def set_batchnorm(self, train: bool) -> None:
        """Let batch normalisation be in training mode, or not, in the calls that ask for training mode."""
        self._torch.set_training(_BATCH_NORMS, train)

    def set_dropout(self, train: bool) -> None:
        """Let dropout be in training mode, or not, in the calls that ask for training mode."""
        self._torch.set_training(_DROPOUTS, train)

    def set_multihead_attention(self, train: bool) -> None:
        """Let multi-head attention be in training mode, or not, in the calls that ask for training mode."""
        self._torch.set_training((nn.MultiheadAttention,), train)

    def _step(self, scheduler: Any, epoch: int) -> None:
        del epoch
        scheduler.step()
