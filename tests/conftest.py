"""Settings of the whole test run: four host devices and strict rank promotion."""

import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"

import gc
from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
    """Forget compiled programs once they fill 2 GB: a whole run compiles thousands."""
    yield
    memory = Path("/proc/self/statm")
    if memory.exists() and int(memory.read_text().split()[1]) * 4096 > 2**31:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def key():
    return jax.random.key(20)


@pytest.fixture
def mesh():
    return jax.make_mesh((4,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
