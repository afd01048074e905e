"""Process-wide settings for a model on a CPU: of OpenMP's threads, oneDNN's kernels, glibc's allocator and the interpreter.

For processes that belong to this program; a host program's own process is tuned only on its request. Imports no torch:
OpenMP reads its settings when torch is imported, so `tune_before_loading` comes first.
"""

from __future__ import annotations

import ctypes
import os
import sys

from streamserve.checkpoint.files import Checkpoint
from streamserve.config import EngineConfig
from streamserve.process.cache import compiled_layers
from streamserve.process.switch_interval import shorten_switch_interval

SPIN_COUNT = "5000"
"""How often an OpenMP thread looks for the next operation before it sleeps: some 60 µs, the time between two of them.

By default it spins for milliseconds, and holds a core that the API side needs; one that sleeps at once makes a step of one
stream take 19 ms instead of 12, and a prefill nearly twice as long (measured with two threads on two cores of Zen 4).
"""

COMPILED_SPIN_COUNT = "60000"
"""The same where the model's layers are compiled: the time between two steps.

Their operations follow each other at once, so that a thread waits for little else: 5 to 10 % more tokens than with `SPIN_COUNT`
at 1, 8 and 16 streams. Without compiled layers it is 10 % less at 16.
"""

KERNEL_CACHES = {"LRU_CACHE_CAPACITY": "128", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128"}
"""Kernels of oneDNN that torch and oneDNN itself keep, one for each linear of a layer and number of tokens.

Steps have any number of tokens, and by default a thousand kernels of 0.7 MB each are kept. To make one takes 0.2 ms, once in a
step for all layers.
"""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT_BYTES = 32 << 20  # the largest threshold that every glibc accepts


def tune_before_loading(config: EngineConfig, checkpoint: Checkpoint) -> None:
    """Bound OpenMP's spinning and the number of kernels that are kept, and have glibc keep what a step frees.

    What the environment sets stays as it is; spinning too where torch has been imported: libgomp reads it only then.
    """
    _bound_spinning(config, checkpoint)
    for name, capacity in KERNEL_CACHES.items():
        os.environ.setdefault(name, capacity)
    keep_freed_memory()


def tune_after_loading() -> None:
    """Shorten the interpreter's switch interval. Loading, which compiles on many threads, is done by then."""
    shorten_switch_interval()


def keep_freed_memory() -> None:
    """Have glibc keep what a step frees.

    By default it gives large buffers back to the kernel, and the next step pays for their page faults again: more than some
    of its arithmetic. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, 4 * _KEPT_BYTES)


def _bound_spinning(config: EngineConfig, checkpoint: Checkpoint) -> None:
    if "torch" in sys.modules or "OMP_WAIT_POLICY" in os.environ:
        return
    os.environ.setdefault("GOMP_SPINCOUNT", COMPILED_SPIN_COUNT if _runs_compiled_layers(config, checkpoint) else SPIN_COUNT)


def _runs_compiled_layers(config: EngineConfig, checkpoint: Checkpoint) -> bool:
    library = compiled_layers()
    if config.enforce_eager or not library.is_dir():
        return False
    # Here and not at the top: a start waits for it, and most machines have no compiled layers.
    from streamserve.models.aot.marks import has_compiled_layers

    return has_compiled_layers(config, checkpoint, library)
