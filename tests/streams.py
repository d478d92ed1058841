"""The keys of streams and samples by their definition, with JAX's own Threefry."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32

STREAM_TAG = 0x6A787374
SAMPLE_TAG = 0x6A787361


def tagged_key(key, tag, *words):
    """Fold words into a key in turn, each with the counter `(tag, word)`."""
    data = jax.random.key_data(key)
    for word in words:
        counter = jnp.stack([np.uint32(tag), jnp.asarray(word, np.uint32)])
        data = threefry_2x32(data, counter)
    return jax.random.wrap_key_data(data, impl="threefry2x32")


def sample_key(key, i, s):
    """Return the key of sample `s` of the input with id `i`."""
    return tagged_key(key, SAMPLE_TAG, i, s)
