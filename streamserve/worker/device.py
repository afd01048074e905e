"""The device a rank computes on: its stream, its events, its memory. One of the two places that know a GPU from a CPU.

Used by the rank's launch thread; `Event.wait` alone is called on the wait thread. Knows nothing of models or plans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from streamserve.config import Device as DeviceName
from streamserve.errors import ConfigError
from streamserve.worker.startup.memory import Memory, host_memory
from streamserve_kernels import Target, target_of


class Event(Protocol):
    """A point in the device's stream."""

    def wait(self) -> None:
        """Block this thread until the device has come past it."""
        ...


class Device(Protocol):
    """What a worker asks of its device.

    Work is queued on one stream, in order; only `Event.wait`, `synchronize` and `measure_peak` block.
    """

    torch_device: torch.device
    name: str
    kv_cache_cap: int | None
    """Bytes past which a KV cache is not made larger unless asked for; None for no such bound."""
    captures: bool
    """Whether replaying a capture is cheaper than launching again."""
    compiles_layers: bool
    """Whether layers are faster compiled ahead (`worker/compiled.py`)."""
    target: Target | None
    """What kernels are compiled for; None where none are."""

    def stream(self) -> AbstractContextManager[object]:
        """Everything launched inside, by this thread, goes to the worker's stream."""
        ...

    def another_stream(self) -> AbstractContextManager[object]:
        """As `stream`, with a stream that nothing else uses; when left, its work is done."""
        ...

    def staging(self, num_words: int) -> Tensor:
        """[num_words] int32 on the host, from which `upload` copies in the background."""
        ...

    def buffer(self, num_words: int) -> Tensor:
        """[num_words] int32 on the device, for `upload`."""
        ...

    def upload(self, words: Tensor, into: Tensor | None = None) -> Tensor:
        """Queue the copy of staged words and return them on the device: in the first part of `into`, or in memory of their own.

        `words` must stay unchanged until an event recorded after this has passed.
        """
        ...

    def download(self, tensor: Tensor) -> Tensor:
        """Queue a copy to the host; it may be read once an event recorded after this has passed."""
        ...

    def record(self) -> Event:
        """An event behind everything queued so far."""
        ...

    def capture(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Record what `work` launches; calling the result launches it again, on the same memory, and returns that tensor.

        Other threads may go on using the device meanwhile. `work` has run before, on this thread.
        """
        ...

    def load_libraries(self) -> None:
        """Load what products would load at the first of them: a few hundred megabytes of libraries on a GPU."""
        ...

    def synchronize(self) -> None: ...

    def memory(self) -> Memory: ...

    def measure_peak(self, work: Callable[[], object]) -> int:
        """Run `work` and return the most bytes it held at a time beyond what was held before."""
        ...

    def allocate_cache(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory for a KV cache, free of NaN."""
        ...


class OnDemand:
    """Launches its work when first called, and captures it then; every later call replays it."""

    def __init__(self, device: Device, work: Callable[[], Tensor]) -> None:
        self._device = device
        self._work = work
        self._replay: Callable[[], Tensor] | None = None

    def __call__(self) -> Tensor:
        if self._replay is not None:
            return self._replay()
        # What runs also compiles and loads kernels, which a capture can't.
        result = self._work()
        self._replay = self._device.capture(self._work)
        return result


def open_device(name: DeviceName) -> Device:
    """The device by its flag; "auto" takes a GPU when there is one. Raises `ConfigError` when it is not there."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return CpuDevice()
    if not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no CUDA device; use --device cpu or install a torch built for CUDA")
    return CudaDevice(torch.device("cuda", torch.cuda.current_device()))


class Passed:
    """The event of a device that has always finished."""

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
        """They came with torch."""

    def synchronize(self) -> None:
        """Nothing is ever outstanding."""

    def memory(self) -> Memory:
        return host_memory()

    def measure_peak(self, work: Callable[[], object]) -> int:
        """Runs nothing: a CPU's activations are small beside its memory, and a full step would cost seconds of start-up."""
        return 0

    def allocate_cache(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        # Not zeros(): that would touch every page, where empty memory of this size comes zeroed page by page when first used.
        cache = torch.empty(shape, dtype=dtype)
        return cache if cache.nbytes > 64 << 20 else cache.zero_()


class ShapeDevice(CpuDevice):
    """No device: tensors on it have shapes and no memory, and kernels that they are given are compiled and not run."""

    def __init__(self) -> None:
        super().__init__()
        self.torch_device = torch.device("meta")
        self.name = "none"

    def allocate_cache(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.torch_device)


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
        # torch's pinned allocator gives this memory to nobody else before the copy has run, even if it is dropped early.
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
        with torch.cuda.stream(self._capture_stream):
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

    def allocate_cache(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.torch_device)


class CudaEvent:
    """A point in a CUDA stream."""

    def __init__(self, event: torch.cuda.Event) -> None:
        self._event = event

    def wait(self) -> None:
        self._event.synchronize()
