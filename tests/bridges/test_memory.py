"""What the C library does with freed memory, in processes of their own."""

import platform
import subprocess
import sys

import pytest

from bridges.memory import keep_freed_memory

CODE = """
import resource
{first}
def batches(number):
    for _ in range(number):
        layers = [b"1" * {size} for _ in range(3)]
        del layers
batches(5)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
batches(20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="for glibc")


def page_faults(first, size, **environment):
    code = CODE.format(first=first, size=size)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment)
    return int(done.stdout)


@glibc
def test_importing_the_bridges_has_batches_use_the_memory_of_those_before():
    # Mapped anew, each of 60 layers of 8 MB faults 2,048 times.
    assert page_faults("import numpy", 2**23) > 60_000
    assert page_faults("import bridges", 2**23) < 2_000
    # The user's own settings stay, here to return all that is free.
    assert page_faults("import bridges", 2**23, MALLOC_TRIM_THRESHOLD_="131072") > 60_000


@glibc
def test_memory_is_kept_whatever_the_size_of_layers():
    # Mapped anew, each of 60 layers of 64 MB faults 16,384 times.
    assert page_faults("from bridges.memory import keep_freed_memory; keep_freed_memory()", 2**26) < 2_000


def test_another_c_library_is_refused(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    with pytest.raises(NotImplementedError, match="for Linux with glibc"):
        keep_freed_memory()
