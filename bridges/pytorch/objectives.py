"""ART's classes for PyTorch that train by an objective, over `fit(objective=...)`."""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

from bridges.classifier import SmoothedClassifier, arguments
from bridges.objectives import MACER, SMOOTHADV, SMOOTHMIX
from bridges.pytorch.classifier import MIXED_PRECISION, PyTorchRandomizedSmoothing


class PyTorchMACER(PyTorchRandomizedSmoothing):
    """A network trained by MACER (Zhai et al. 2020, arXiv:2001.02378): `jaxsmooth.losses.macer`.

    Everything but `fit` and `fit_generator` is `PyTorchRandomizedSmoothing`, with its arguments.

    Args:
        beta: inverse temperature.
        gamma: gap of the soft radius, in units of scale / 2, beyond which nothing is gained.
        lmbda: weight of the radius.
        gaussian_samples: noisy copies of each input: a batch has `gaussian_samples * batch_size` rows.
        model and the others: as `PyTorchRandomizedSmoothing`.

    Raises:
        ValueError, TypeError: an argument is not as described; it is named.

    Example:
        >>> import numpy as np
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> settings = {"optimizer": torch.optim.SGD(model.parameters(), 0.1), "scale": 0.25, "seed": 0}
        >>> classifier = PyTorchMACER(model, nn.CrossEntropyLoss(), (1, 2, 2), 3, **settings)
        >>> classifier.fit(np.full((8, 1, 2, 2), 0.5), np.arange(8) % 3, nb_epochs=1)
        >>> classifier.certify(np.zeros((5, 1, 2, 2)), n=100)[0].shape
        (5,)
    """

    own_objective = MACER
    parameters = (*PyTorchRandomizedSmoothing.parameters, *MACER.names)

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
        beta: float = 16.0,
        gamma: float = 8.0,
        lmbda: float = 12.0,
        gaussian_samples: int = 16,
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
        SmoothedClassifier.__init__(self, {**arguments(locals()), **MIXED_PRECISION})


class PyTorchSmoothAdv(PyTorchRandomizedSmoothing):
    """A network trained by SmoothAdv (Salman et al. 2019, arXiv:1906.04584): `jaxsmooth.losses.smoothadv`.

    Everything but `fit` and `fit_generator` is `PyTorchRandomizedSmoothing`, with its arguments.

    Args:
        epsilon: L2 radius of the attack, in the units of x.
        num_noise_vec: noisy copies of each input. As in the authors' code, a step takes `batch_size // num_noise_vec`
            inputs, so that a batch has `batch_size` rows.
        num_steps: of the attack, which stays within `clip_values`, [0, 1] if there are none.
        warmup: epochs over which epsilon grows to its value.
        model and the others: as `PyTorchRandomizedSmoothing`.

    Raises:
        ValueError, TypeError: an argument is not as described; it is named.

    Example:
        >>> import numpy as np
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> settings = {"optimizer": torch.optim.SGD(model.parameters(), 0.1), "scale": 0.25, "seed": 0}
        >>> classifier = PyTorchSmoothAdv(model, nn.CrossEntropyLoss(), (1, 2, 2), 3, **settings)
        >>> classifier.fit(np.full((8, 1, 2, 2), 0.5), np.arange(8) % 3, nb_epochs=1)
        >>> classifier.certify(np.zeros((5, 1, 2, 2)), n=100)[0].shape
        (5,)
    """

    own_objective = SMOOTHADV
    parameters = (*PyTorchRandomizedSmoothing.parameters, *SMOOTHADV.names)

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
        epsilon: float = 1.0,
        num_noise_vec: int = 1,
        num_steps: int = 10,
        warmup: int = 1,
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
        SmoothedClassifier.__init__(self, {**arguments(locals()), **MIXED_PRECISION})


class PyTorchSmoothMix(PyTorchRandomizedSmoothing):
    """A network trained by SmoothMix (Jeong et al. 2021, arXiv:2111.09277): `jaxsmooth.losses.smoothmix`.

    Everything but `fit` and `fit_generator` is `PyTorchRandomizedSmoothing`, with its arguments.

    Args:
        eta: weight of the mixtures.
        num_noise_vec: noisy copies of each input. As in the authors' code, a step takes `batch_size // num_noise_vec`
            inputs, so that a batch has `batch_size` rows.
        num_steps: of the attack, which stays within `clip_values`, [0, 1] if there are none.
        warmup: epochs over which eta and maxnorm_s grow to their values.
        mix_step: the clean end of a mixture is the point before this step of the attack.
        maxnorm_s: L2 distance that such a point keeps to the input; step_size * mix_step by default.
        maxnorm: L2 distance that the adversarial end keeps to the input; None for any.
        step_size: length of a step of the attack, in the units of x: the authors' alpha. ART takes the failure
            probability `alpha` for it.
        model and the others: as `PyTorchRandomizedSmoothing`.

    Raises:
        ValueError, TypeError: an argument is not as described; it is named.

    Example:
        >>> import numpy as np
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> settings = {"optimizer": torch.optim.SGD(model.parameters(), 0.1), "scale": 0.25, "seed": 0}
        >>> classifier = PyTorchSmoothMix(model, nn.CrossEntropyLoss(), (1, 2, 2), 3, **settings)
        >>> classifier.fit(np.full((8, 1, 2, 2), 0.5), np.arange(8) % 3, nb_epochs=1)
        >>> classifier.certify(np.zeros((5, 1, 2, 2)), n=100)[0].shape
        (5,)
    """

    own_objective = SMOOTHMIX
    parameters = (*PyTorchRandomizedSmoothing.parameters, *SMOOTHMIX.names)

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
        eta: float = 1.0,
        num_noise_vec: int = 1,
        num_steps: int = 10,
        warmup: int = 1,
        mix_step: int = 0,
        maxnorm_s: float | None = None,
        maxnorm: float | None = None,
        *,
        step_size: float = 1.0,
        seed: Any = None,
        n0: int | None = None,
        sampling: bool = False,
        output: str = "one_hot",
        check: bool = True,
        from_logits: bool | None = None,
        acceleration: Collection[str] = (),
        model_output: Callable[[Any], Any] | None = None,
    ) -> None:
        SmoothedClassifier.__init__(self, {**arguments(locals()), **MIXED_PRECISION})
