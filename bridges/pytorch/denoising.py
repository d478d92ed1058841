"""A PyTorch network behind a denoiser."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from jaxsmooth.arguments import in_brief
from jaxsmooth.denoising import PIXELS, as_step, like_x
from jaxsmooth.types import Noise


class Denoised(nn.Module):
    """A network that denoises its input and then classifies it: `model(denoiser(x))`.

    It is for `as_jax` and for the classes: noise is added to the x that this module gets, before the denoiser, so sigma
    and radii are in the units of that x, and the certificate is that of the two together (Salman et al. 2020,
    arXiv:2003.01908; Carlini et al. 2022, arXiv:2206.10550). What the network wants done to clean images belongs inside
    `model` (`WithPreprocessing`), and not into the `preprocessing` of a class, which comes before the denoiser.

    `fit` of a class trains every parameter that requires a gradient, those of the denoiser too, and training mode
    updates the batch normalisation of both.

    Args:
        model: the network, of clean images.
        denoiser: without a schedule, a module or function from noisy images to clean ones of the same shape and units.
            With one, a diffusion model `(image, t) -> output` whose images are in [-1, 1], such as the `UNet2DModel` of
            `diffusers`, as it is: t is `i64[B]`, and the output a tensor, or an object or mapping with `sample`.
        noise: with a schedule, the noise under which it will be certified; `step` says which step it leads to.
        schedule, prediction, clip_values: of the diffusion model: see `jaxsmooth.diffusion_step`. A scheduler of
            `diffusers` is a schedule.

    Attributes:
        step: the `jaxsmooth.DiffusionStep`, or None.

    Raises:
        ValueError, TypeError: an argument is not as described. At a call, the denoiser returns another shape.

    Example:
        >>> network = Denoised(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), nn.AvgPool2d(3, 1, padding=1))
        >>> network(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
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
                raise TypeError(f"{name} must be a module or a function of tensors, got {in_brief(part)}")
        self.step = as_step(noise, schedule, prediction, clip_values)
        self.model = model
        self.denoiser = denoiser

    def denoise(self, x: torch.Tensor) -> torch.Tensor:
        """Return clean images from noisy ones."""
        if self.step is None:
            return like_x(self.denoiser(x), x)
        # The denoiser may be in another precision than the network.
        own = self.denoiser if isinstance(self.denoiser, nn.Module) else nn.Identity()
        dtype = next((tensor.dtype for tensor in own.parameters() if tensor.is_floating_point()), x.dtype)
        image = self.step.noisy_image(x).to(dtype)
        output = self.denoiser(image, torch.full((len(x),), self.step.t, dtype=torch.int64, device=x.device))
        return self.step.as_x(self.step.clean_image(image, output).to(x.dtype).clamp(-1, 1))

    def forward(self, x: torch.Tensor) -> Any:
        """Return what the network returns for denoised images."""
        return self.model(self.denoise(x))

    def extra_repr(self) -> str:
        """Return the step: two networks at different steps are two classifiers."""
        return "" if self.step is None else str(self.step)
