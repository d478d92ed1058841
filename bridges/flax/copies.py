"""Arrays of flax models in files, and copies of what pickle cannot take, such as initialisers and optimizers."""

import pickle
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np

from bridges.archives import read_arrays


class Packed(NamedTuple):
    """An object as cloudpickle writes it."""

    data: bytes


def pack(value: Any) -> Packed:
    """Return an object in a form to copy and pickle."""
    return Packed(cloudpickle.dumps(value))


def unpack(packed: Packed) -> Any:
    """Return the object that was packed."""
    return pickle.loads(packed.data)


def save_tree(path: Path, tree: Any) -> None:
    """Write the arrays of a pytree to a file, by their paths in it.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "tree.npz"
        >>> save_tree(path, {"a": jnp.ones(2), "key": jax.random.key(3)})
        >>> load_tree(path, {"a": jnp.zeros(2), "key": jax.random.key(0)})["a"]
        Array([1., 1.], dtype=float32)
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **{jax.tree_util.keystr(at): np.asarray(_bare(leaf)) for at, leaf in leaves})


def load_tree(path: Path, like: Any) -> Any:
    """Read what `save_tree` wrote of a pytree like this one. The file holds only arrays: nothing in it is executed.

    Raises:
        ValueError: it holds other arrays, or arrays of other shapes.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(like)
    stored = read_arrays(path, {jax.tree_util.keystr(at): np.shape(_bare(leaf)) for at, leaf in leaves})
    return treedef.unflatten([_clad(stored[jax.tree_util.keystr(at)], leaf) for at, leaf in leaves])


def _bare(leaf: Any) -> Any:
    """Return the words of a random key, another leaf as it is."""
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def _clad(stored: np.ndarray, leaf: Any) -> jax.Array:
    """Return a stored array with the dtype of a leaf; NumPy's files forget the names of the small float types."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(stored), impl=jax.random.key_impl(leaf))
    return jnp.asarray(stored.view(leaf.dtype) if stored.dtype.kind == "V" else stored, leaf.dtype)
