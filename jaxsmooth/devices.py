"""One classifier on many devices: each device takes its part of every batch."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, PartitionSpec

from jaxsmooth.arguments import refuse_uncallable
from jaxsmooth.types import Classifier, RandomClassifier


def over_devices(f: Classifier, devices: Sequence[Any] | None = None) -> Classifier:
    """Return a classifier that runs `f` on several devices of this process, each with its part of the batch.

    Use it wherever f could be used: noise is drawn and votes are counted on the same devices, and the counts are those
    of one device, because the noise of a sample does not depend on devices. Multiply the batch size by the number of
    devices. What f closes over, or carries as a pytree, is copied to all of them.

    Args:
        f: base classifier, traceable by JAX. One of `bridges.*.as_jax` runs the framework's model once on each device.
        devices: of this process, all of them by default.

    Raises:
        TypeError: f cannot be called. ValueError: there are no devices, or one of another process.

    Example:
        >>> from jaxsmooth import Gaussian, count_votes
        >>> f = lambda x: jnp.stack([x.sum(-1), -x.sum(-1)], -1)
        >>> x = jnp.array([[9.0, 0.0], [0.0, 0.0]])
        >>> count_votes(over_devices(f), Gaussian(1.0), jax.random.key(0), x, n=1000, batch_size=1024)
        Array([[1000,    0],
               [ 469,  531]], dtype=int32)
    """
    refuse_uncallable(f)
    local = jax.local_devices()
    used = local if devices is None else list(devices) if isinstance(devices, Sequence) else []  # pyright: ignore
    if not used or not all(device in local for device in used):
        raise ValueError(f"devices must be some of this process's devices {local}, got {devices!r}")
    spread = _OverDevices(f, Mesh(used, ("device",), axis_types=(AxisType.Auto,)))
    return RandomClassifier(spread, of_batch=f.of_batch) if isinstance(f, RandomClassifier) else spread


@partial(jax.tree_util.register_dataclass, data_fields=["f"], meta_fields=["mesh"])
@dataclasses.dataclass(frozen=True)
class _OverDevices:
    """The classifier: a pytree of `f`, so that the arrays in it are traced as they are without it."""

    f: Any
    mesh: Mesh

    def __call__(self, *arrays: jax.Array) -> jax.Array:
        """Return the scores of a batch; a random classifier has keys, too."""
        context = jax.sharding.get_abstract_mesh()
        if not context.empty and context != self.mesh.abstract_mesh:
            raise ValueError(
                "over_devices brings a mesh of its own, so that it cannot run under jax.set_mesh with another one: "
                f"call it outside of that context, or use f itself there, got the context {context}"
            )
        rows = arrays[0].shape[0]
        # Every device needs the same number of rows. Padding is a repeated row, since keys have no zeros.
        places = jnp.minimum(jnp.arange(rows + -rows % self.mesh.size), rows - 1)
        padded = [array[places] for array in arrays] if len(places) > rows else arrays
        spec: Any = PartitionSpec("device")
        return jax.shard_map(self.f, mesh=self.mesh, in_specs=spec, out_specs=spec)(*padded)[:rows]
