"""A step's numbers on their way to the device: packed into one pinned buffer, sent with one copy, read there as views.

Runs on the launch thread. A ring of buffers lets the host pack step n + 2 while the copies of the two before it are still
queued; a buffer is written again only after the event behind its copy has passed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamserve.worker.device.base import Device, Event

RING_DEPTH = 4
"""Two steps in flight, one being packed, one spare."""

Words = npt.NDArray[np.int32]


class Packing:
    """Arrays of 32-bit words put one after another; each `put` returns where they will be."""

    def __init__(self) -> None:
        self._parts: list[Words] = []
        self.num_words = 0

    def put(self, values: Sequence[int] | npt.NDArray[np.generic]) -> slice:
        """Append int32s, or float32s and uint32s by their bits."""
        array = np.asarray(values, dtype=np.int32) if not isinstance(values, np.ndarray) else _as_words(values)
        place = slice(self.num_words, self.num_words + array.size)
        self._parts.append(array.reshape(-1))
        self.num_words += array.size
        return place

    def write(self, into: Words) -> None:
        """Copy everything put so far to the start of `into`."""
        if self._parts:
            np.concatenate(self._parts, out=into[: self.num_words])


class StagingRing:
    """Pinned buffers in turn, each with the event after which it may be written again."""

    def __init__(self, device: Device, num_words: int) -> None:
        self._device = device
        self._buffers = [device.staging(num_words) for _ in range(RING_DEPTH)]
        self._events: list[Event | None] = [None] * RING_DEPTH
        self._next = 0

    def send(self, packing: Packing, into: Tensor | None = None) -> Tensor:
        """The packed words on the device, queued; in the first part of `into` when given (see `Device.upload`)."""
        index, self._next = self._next, (self._next + 1) % RING_DEPTH
        event = self._events[index]
        if event is not None:
            event.wait()
        if len(self._buffers[index]) < packing.num_words:
            self._buffers[index] = self._device.staging(2 * packing.num_words)
        words = self._buffers[index][: packing.num_words]
        packing.write(words.numpy())
        sent = self._device.upload(words, into)
        self._events[index] = self._device.record()
        return sent


def floats(words: Tensor) -> Tensor:
    """Words that were put as float32."""
    return words.view(torch.float32)


def _as_words(array: npt.NDArray[np.generic]) -> Words:
    return array.view(np.int32) if array.dtype.itemsize == 4 else array.astype(np.int32)
