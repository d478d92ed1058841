"""PyTorch: modules as JAX functions, and ART's smoothing class for them."""

from bridges.pytorch.acceleration import Accelerated
from bridges.pytorch.call import TorchFunction, as_jax
from bridges.pytorch.classifier import PyTorchRandomizedSmoothing
from bridges.pytorch.denoising import Denoised
from bridges.pytorch.images import WithPreprocessing
from bridges.pytorch.objectives import PyTorchMACER, PyTorchSmoothAdv, PyTorchSmoothMix

__all__ = [
    "Accelerated",
    "Denoised",
    "PyTorchMACER",
    "PyTorchRandomizedSmoothing",
    "PyTorchSmoothAdv",
    "PyTorchSmoothMix",
    "TorchFunction",
    "WithPreprocessing",
    "as_jax",
]
