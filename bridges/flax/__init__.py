"""Flax: linen and nnx modules as JAX functions, and ART's smoothing class for them."""

from bridges.flax.classifier import FlaxRandomizedSmoothing
from bridges.flax.functions import FlaxFunction
from bridges.flax.modules import as_jax

__all__ = ["FlaxFunction", "FlaxRandomizedSmoothing", "as_jax"]
