"""Whether Triton's cache has a model's kernels, and the process that fills it while a rank still loads.

Runs on a rank's launch thread, beginning before torch is imported, which takes seconds; the process (`triton_process`) imports
torch for itself. It is an optimisation only: kernels missing from the cache are compiled by the rank, more slowly.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import threading
import time
from contextlib import suppress
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from streamserve.checkpoint.files import Checkpoint
from streamserve.config import EngineConfig
from streamserve.errors import ConfigError
from streamserve.process.cache import require_private
from streamserve.process.child import encode_with_paths, start_module

WAIT_S = 60.0
"""After that the rank compiles what is missing itself."""

POLL_INTERVAL_S = 0.05
"""Seconds between two looks at whether another engine has compiled."""

_DRIVER = Path("/dev/nvidiactl")


class CompileJob(msgspec.Struct, frozen=True, kw_only=True):
    """The first line sent to the process: whose kernels to compile."""

    config: EngineConfig
    checkpoint: Checkpoint


class CompileTarget(msgspec.Struct, frozen=True, kw_only=True):
    """The second line, sent once the rank has opened its device: what to compile for.

    capability, multiprocessors  as in the kernels' `Target`
    dtype                        torch's name of the weights' type
    """

    capability: tuple[int, int]
    multiprocessors: int
    dtype: str


class TritonCache:
    """One rank's view of Triton's cache; leaving the `with` block ends the process it started."""

    def __init__(self, config: EngineConfig, checkpoint: Checkpoint) -> None:
        self._job = CompileJob(config=config, checkpoint=checkpoint)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None
        self._waits = False

    @cached_property
    def _stamp(self) -> Path:
        return _cache_folder() / f"streamserve-{_fingerprint(self._job)}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()
        self._unlock()

    def start(self, *, compiles: bool = True) -> None:
        """Start compiling, unless the cache is complete, another engine has started to, or no NVIDIA GPU will be used.

        compiles  False where another rank does so for this one

        Raises `ConfigError` when another user can write to the cache, which is machine code.
        """
        if self._job.config.device == "cpu" or not _DRIVER.exists() or find_spec("triton") is None:
            return
        require_private_cache(_cache_folder())
        threading.Thread(target=prepare_triton, name="streamserve-triton", daemon=True).start()
        if self._stamp.exists() or not compiles:
            return
        if not self._take_lock():
            self._waits = True
            return
        # Threads of OpenBLAS would be lost in the processes that this one forks.
        self._process = start_module("streamserve.worker.startup.triton_process", variables={"OPENBLAS_NUM_THREADS": "1"})
        self._send(self._job)

    def send_target(self, target: CompileTarget) -> None:
        """Tell the process which GPU to compile for."""
        self._send(target)

    def wait(self) -> None:
        """Wait until the kernels are compiled, for `WAIT_S` at most; a process of ours that takes longer is killed."""
        deadline = time.monotonic() + WAIT_S
        while self._waits and not self._stamp.exists() and not self._take_lock() and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL_S)
        if self._process is not None:
            try:
                self._process.wait(WAIT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def mark_complete(self) -> None:
        """Leave a stamp in the cache that says it has every kernel of this model; it goes when the cache is deleted."""
        if not self._stamp.exists() and self._stamp.parent.is_dir():
            self._stamp.touch()
        self._unlock()

    def _take_lock(self) -> bool:
        """Whether nobody else compiles for this model and these sizes; the lock goes with its holder's process."""
        try:
            self._stamp.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self._stamp.with_suffix(".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError:
            # A folder that can't be written to: what it lacks everyone compiles.
            return True
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return False
        self._lock = lock
        return True

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _send(self, line: msgspec.Struct) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            # One that has failed already leaves its work to the rank.
            with suppress(BrokenPipeError):
                self._process.stdin.write(encode_with_paths(line) + b"\n")
                self._process.stdin.flush()


def prepare_triton() -> None:
    """Do early what takes Triton a second at its first kernel: hashing its own 300 MB and compiling its CUDA driver stub."""
    from triton.backends.nvidia.driver import CudaUtils
    from triton.runtime.cache import triton_key

    triton_key()
    CudaUtils()


def require_private_cache(folder: Path) -> None:
    """Raise `ConfigError` when another user can write to Triton's cache."""
    try:
        if folder.is_dir():
            require_private(folder)
    except PermissionError as error:
        raise ConfigError(f"Triton's cache can't be trusted: {error}; set TRITON_CACHE_DIR to another folder") from error


def _cache_folder() -> Path:
    """Where Triton keeps what it compiles."""
    override = os.environ.get("TRITON_CACHE_DIR")
    return Path(override) if override else Path(os.environ.get("TRITON_HOME", Path.home())) / ".triton" / "cache"


def _fingerprint(job: CompileJob) -> str:
    """Changes with the kernels' sources, the compiler, the model's shape and the sizes of steps."""
    digest = hashlib.sha256()
    config = job.config
    sizes: list[object] = [
        config.dtype,
        config.block_size,
        config.max_model_len,
        config.max_num_seqs,
        config.max_num_batched_tokens,
    ]
    sizes += [config.tensor_parallel_size, config.enable_expert_parallel, config.kv_cache_dtype]
    digest.update(repr((sizes, sorted(job.checkpoint.config.items()))).encode())
    for package in ("triton", "torch"):
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            digest.update(f"{spec.origin} {os.stat(spec.origin).st_mtime_ns}".encode())
    kernels = find_spec("streamserve_kernels")
    assert kernels is not None
    assert kernels.origin is not None
    for source in sorted(Path(kernels.origin).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:32]
