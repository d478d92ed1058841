"""ART's classes for TensorFlow that train by an objective, over `fit(objective=...)`."""

from collections.abc import Callable
from typing import Any

from bridges.classifier import SmoothedClassifier, arguments
from bridges.objectives import MACER, SMOOTHADV
from bridges.tensorflow.classifier import TensorFlowV2RandomizedSmoothing


class TensorFlowV2MACER(TensorFlowV2RandomizedSmoothing):
    """A network trained by MACER (Zhai et al. 2020, arXiv:2001.02378): `jaxsmooth.losses.macer`.

    Everything but `fit` and `fit_generator` is `TensorFlowV2RandomizedSmoothing`, with its arguments.

    Args:
        beta: inverse temperature.
        gamma: gap of the soft radius, in units of scale / 2, beyond which nothing is gained.
        lmbda: weight of the radius.
        gaussian_samples: noisy copies of each input: a batch has `gaussian_samples * batch_size` rows.
        model and the others: as `TensorFlowV2RandomizedSmoothing`.

    Raises:
        ValueError, TypeError: an argument is not as described; it is named.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(3)])
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> settings = {"loss_object": loss, "optimizer": keras.optimizers.SGD(0.1), "scale": 0.25, "seed": 0}
        >>> classifier = TensorFlowV2MACER(model, 3, (2, 2, 1), **settings)
        >>> classifier.fit(np.full((8, 2, 2, 1), 0.5), np.arange(8) % 3, nb_epochs=1)
        >>> classifier.certify(np.zeros((5, 2, 2, 1)), n=100)[0].shape
        (5,)
    """

    own_objective = MACER
    parameters = (*TensorFlowV2RandomizedSmoothing.parameters, *MACER.names)

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
        model_output: Callable[[Any], Any] | None = None,
    ) -> None:
        SmoothedClassifier.__init__(self, {**arguments(locals())})


class TensorFlowV2SmoothAdv(TensorFlowV2RandomizedSmoothing):
    """A network trained by SmoothAdv (Salman et al. 2019, arXiv:1906.04584): `jaxsmooth.losses.smoothadv`.

    Everything but `fit` and `fit_generator` is `TensorFlowV2RandomizedSmoothing`, with its arguments.

    Args:
        epsilon: L2 radius of the attack, in the units of x.
        num_noise_vec: noisy copies of each input. As in the authors' code, a step takes `batch_size // num_noise_vec`
            inputs, so that a batch has `batch_size` rows.
        num_steps: of the attack, which stays within `clip_values`, [0, 1] if there are none.
        warmup: epochs over which epsilon grows to its value.
        model and the others: as `TensorFlowV2RandomizedSmoothing`.

    Raises:
        ValueError, TypeError: an argument is not as described; it is named.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(3)])
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> settings = {"loss_object": loss, "optimizer": keras.optimizers.SGD(0.1), "scale": 0.25, "seed": 0}
        >>> classifier = TensorFlowV2SmoothAdv(model, 3, (2, 2, 1), **settings)
        >>> classifier.fit(np.full((8, 2, 2, 1), 0.5), np.arange(8) % 3, nb_epochs=1)
        >>> classifier.certify(np.zeros((5, 2, 2, 1)), n=100)[0].shape
        (5,)
    """

    own_objective = SMOOTHADV
    parameters = (*TensorFlowV2RandomizedSmoothing.parameters, *SMOOTHADV.names)

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
        model_output: Callable[[Any], Any] | None = None,
    ) -> None:
        SmoothedClassifier.__init__(self, {**arguments(locals())})
