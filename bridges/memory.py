"""Keep the C library from returning memory between batches."""

import ctypes
import platform

# malloc.h of glibc: parameter, value.
_SETTINGS = {"M_MMAP_THRESHOLD": (-3, 2**31 - 4097), "M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 2**28)}


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, instead of returning it to the system.

    PyTorch on the CPU allocates the activations of every batch anew. glibc returns them after each batch and has them
    mapped and zeroed again for the next, which takes longer than the network itself where batches are large. This
    changes the allocator of the whole process, from here on: memory once used stays with it. Nothing here calls it
    by itself.

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
