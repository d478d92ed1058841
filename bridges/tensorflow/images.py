"""A Keras network with what it wants done to its images inside."""

from collections.abc import Callable
from typing import Any, Unpack

import keras

from bridges.images import ImageOptions, channels, image_settings


@keras.saving.register_keras_serializable("jaxsmooth")
@keras.saving.register_keras_serializable("jaxsmooth")
class WithPreprocessing(keras.Model):
    """A network of images as they are certified, `[B, H, W, C]`: scaled, resized and standardised inside.

    Noise is added to the image that this model gets, so sigma and radii are in the units of that image.

    Args:
        model: the network.
        config: an image processor of Hugging Face, a data configuration of timm, or None.
        function: applied after the size, such as `keras.applications.resnet.preprocess_input`, which takes pixels from
            0 to 255: give `scale=255` for images in [0, 1]. Keras copies and saves only functions that are registered
            with it (`keras.saving.register_keras_serializable`).
        **options: mean, std, size, interpolation, scale, crop, as for `bridges.images.image_settings`.

    Raises:
        ValueError, TypeError: as `bridges.images.image_settings`.

    Example:
        >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
        >>> network = WithPreprocessing(model, size=(8, 8), mean=0.5, std=0.25)
        >>> network(keras.ops.zeros((2, 32, 32, 3))).shape
        TensorShape([2, 10])
    """

    def __init__(
        self,
        model: Any,
        config: Any = None,
        *,
        function: Callable[[Any], Any] | None = None,
        **options: Unpack[ImageOptions],
    ) -> None:
        super().__init__()
        if function is not None and not callable(function):
            raise TypeError(f"function must be a function of images or None, got {function!r}")
        self.model = model
        self.function = function
        self.settings = image_settings(config, **options)

    def call(self, x: Any, training: Any = None) -> Any:
        """Return what the network returns for images."""
        settings = self.settings
        settings.refuse_shape(tuple(x.shape), False)
        x = x * settings.scale
        size = settings.resized(*x.shape[1:3])
        if tuple(x.shape[1:3]) != size:
            smooth = settings.interpolation != "nearest"
            way: Any = {"interpolation": settings.interpolation, "data_format": "channels_last"}
            x = keras.ops.image.resize(x, size, antialias=smooth, **way)
        rows, columns = settings.window(*size)
        x = x[:, rows, columns]
        if self.function is not None:
            x = self.function(x)
        mean, std = (
            channels(value, False, keras.ops.convert_to_tensor, x.dtype) for value in (settings.mean, settings.std)
        )
        return self.model((x - mean) / std, training=training)

    def get_config(self) -> dict[str, Any]:
        """Return what Keras copies and saves the model by."""
        serialize = keras.saving.serialize_keras_object
        function = None if self.function is None else serialize(self.function)
        return {"model": serialize(self.model), "function": function, **self.settings._asdict()}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "WithPreprocessing":
        """Return the model of a configuration."""
        deserialize = keras.saving.deserialize_keras_object
        parts: dict[str, Any] = {
            name: None if config[name] is None else deserialize(config[name], custom_objects=custom_objects)
            for name in ("model", "function")
        }
        return cls(**{**config, **parts})
