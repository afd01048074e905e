"""Whether Triton's cache has a model's kernels yet, and if not, the process that fills it while a rank still loads.

Called on a rank's launch thread, first of all before torch is imported, which takes seconds: what loads torch is the process
(compile_process.py). Nothing depends on it: kernels that it did not compile, the rank compiles itself, only more slowly.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
from contextlib import suppress
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from streamserve.checkpoint.files import Checkpoint
from streamserve.config import EngineConfig
from streamserve.process.child import encode_with_paths, start_module

WAIT_S = 60.0
"""After that, compiling here is the faster way."""

_DRIVER = Path("/dev/nvidiactl")


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """The first line that the process is told: whose kernels to compile."""

    config: EngineConfig
    checkpoint: Checkpoint


class Aim(msgspec.Struct, frozen=True, kw_only=True):
    """The second: what for, once the rank has opened its device.

    capability, multiprocessors  as in the kernels' `Target`
    dtype                        torch's name of the weights' type
    """

    capability: tuple[int, int]
    multiprocessors: int
    dtype: str


class KernelCache:
    """One rank's view of Triton's cache; leaving the `with` block ends what it started."""

    def __init__(self, config: EngineConfig, checkpoint: Checkpoint) -> None:
        self._order = Order(config=config, checkpoint=checkpoint)
        self._process: subprocess.Popen[bytes] | None = None

    @cached_property
    def _stamp(self) -> Path:
        return _cache_folder() / f"streamserve-{_fingerprint(self._order)}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def fill(self) -> None:
        """Start to compile, unless this has been done on this machine, or no NVIDIA GPU will be used."""
        if self._order.config.device == "cpu" or not _DRIVER.exists() or find_spec("triton") is None:
            return
        threading.Thread(target=prepare_triton, name="streamserve-triton", daemon=True).start()
        if self._stamp.exists():
            return
        # Threads of OpenBLAS would be lost in the processes that this one forks.
        self._process = start_module("streamserve.worker.startup.triton_process", variables={"OPENBLAS_NUM_THREADS": "1"})
        self._tell(self._order)

    def aim(self, aim: Aim) -> None:
        """Say which GPU it is."""
        self._tell(aim)

    def wait(self) -> None:
        """Returns when as much is in the cache as will be."""
        if self._process is not None:
            try:
                self._process.wait(WAIT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def keep(self) -> None:
        """Remember that the cache has everything, for as long as it is kept."""
        if not self._stamp.exists() and self._stamp.parent.is_dir():
            self._stamp.touch()

    def _tell(self, line: msgspec.Struct) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            # One that has failed already leaves its work to the rank.
            with suppress(BrokenPipeError):
                self._process.stdin.write(encode_with_paths(line) + b"\n")
                self._process.stdin.flush()


def prepare_triton() -> None:
    """What takes Triton a second before its first kernel: it hashes itself, 300 MB, and compiles its way to CUDA, once."""
    from triton.backends.nvidia.driver import CudaUtils
    from triton.runtime.cache import triton_key

    triton_key()
    CudaUtils()


def _cache_folder() -> Path:
    """Where Triton keeps what it compiles."""
    given = os.environ.get("TRITON_CACHE_DIR")
    return Path(given) if given else Path(os.environ.get("TRITON_HOME", Path.home())) / ".triton" / "cache"


def _fingerprint(order: Order) -> str:
    """Changes with the kernels' sources, the compiler, the model's shape and the sizes of steps."""
    digest = hashlib.sha256()
    config = order.config
    sizes = [config.dtype, config.block_size, config.max_model_len, config.max_num_seqs, config.max_num_batched_tokens]
    digest.update(repr((sizes, sorted(order.checkpoint.config.items()))).encode())
    for package in ("triton", "torch"):
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            digest.update(f"{spec.origin} {os.stat(spec.origin).st_mtime_ns}".encode())
    kernels = find_spec("streamserve_kernels")
    assert kernels is not None
    assert kernels.origin is not None
    for source in sorted(Path(kernels.origin).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:32]
