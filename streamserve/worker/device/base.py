"""The interface of a device: a stream, events, memory, captures.

Used by the rank's launch thread; `Event.wait` alone is called on the wait thread. Knows nothing of models or plans.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from streamserve.worker.device.memory import Memory
from streamserve_kernels import Target


class Event(Protocol):
    """A point in the device's stream."""

    def wait(self) -> None:
        """Block this thread until the device has come past it."""
        ...


class Device(Protocol):
    """The device that a rank computes on.

    Work is queued on one stream, in order; only `Event.wait`, `synchronize` and `measure_peak` block.
    """

    torch_device: torch.device
    name: str
    kv_cache_cap: int | None
    """The most bytes of a KV cache without --kv-cache-memory; None for no such bound."""
    captures: bool
    """Whether replaying a capture is cheaper than launching again."""
    compiles_layers: bool
    """Whether layers are faster compiled ahead of time."""
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

        Other threads may keep using the device meanwhile. `work` has run before, on this thread.
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

    def reserve(self, num_bytes: int) -> None:
        """Have memory for what is about to be launched, which no other process takes from then on.

        Raises `torch.OutOfMemoryError` when it is not there; a device that can't tell before it is used raises nothing.
        """
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
