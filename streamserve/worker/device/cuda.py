"""An NVIDIA GPU as a device: streams, CUDA graphs and pinned memory.

Used by the rank's launch thread; `CudaEvent.wait` is called on the wait thread.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from streamserve.worker.device.base import Event
from streamserve.worker.device.memory import Memory
from streamserve_kernels import Target, target_of


class CudaDevice:
    """One NVIDIA GPU, with a stream of the worker's own."""

    kv_cache_cap: int | None = None
    captures = True
    compiles_layers = False

    def __init__(self, device: torch.device) -> None:
        self.torch_device = device
        self.name = torch.cuda.get_device_name(device)
        self.target: Target | None = target_of(device)
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graph_pool = torch.cuda.graph_pool_handle()
        self._capture_stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def stream(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._stream)

    @contextmanager
    def another_stream(self) -> Iterator[object]:
        stream: torch.cuda.Stream = torch.cuda.Stream(self.torch_device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            yield stream
        stream.synchronize()

    def staging(self, num_words: int) -> Tensor:
        return torch.empty(num_words, dtype=torch.int32, pin_memory=True)

    def buffer(self, num_words: int) -> Tensor:
        return torch.empty(num_words, dtype=torch.int32, device=self.torch_device)

    def upload(self, words: Tensor, into: Tensor | None = None) -> Tensor:
        if into is None:
            return words.to(self.torch_device, non_blocking=True)
        return into[: len(words)].copy_(words, non_blocking=True)

    def download(self, tensor: Tensor) -> Tensor:
        # torch's pinned allocator does not reuse this memory before the copy has run, even if it is dropped early.
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)

    def record(self) -> Event:
        event: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return CudaEvent(event)

    def capture(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        graph = torch.cuda.CUDAGraph()
        # Not `torch.cuda.graph`, which waits for the device and gives memory back. On a stream of its own: pinned memory that
        # the wait thread frees meanwhile leaves an event on the worker's stream, which must not become part of the graph.
        with torch.cuda.stream(self._capture_stream), _no_garbage_collection():
            graph.capture_begin(self._graph_pool, capture_error_mode="thread_local")
            try:
                result = work()
            finally:
                graph.capture_end()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

    def load_libraries(self) -> None:
        square = torch.zeros(256, 256, dtype=torch.float16, device=self.torch_device)
        torch.mm(square, square)

    def synchronize(self) -> None:
        self._stream.synchronize()

    def memory(self) -> Memory:
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self.torch_device)
        return Memory(total, free)

    def measure_peak(self, work: Callable[[], object]) -> int:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.torch_device)
        before = torch.cuda.memory_allocated(self.torch_device)
        work()
        self.synchronize()
        return torch.cuda.max_memory_allocated(self.torch_device) - before

    def reserve(self, num_bytes: int) -> None:
        # Freed at once: torch keeps it for what this stream allocates next.
        torch.empty(num_bytes, dtype=torch.uint8, device=self.torch_device)

    def allocate_cache(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.torch_device)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep the collector from freeing graphs of an engine that has ended: inside a capture that is an error which breaks it."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class CudaEvent:
    """A point in a CUDA stream."""

    def __init__(self, event: torch.cuda.Event) -> None:
        self._event = event

    def wait(self) -> None:
        self._event.synchronize()
