"""Keeping freed memory, in a process of its own."""

import platform
import subprocess
import sys

import pytest

from bridges.memory import keep_freed_memory

CODE = """
import resource, torch
from bridges.memory import keep_freed_memory
keep_freed_memory()
torch.set_num_threads(1)
for _ in range(30):
    torch.ones(2**24)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="for glibc")
def test_memory_is_used_again_without_page_faults():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, check=True)
    # Mapped anew, 20 tensors of 64 MB would fault 20 * 16,384 times.
    assert int(done.stdout) < 2_000


def test_another_c_library_is_refused(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    with pytest.raises(NotImplementedError, match="for Linux with glibc"):
        keep_freed_memory()
