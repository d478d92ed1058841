"""Keep the C library from returning memory between batches."""

import ctypes
import platform

import numpy as np

# malloc.h of glibc: parameter, value.
_SETTINGS = {"M_MMAP_THRESHOLD": (-3, 2**31 - 4097), "M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 2**28)}


def free_one_block() -> None:
    """Free a block of 31 MB that was never touched. glibc learns from it, and keeps up to 62 MB of freed memory.

    PyTorch on the CPU allocates the activations for every batch, and JAX the noisy inputs. glibc returns freed memory
    to the system as soon as more than twice the largest block freed so far is free. The next batch then has it mapped
    and zeroed again, which can take longer than the network itself. Any process that once frees a large array has the
    same effect. It does nothing with another C library, or where the user set these thresholds (mallopt(3),
    `MALLOC_TRIM_THRESHOLD_`).
    """
    np.empty(31 * 2**20, np.uint8)  # at 32 MB glibc stops learning


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, instead of returning it to the system.

    `import bridges` makes glibc keep up to 62 MB. Batches that take more, such as hundreds of images at once, are still
    mapped and zeroed each time. This function changes the allocator of the whole process from now on: memory once used
    stays with the process. Nothing in this package calls it.

    Raises:
        NotImplementedError: the C library is not glibc. OSError: it refuses a setting.

    Example:
        >>> keep_freed_memory()  # doctest: +SKIP
    """
    if platform.libc_ver()[0] != "glibc":
        raise NotImplementedError(f"this is for Linux with glibc, not for {platform.system()}")
    mallopt = ctypes.CDLL(None).mallopt
    for name, (parameter, value) in _SETTINGS.items():
        if mallopt(parameter, value) != 1:
            raise OSError(f"mallopt refused {name} = {value}")
