"""PyTorch: modules as JAX functions, and ART's smoothing class for them."""

from bridges.pytorch.call import TorchFunction, as_jax
from bridges.pytorch.classifier import PyTorchRandomizedSmoothing
from bridges.pytorch.images import WithPreprocessing

__all__ = ["PyTorchRandomizedSmoothing", "TorchFunction", "WithPreprocessing", "as_jax"]
