"""What comes between an image and a network: size, mean and standard deviation, read from what libraries give.

Noise is added to the image that you certify, in its units. What a network wants of its input belongs inside f, after
the noise.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxsmooth import Classifier
from jaxsmooth.arguments import as_flag, as_integer, as_numbers, refuse_uncallable, refuse_unknown

_INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
_RESAMPLING = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # of PIL


class ImageSettings(NamedTuple):
    """How a network wants its images.

    Attributes:
        mean, std: one number for each channel, or one for all, in the units of the scaled image.
        size: height and width; None to leave them.
        interpolation: "nearest", "bilinear" or "bicubic", with antialiasing.
        scale: the image is multiplied by it first: 255 for a network of pixels from 0 to 255.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    size: tuple[int, int] | None = None
    interpolation: str = "bilinear"
    scale: float = 1.0


class ImageOptions(TypedDict, total=False):
    """The keyword arguments of `image_settings`, for those who hand them on."""

    mean: Any
    std: Any
    size: tuple[int, int] | None
    interpolation: str | None
    scale: float


def image_settings(
    config: Any = None,
    *,
    mean: Any = None,
    std: Any = None,
    size: Any = None,
    interpolation: str | None = None,
    scale: float = 1.0,
) -> ImageSettings:
    """Return the settings of a library's configuration, or as they are given; what is given comes first.

    Args:
        config: the mapping that `timm.data.resolve_model_data_config(model)` returns, or an image processor of Hugging
            Face, or None.
        mean, std: a number, or one for each channel.
        size: `(height, width)`.
        interpolation: "nearest", "bilinear" or "bicubic".
        scale: the image is multiplied by it first.

    Raises:
        TypeError: config is neither. ValueError: a value is not as described.

    Example:
        >>> image_settings({"mean": (0.5,), "std": (0.25,), "input_size": (1, 28, 28), "interpolation": "bicubic"})
        ImageSettings(mean=(0.5,), std=(0.25,), size=(28, 28), interpolation='bicubic', scale=1.0)
        >>> image_settings(mean=0.5, std=0.25).std
        (0.25,)
    """
    found = _of_config(config)
    values = {"mean": mean, "std": std, "size": size, "interpolation": interpolation}
    found |= {name: value for name, value in values.items() if value is not None}
    numbers = {
        name: tuple(
            map(float, np.atleast_1d(as_numbers(name, found.get(name, default), "one number for each channel")))
        )
        for name, default in (("mean", 0.0), ("std", 1.0))
    }
    if not all(value > 0 for value in numbers["std"]):
        raise ValueError(f"std must be positive, got {found['std']}")
    way = found.get("interpolation", "bilinear")
    refuse_unknown("interpolation", way, _INTERPOLATIONS)
    height_width = found.get("size")
    if height_width is not None:
        if len(height_width) != 2:
            raise ValueError(f"size must be (height, width), got {height_width}")
        height_width = (as_integer("size", height_width[0], 1), as_integer("size", height_width[1], 1))
    (factor,) = np.atleast_1d(as_numbers("scale", scale, "a number"))
    return ImageSettings(numbers["mean"], numbers["std"], height_width, way, float(factor))


def _of_config(config: Any) -> dict[str, Any]:
    """Return the settings in a configuration, by our names."""
    if config is None:
        return {}
    if isinstance(config, Mapping) and "input_size" in config:  # timm
        names = ("mean", "std", "interpolation")
        found = {name: config[name] for name in names if name in config}
        return {**found, "size": tuple(config["input_size"][-2:])}
    if hasattr(config, "image_mean") and hasattr(config, "image_std"):  # Hugging Face
        return _of_processor(config)
    raise TypeError(
        "config must be a mapping of timm.data.resolve_model_data_config, or an image processor of Hugging Face, got "
        f"{type(config).__name__}"
    )


def _of_processor(processor: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if getattr(processor, "do_normalize", True):
        found = {"mean": processor.image_mean, "std": processor.image_std}
    if getattr(processor, "do_resize", False):
        size: Any = processor.size
        size = {name: size[name] for name in ("height", "width", "shortest_edge") if size.get(name)}
        if "height" in size and "width" in size:
            found["size"] = (size["height"], size["width"])
        elif "shortest_edge" in size:  # of a square image, which others are cropped to
            found["size"] = (size["shortest_edge"],) * 2
        found["interpolation"] = _RESAMPLING.get(int(getattr(processor, "resample", 2) or 2), "bilinear")
    return found


def with_preprocessing(
    f: Classifier,
    config: Any = None,
    *,
    channels_first: bool = False,
    **options: Unpack[ImageOptions],
) -> "PreprocessedFunction":
    """Return a JAX function of images as they are certified, `[B, H, W, C]` or `[B, C, H, W]`.

    The images are scaled, resized and standardised inside f, after the noise: sigma and radii stay in their units.

    Args:
        f: classifier of JAX, what any `as_jax` returns among them.
        config: as for `image_settings`.
        channels_first: whether the channels come first.
        **options: mean, std, size, interpolation, scale, as for `image_settings`.

    Raises:
        ValueError, TypeError: an argument is not as described.

    Example:
        >>> from jaxsmooth import Gaussian, certify
        >>> f = with_preprocessing(lambda x: x.mean((1, 2)), mean=0.5, std=0.25)
        >>> certify(f, Gaussian(0.5), jax.random.key(0), jnp.zeros((2, 4, 4, 3)), n=100).label.shape
        (2,)
    """
    refuse_uncallable(f)
    return PreprocessedFunction(f, image_settings(config, **options), as_flag("channels_first", channels_first))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class PreprocessedFunction:
    """A classifier after what it wants done to its images: a callable pytree of the classifier."""

    f: Any
    settings: ImageSettings = field(metadata={"static": True})
    channels_first: bool = field(metadata={"static": True})

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the scores of images."""
        s = self.settings
        x = x * jnp.asarray(s.scale, x.dtype)
        if s.size is not None:
            shape = (*x.shape[:2], *s.size) if self.channels_first else (len(x), *s.size, x.shape[-1])
            ways = {"nearest": "nearest", "bilinear": "linear", "bicubic": "cubic"}
            x = jax.image.resize(x, shape, ways[s.interpolation])
        mean, std = (channels(value, self.channels_first, jnp.asarray, x.dtype) for value in (s.mean, s.std))
        return self.f((x - mean) / std)


def channels(values: tuple[float, ...], channels_first: bool, as_array: Callable[..., Any], dtype: Any) -> Any:
    """Return one number for each channel in a shape that broadcasts against images."""
    shape = (1, -1, 1, 1) if channels_first else (1, 1, 1, -1)
    return as_array(np.asarray(values, np.float32).reshape(shape), dtype=dtype)
