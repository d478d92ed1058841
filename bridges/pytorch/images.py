"""A PyTorch network with what it wants done to its images inside."""

from typing import Any, Unpack

import torch
from torch import nn

from bridges.images import ImageOptions, image_settings


class WithPreprocessing(nn.Module):
    """A network of images as they are certified, `[B, C, H, W]`: scaled, resized and standardised inside.

    Noise is added to the image that this module gets, so sigma and radii are in the units of that image.

    Args:
        model: the network.
        config: what `timm.data.resolve_model_data_config(model)` returns, an image processor of Hugging Face, or None.
        **options: mean, std, size, interpolation, scale, crop, as for `bridges.images.image_settings`.

    Raises:
        ValueError, TypeError: as `bridges.images.image_settings`.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))
        >>> network = WithPreprocessing(model, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), size=(8, 8))
        >>> network(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model: nn.Module, config: Any = None, **options: Unpack[ImageOptions]) -> None:
        super().__init__()
        self.model = model
        self.settings = image_settings(config, **options)
        for name in ("mean", "std"):
            self.register_buffer(
                name, torch.tensor(getattr(self.settings, name)).reshape(1, -1, 1, 1), persistent=False
            )

    def forward(self, x: torch.Tensor) -> Any:
        """Return what the network returns for images."""
        settings = self.settings
        settings.refuse_shape(tuple(x.shape), True)
        dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), x.dtype)
        # In float32: half precision has not every way of resizing.
        x = x.float() * settings.scale
        size = settings.resized(*x.shape[-2:])
        if tuple(x.shape[-2:]) != size:
            way = settings.interpolation
            # PIL, JAX and Keras take the pixel nearest to the middle, which PyTorch calls exact.
            smooth: Any = {"mode": "nearest-exact"} if way == "nearest" else {"mode": way, "antialias": True}
            x = nn.functional.interpolate(x, size, **smooth)
        rows, columns = settings.window(*size)
        x = (x[..., rows, columns] - self.mean.float()) / self.std.float()
        return self.model(x.to(dtype))

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"settings={self.settings}"
