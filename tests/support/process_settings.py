"""The settings of this process that `executor.tuning` changes, as they are now."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

from streamserve.executor.tuning import KERNEL_CACHES

LARGE_BYTES = (32 << 20) - (64 << 10)
"""Just below the largest threshold of glibc's: mapped by itself unless that is set, and then taken from the heap."""

_PREFIXES = ("GOMP_", "OMP_", "KMP_")


class _MallInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`; `hblks` counts buffers that are mapped by themselves."""

    _fields_ = [(f"field_{place}", ctypes.c_size_t) for place in range(3)] + [("hblks", ctypes.c_size_t)]
    _fields_ += [(f"field_{place}", ctypes.c_size_t) for place in range(4, 10)]


def process_settings() -> dict[str, Any]:
    """The settings as they are now."""
    return {
        "switch_interval_s": sys.getswitchinterval(),
        "openmp": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_PREFIXES)},
        "kept_kernels": {name: value for name, value in sorted(os.environ.items()) if name in KERNEL_CACHES},
        "keeps_freed_memory": not _maps_large_buffers(),
    }


def environment_without_settings() -> dict[str, str]:
    """This process's environment, without settings for OpenMP and oneDNN."""
    settings = (*_PREFIXES, *KERNEL_CACHES)
    return {name: value for name, value in os.environ.items() if not name.startswith(settings)}


def _maps_large_buffers() -> bool:
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = _MallInfo
    libc.malloc.restype = ctypes.c_void_p
    before = libc.mallinfo2().hblks
    # Several, since the heap may have room for some. Never touched, so they take no memory; and never freed, which would raise
    # glibc's own threshold to their size.
    for _ in range(8):
        libc.malloc(ctypes.c_size_t(LARGE_BYTES))
    return bool(libc.mallinfo2().hblks > before)
