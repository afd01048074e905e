"""The settings of this process that `executor.tuning` changes, as they are now."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

LARGE_BYTES = 63 << 19
"""31.5 MiB: mapped by itself under glibc's own thresholds, taken from the heap when freed memory is kept."""

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
        "keeps_freed_memory": not _maps_large_buffers(),
    }


def environment_without_settings() -> dict[str, str]:
    """This process's environment, in which nobody has set anything for OpenMP."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_PREFIXES)}


def _maps_large_buffers() -> bool:
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = _MallInfo
    libc.malloc.restype = ctypes.c_void_p
    before = libc.mallinfo2().hblks
    # Never touched, so it takes no memory; and never freed, which would raise glibc's own threshold to its size.
    libc.malloc(ctypes.c_size_t(LARGE_BYTES))
    return bool(libc.mallinfo2().hblks > before)
