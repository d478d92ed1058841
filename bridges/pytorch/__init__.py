"""PyTorch modules as JAX functions."""

from bridges.pytorch.call import TorchFunction, as_jax

__all__ = ["TorchFunction", "as_jax"]
