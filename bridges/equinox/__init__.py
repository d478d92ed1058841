"""Equinox models as functions of batches."""

from bridges.equinox.modules import as_jax

__all__ = ["as_jax"]
