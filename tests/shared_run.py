"""One process of a run that several share: `python -m tests.shared_run PATH KIND PORT INDEX COUNT`.

It counts votes over the devices of all processes first, then certifies its share of the inputs. KIND is "jax" or
"torch"; after a "slow" in the end each batch takes a while, so that the process can be killed on the way.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

import jaxsmooth

# A key as data: making one would start JAX before it knows of the other processes.
KEY, NOISE, N = np.array([0, 3], np.uint32), jaxsmooth.Gaussian(0.5), 400


def examples():
    rng = np.random.default_rng(0)
    return [(rng.normal(size=4).astype(np.float32), idx % 3) for idx in range(13)]


def classifier(kind):
    if kind == "jax":
        return (lambda x: x[:, :3]), True
    from torch import nn

    from bridges.pytorch import as_jax

    class First(nn.Module):
        def forward(self, x):
            return x[:, :3]

    return as_jax(First()), False


def count_over_all_processes(f, x):
    """Each process counts a part of the samples; a collective adds them up."""
    mesh = jax.make_mesh((jax.device_count(),), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
    share = N // jax.device_count()

    def part(key, x):
        first = jax.lax.axis_index("device") * share
        return jax.lax.psum(jaxsmooth.count_votes(f, NOISE, key, x, n=share, first=first), "device")

    spec = PartitionSpec()
    return jax.jit(jax.shard_map(part, mesh=mesh, in_specs=(spec, spec), out_specs=spec, check_vma=False))(KEY, x)


def main(path, kind, port, index, count, pace=""):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", int(count), int(index))
    f, compiled = classifier(kind)
    x = jnp.asarray(np.array([x for x, _ in examples()]))
    if kind == "jax" and not pace:
        counts = count_over_all_processes(f, x).addressable_data(0)
        np.testing.assert_array_equal(counts, jaxsmooth.count_votes(f, NOISE, KEY, x, n=N))

    def slow(x):
        time.sleep(0.05)
        return np.asarray(x)[:, :3]

    f, compiled = (slow, False) if pace else (f, compiled)
    jaxsmooth.certify_dataset(
        f,
        NOISE,
        KEY,
        examples(),
        path,
        mode=jaxsmooth.Fixed(n=N),
        group=1,
        batch_size=64,
        compiled=compiled,
        progress=False,
    )
    print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
