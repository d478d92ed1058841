"""A Keras network behind a denoiser."""

import inspect
from collections.abc import Callable
from typing import Any

import keras

from jaxsmooth.arguments import in_brief
from jaxsmooth.denoising import PIXELS, DiffusionStep, as_step, like_x
from jaxsmooth.types import Noise


@keras.saving.register_keras_serializable("jaxsmooth")
class Denoised(keras.Model):
    """A network that denoises its input and then classifies it: `model(denoiser(x))`.

    It is for `as_jax` and for the class: noise is added to the x that this model gets, before the denoiser, so sigma
    and radii are in the units of that x, and the certificate is that of the two together (Salman et al. 2020,
    arXiv:2003.01908; Carlini et al. 2022, arXiv:2206.10550). What the network wants done to clean images belongs inside
    `model` (`WithPreprocessing`), and not into the `preprocessing` of the class, which comes before the denoiser.

    `fit` of the class trains both parts; `denoiser.trainable = False` keeps the denoiser as it is.

    Args:
        model: the network, of clean images.
        denoiser: without a schedule, a model or function from noisy images to clean ones of the same shape and units.
            With one, a diffusion model whose images are in [-1, 1]: a function or model of (image, t), or a Keras model
            that takes the list [image, t], t being `i32[B]`. Keras copies and saves only functions that are registered
            with it (`keras.saving.register_keras_serializable`).
        noise: with a schedule, the noise under which it will be certified; `step` says which step it leads to.
        schedule, prediction, clip_values: of the diffusion model: see `jaxsmooth.diffusion_step`.

    Attributes:
        step: the `jaxsmooth.DiffusionStep`, or None.

    Raises:
        ValueError, TypeError: an argument is not as described. At a call, the denoiser returns another shape.

    Example:
        >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
        >>> network = Denoised(model, keras.layers.AveragePooling2D(3, 1, padding="same"))
        >>> network(keras.ops.zeros((2, 8, 8, 1))).shape
        TensorShape([2, 10])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        denoiser: Callable[..., Any],
        noise: Noise | None = None,
        *,
        schedule: Any = None,
        prediction: str | None = None,
        clip_values: tuple[float, float] = PIXELS,
    ) -> None:
        super().__init__()
        for name, part in (("model", model), ("denoiser", denoiser)):
            if isinstance(part, type) or not callable(part):
                raise TypeError(f"{name} must be a model or a function of tensors, got {in_brief(part)}")
        self.step = as_step(noise, schedule, prediction, clip_values)
        self.model = model
        self.denoiser = denoiser

    def denoise(self, x: Any) -> Any:
        """Return clean images from noisy ones."""
        x = keras.ops.convert_to_tensor(x)
        if self.step is None:
            return like_x(self.denoiser(x), x)
        image = self.step.noisy_image(x)
        rows: Any = keras.ops.shape(x)
        t = keras.ops.full((rows[0],), self.step.t, dtype="int32")
        output = self.denoiser([image, t]) if _takes_list(self.denoiser) else self.denoiser(image, t)
        return self.step.as_x(keras.ops.clip(self.step.clean_image(image, output), -1, 1))

    def call(self, x: Any) -> Any:
        """Return what the network returns for denoised images."""
        # Both parts are in training mode where this model is: Keras hands the mode on.
        return self.model(self.denoise(x))

    def get_config(self) -> dict[str, Any]:
        """Return what Keras copies and saves the model by."""
        serialize = keras.saving.serialize_keras_object
        step = None if self.step is None else list(self.step)
        return {"model": serialize(self.model), "denoiser": serialize(self.denoiser), "step": step}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "Denoised":
        """Return the model of a configuration."""
        deserialize = keras.saving.deserialize_keras_object
        parts = [deserialize(config[name], custom_objects=custom_objects) for name in ("model", "denoiser")]
        made = cls(*parts)
        made.step = None if config["step"] is None else DiffusionStep(*config["step"])
        return made


def _takes_list(denoiser: Any) -> bool:
    """Return whether a diffusion model takes its two inputs as a list: one of Keras's functions, or a `call` of one."""
    if not isinstance(denoiser, keras.Model):
        return False
    if len(getattr(denoiser, "inputs", None) or ()) == 2:
        return True
    named = inspect.signature(denoiser.call).parameters.values()
    own = [one for one in named if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    return len([one for one in own if one.name not in ("training", "mask")]) == 1
