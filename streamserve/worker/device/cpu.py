"""The host as a device: launching is computing, so nothing is ever outstanding.

Used by the rank's launch thread.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from streamserve.worker.device.base import Event
from streamserve.worker.device.memory import Memory, host_memory
from streamserve_kernels import Target


class Passed:
    """The event of a device that runs nothing in the background."""

    def wait(self) -> None:
        """Return at once."""


class CpuDevice:
    """The host: launching is computing, so every event has passed and every copy is the tensor itself."""

    kv_cache_cap: int | None = 4 << 30
    captures = False
    compiles_layers = True
    target: Target | None = None

    def __init__(self) -> None:
        self.torch_device = torch.device("cpu")
        self.name = f"cpu ({torch.get_num_threads()} threads)"

    def stream(self) -> AbstractContextManager[object]:
        return nullcontext()

    def another_stream(self) -> AbstractContextManager[object]:
        return nullcontext()

    def staging(self, num_words: int) -> Tensor:
        return torch.empty(num_words, dtype=torch.int32)

    def buffer(self, num_words: int) -> Tensor:
        return torch.empty(0, dtype=torch.int32)

    def upload(self, words: Tensor, into: Tensor | None = None) -> Tensor:
        return words

    def download(self, tensor: Tensor) -> Tensor:
        return tensor

    def record(self) -> Event:
        return Passed()

    def capture(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return work

    def load_libraries(self) -> None:
        """Nothing to do: they are loaded with torch."""

    def synchronize(self) -> None:
        """Nothing is ever outstanding."""

    def memory(self) -> Memory:
        return host_memory()

    def measure_peak(self, work: Callable[[], object]) -> int:
        """Runs nothing: a CPU's activations are small beside its memory, and a full step would cost seconds of start-up."""
        return 0

    def reserve(self, num_bytes: int) -> None:
        """Nothing is known before it is used: the system promises more memory than there is."""

    def allocate_cache(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        # Not zeros(): that would touch every page, where empty memory of this size comes zeroed page by page when first used.
        cache = torch.empty(shape, dtype=dtype)
        return cache if cache.nbytes > 64 << 20 else cache.zero_()


class ShapeDevice(CpuDevice):
    """No device: tensors on it have shapes and no memory; kernels launched with them are compiled and not run."""

    def __init__(self) -> None:
        super().__init__()
        self.torch_device = torch.device("meta")
        self.name = "none"

    def allocate_cache(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.torch_device)
