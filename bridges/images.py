"""What comes between an image and a network: size, mean and standard deviation, read from what libraries give.

Noise is added to the image that you certify, in its units. What a network wants of its input belongs inside f, after
the noise.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxsmooth import Classifier, RandomClassifier
from jaxsmooth.arguments import as_flag, as_integer, as_numbers, in_brief, refuse_uncallable, refuse_unknown

_INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
_RESAMPLING = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # of PIL
_NOT_HERE = (
    *("do_flip_channel_order", "do_pad", "do_thumbnail", "do_align_long_axis", "do_crop_margin", "include_top"),
    "rescale_offset",
)
_EDGES = ("height", "width", "shortest_edge", "longest_edge", "max_height", "max_width", "min_pixels", "max_pixels")
_OF_THEIR_OWN = ("Levit", "PoolFormer")  # they resize in ways that their settings do not tell


class ImageSettings(NamedTuple):
    """How a network wants its images.

    Attributes:
        mean, std: one number for each channel, or one for all, in the units of the scaled image.
        size: height and width; one number for the shorter side, the other in proportion; None to leave them.
        interpolation: "nearest", "bilinear" or "bicubic", with antialiasing.
        scale: the image is multiplied by it first: 255 for a network of pixels from 0 to 255.
        crop: height and width of the middle that is cut out after the resizing; None for all of it.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    size: tuple[int, int] | int | None = None
    interpolation: str = "bilinear"
    scale: float = 1.0
    crop: tuple[int, int] | None = None

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width after the resizing."""
        if isinstance(self.size, int):
            shorter = min(height, width)
            return self.size * height // shorter, self.size * width // shorter
        return (height, width) if self.size is None else self.size

    def window(self, height: int, width: int) -> tuple[slice, slice]:
        """Return which rows and columns the crop keeps.

        Raises:
            ValueError: the image is smaller than the crop.
        """
        if self.crop is None:
            return slice(None), slice(None)
        if height < self.crop[0] or width < self.crop[1]:
            raise ValueError(f"crop must be at most as large as the image, got {self.crop} for {(height, width)}")
        top, left = (round((whole - part) / 2) for whole, part in zip((height, width), self.crop, strict=True))
        return slice(top, top + self.crop[0]), slice(left, left + self.crop[1])

    def refuse_shape(self, shape: tuple[int, ...], channels_first: bool) -> None:
        """Refuse images whose channels are not those of mean and standard deviation, or are at another place."""
        expected = "[B, C, H, W]" if channels_first else "[B, H, W, C]"
        if len(shape) != 4:
            raise ValueError(f"images must have shape {expected}, got {shape}")
        own, other = (shape[1], shape[-1]) if channels_first else (shape[-1], shape[1])
        wanted = {len(values) for values in (self.mean, self.std)} - {1}
        if wanted - {own} or (own > 4 >= other):
            raise ValueError(
                f"images must have shape {expected} with {max(wanted, default='the')} channels of mean and std, got "
                f"{shape}"
            )


class ImageOptions(TypedDict, total=False):
    """The keyword arguments of `image_settings`, for those who hand them on."""

    mean: Any
    std: Any
    size: tuple[int, int] | int | None
    interpolation: str | None
    scale: float | None
    crop: tuple[int, int] | None


def image_settings(
    config: Any = None,
    *,
    mean: Any = None,
    std: Any = None,
    size: Any = None,
    interpolation: str | None = None,
    scale: float | None = None,
    crop: Any = None,
) -> ImageSettings:
    """Return the settings of a library's configuration, or as they are given; what is given comes first.

    Images have values in [0, 1] for the settings of a configuration.

    Args:
        config: the mapping that `timm.data.resolve_model_data_config(model)` returns, or an image processor of Hugging
            Face, or None.
        mean, std: a number, or one for each channel.
        size: `(height, width)`, or an integer for the shorter side.
        interpolation: "nearest", "bilinear" or "bicubic".
        scale: what the image is multiplied by first.
        crop: `(height, width)` of the middle that is cut out after the resizing.

    Raises:
        TypeError: config is neither. ValueError: a value is not as described, or config does something to images that
            is not known here: the message names it.

    Example:
        >>> image_settings({"mean": (0.5,), "std": (0.25,), "input_size": (1, 28, 28), "crop_pct": 0.875})
        ImageSettings(mean=(0.5,), std=(0.25,), size=32, interpolation='bilinear', scale=1.0, crop=(28, 28))
        >>> image_settings(mean=0.5, std=0.25).std
        (0.25,)
    """
    found = _of_config(config)
    values = {"mean": mean, "std": std, "size": size, "interpolation": interpolation, "scale": scale, "crop": crop}
    found |= {name: value for name, value in values.items() if value is not None}
    way = found.get("interpolation", "bilinear")
    refuse_unknown("interpolation", way, _INTERPOLATIONS)
    edge = found.get("size")
    if edge is not None:
        edge = _height_and_width("size", edge) if np.ndim(edge) else as_integer("size", edge, 1)
    window = found.get("crop")
    (factor,) = _numbers("scale", found.get("scale", 1.0))
    if not factor > 0:
        raise ValueError(f"scale must be positive, got {factor}")
    spread = _numbers("std", found.get("std", 1.0))
    if not all(value > 0 for value in spread):
        raise ValueError(f"std must be positive, got {found['std']}")
    window = None if window is None else _height_and_width("crop", window)
    return ImageSettings(_numbers("mean", found.get("mean", 0.0)), spread, edge, way, factor, window)


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    """Return finite numbers: one, or one for each channel."""
    expected = "one number" if name == "scale" else "one number, or one for each channel"
    numbers = np.atleast_1d(as_numbers(name, value, expected))
    if numbers.ndim != 1 or numbers.size == 0 or (name == "scale" and numbers.size != 1):
        raise ValueError(f"{name} must be {expected}, got {value!r}")
    if not np.isfinite(numbers).all():
        raise ValueError(f"{name} must be finite, got {value!r}")
    return tuple(map(float, numbers))


def _height_and_width(name: str, value: Any) -> tuple[int, int]:
    if np.ndim(value) != 1 or len(value) != 2:
        raise ValueError(f"{name} must be (height, width), got {value!r}")
    return as_integer(name, value[0], 1), as_integer(name, value[1], 1)


def _of_config(config: Any) -> dict[str, Any]:
    """Return the settings in a configuration, by our names."""
    if config is None:
        return {}
    if isinstance(config, Mapping) and "input_size" in config:
        return _of_timm(config)
    if hasattr(config, "image_mean") and hasattr(config, "image_std") and not isinstance(config, type):
        return _of_processor(config)
    raise TypeError(
        "config must be a mapping of timm.data.resolve_model_data_config, or an image processor of Hugging Face, got "
        f"{in_brief(config)}"
    )


def _of_timm(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what timm's transform for evaluation does: resize to more than the input, and cut out the middle."""
    found = {name: config[name] for name in ("mean", "std", "interpolation") if name in config}
    input_size = tuple(config["input_size"])
    if len(input_size) != 3 or input_size[0] > min(input_size[1:]):
        raise ValueError(f"input_size of config must be (channels, height, width), got {input_size}")
    mode = config.get("crop_mode") or "center"
    refuse_unknown("crop_mode of config", mode, ("center", "squash"))
    height, width = input_size[1:]
    share = config.get("crop_pct")
    if share is None:
        return {**found, "size": (height, width)}
    if mode == "center" and height != width:
        raise ValueError(f"input_size of config must be a square for crop_mode 'center', got {input_size}")
    edges = math.floor(height / share), math.floor(width / share)
    return {**found, "size": edges if mode == "squash" else edges[0], "crop": (height, width)}


def _refuse_other_steps(processor: Any) -> None:
    """Refuse an image processor that does what is not known here."""
    kind = type(processor).__name__
    unknown = [name for name in _NOT_HERE if getattr(processor, name, None)]
    if kind.startswith(_OF_THEIR_OWN):
        unknown.append("its own resizing")
    if unknown:
        raise ValueError(
            f"config must do nothing but resize, crop, rescale and normalise, and {kind} has "
            f"{' and '.join(unknown)}: give mean, std, size, crop and scale instead"
        )


def _of_processor(processor: Any) -> dict[str, Any]:
    """Return what an image processor does, for images in [0, 1]."""
    kind = type(processor).__name__
    _refuse_other_steps(processor)
    found: dict[str, Any] = {"scale": 255.0}  # a processor takes pixels from 0 to 255
    if getattr(processor, "do_rescale", True):
        found["scale"] *= float(getattr(processor, "rescale_factor", 1 / 255))
    if getattr(processor, "do_normalize", True):
        found |= {"mean": processor.image_mean, "std": processor.image_std}
    if getattr(processor, "do_center_crop", False):
        found["crop"] = _edges("crop_size", processor.crop_size)
    if not getattr(processor, "do_resize", False):
        return found
    resample = getattr(processor, "resample", None)
    resample = 2 if resample is None else int(resample)
    if resample not in _RESAMPLING:
        raise ValueError(f"resample of {kind} must be one of PIL's {sorted(_RESAMPLING)}, got {resample}")
    found["interpolation"] = _RESAMPLING[resample]
    found["size"] = _edges("size", processor.size, is_size=True)
    share = getattr(processor, "crop_pct", None)
    if share is not None and kind.startswith("ConvNext"):
        edge = found["size"]
        if edge < 384:
            return {**found, "size": int(edge / share), "crop": (edge, edge)}
        return {**found, "size": (edge, edge)}
    if share is not None:
        raise ValueError(f"config must not crop by crop_pct, as {kind} does: give mean, std, size and crop instead")
    return found


def _edges(name: str, value: Any, *, is_size: bool = False) -> Any:
    """Return height and width, or the shorter side, from what a processor has for them."""
    if isinstance(value, (int, tuple, list)):
        return value if is_size or np.ndim(value) else (value, value)
    get = value.get if isinstance(value, Mapping) else functools.partial(getattr, value)
    entries = {edge: get(edge, None) for edge in _EDGES if get(edge, None)}
    if set(entries) == {"height", "width"}:
        return entries["height"], entries["width"]
    if set(entries) == {"shortest_edge"}:
        edge = entries["shortest_edge"]
        return edge if is_size else (edge, edge)
    raise ValueError(f"{name} of config must be height and width, or shortest_edge, got {entries}")


def with_preprocessing(
    f: Classifier,
    config: Any = None,
    *,
    channels_first: bool = False,
    **options: Unpack[ImageOptions],
) -> Classifier:
    """Return a JAX function of images as they are certified, `[B, H, W, C]` or `[B, C, H, W]`.

    The images are scaled, resized and standardised inside f, after the noise: sigma and radii stay in their units.

    Args:
        f: classifier of JAX, what any `as_jax` returns among them.
        config: as for `image_settings`.
        channels_first: whether the channels come first.
        **options: mean, std, size, interpolation, scale, crop, as for `image_settings`.

    Raises:
        ValueError, TypeError: an argument is not as described.

    Example:
        >>> from jaxsmooth import Gaussian, certify
        >>> f = with_preprocessing(lambda x: x.mean((1, 2)), mean=0.5, std=0.25)
        >>> certify(f, Gaussian(0.5), jax.random.key(0), jnp.zeros((2, 4, 4, 3)), n=100).label.shape
        (2,)
    """
    refuse_uncallable(f)
    whole = PreprocessedFunction(f, image_settings(config, **options), as_flag("channels_first", channels_first))
    return RandomClassifier(whole, of_batch=f.of_batch) if isinstance(f, RandomClassifier) else whole


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class PreprocessedFunction:
    """A classifier after what it wants done to its images: a callable pytree of the classifier."""

    f: Any
    settings: ImageSettings = field(metadata={"static": True})
    channels_first: bool = field(metadata={"static": True})

    def __call__(self, x: jax.Array, *keys: jax.Array) -> jax.Array:
        """Return the scores of images; a random classifier has keys, too."""
        s = self.settings
        s.refuse_shape(x.shape, self.channels_first)
        x = x * jnp.asarray(s.scale, x.dtype)
        height, width = s.resized(*(x.shape[2:] if self.channels_first else x.shape[1:3]))
        if s.size is not None:
            shape = (*x.shape[:2], height, width) if self.channels_first else (len(x), height, width, x.shape[-1])
            ways = {"nearest": "nearest", "bilinear": "linear", "bicubic": "cubic"}
            x = jax.image.resize(x, shape, ways[s.interpolation])
        rows, columns = s.window(height, width)
        x = x[:, :, rows, columns] if self.channels_first else x[:, rows, columns]
        mean, std = (channels(value, self.channels_first, jnp.asarray, x.dtype) for value in (s.mean, s.std))
        return self.f((x - mean) / std, *keys)


def channels(values: tuple[float, ...], channels_first: bool, as_array: Callable[..., Any], dtype: Any) -> Any:
    """Return one number for each channel in a shape that broadcasts against images."""
    shape = (1, -1, 1, 1) if channels_first else (1, 1, 1, -1)
    return as_array(np.asarray(values, np.float32).reshape(shape), dtype=dtype)
