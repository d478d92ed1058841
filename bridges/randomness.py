"""Models that are random given their input: a seed for each batch, made from the keys of its rows."""

import hashlib
from typing import Any

import jax
import numpy as np

from jaxsmooth.arguments import is_traced


def seed_words(x: Any, keys: Any, framework: str) -> np.ndarray:
    """Return two 32-bit words that seed a framework's generator for a batch, `u32[2]`.

    They depend on the keys of all its rows. Another batch, of other samples, gets other numbers, and within a batch the
    generator gives each row its own.

    Args:
        x: the batch.
        keys: one for each row.
        framework: its name, for errors.

    Raises:
        NotImplementedError: the batch is traced: a generator is seeded on the host only.

    Example:
        >>> keys = jax.random.split(jax.random.key(0), 3)
        >>> seed_words(None, keys, "PyTorch").shape, bool((seed_words(None, keys[1:], "PyTorch")[0] == 0).all())
        ((2,), False)
    """
    if is_traced(x) or is_traced(keys):
        raise NotImplementedError(
            f"a random {framework} model cannot be called from compiled code: give compiled=False, which calls it here"
        )
    data = np.ascontiguousarray(jax.random.key_data(keys))
    return np.frombuffer(hashlib.sha256(data.tobytes()).digest()[:8], np.uint32)
