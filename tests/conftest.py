"""Settings of the whole test run: four host devices, threads that sleep while they wait, strict rank promotion."""

import os
import shutil
import signal
import tempfile

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
# Test processes run side by side. PyTorch's threads would spin while they wait, on cores that the others need.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Most of the time goes into compiling, and many tests compile the same programs: all processes of one run of the tests
# share what XLA made. The folder is new in each run.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxsmooth-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    _own_cache = os.environ["JAX_COMPILATION_CACHE_DIR"]
else:
    _own_cache = None

import jax
import pytest

from tests.slow import LIST, function_of

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_unconfigure():
    """Remove the compiled programs, in the process that made the folder."""
    if _own_cache is not None:
        shutil.rmtree(_own_cache, ignore_errors=True)


def pytest_collection_modifyitems(items):
    """Mark the tests that the core suite leaves out, so that it takes under two minutes."""
    slow = set(LIST.read_text(encoding="utf-8").split())
    for item in items:
        if function_of(item.nodeid.replace(".py::", ".").replace("/", ".")) in slow:
            item.add_marker("slow")


@pytest.fixture
def key():
    return jax.random.key(20)


@pytest.fixture
def mesh():
    return jax.make_mesh((4,), ("device",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices("cpu")[:4])


@pytest.fixture
def interruptible():
    """Let SIGINT raise KeyboardInterrupt, which a shell's background job would ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
