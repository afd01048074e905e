"""Words on their way to the device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from streamserve.worker.device.base import Event
from streamserve.worker.device.cpu import CpuDevice
from streamserve.worker.device.staging import RING_DEPTH, Packing, StagingRing, floats


class SlowCopies(CpuDevice):
    """A device whose copies run only when a caller waits for them, as on a busy GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[int] = []
        self._recorded = 0
        self._pending: list[tuple[Tensor, Tensor]] = []

    def upload(self, words: Tensor, into: Tensor | None = None) -> Tensor:
        arrived = torch.zeros_like(words)
        self._pending.append((words, arrived))
        return arrived

    def record(self) -> Event:
        self._recorded += 1
        return _Copied(self, self._recorded - 1)

    def run_up_to(self, index: int) -> None:
        self.waited.append(index)
        for words, arrived in self._pending[: index + 1]:
            arrived.copy_(words)
        self._pending[: index + 1] = [(arrived, arrived) for _, arrived in self._pending[: index + 1]]


class _Copied:
    def __init__(self, device: SlowCopies, index: int) -> None:
        self._device, self._index = device, index

    def wait(self) -> None:
        self._device.run_up_to(self._index)


def packed(*values: int) -> Packing:
    packing = Packing()
    packing.put(list(values))
    return packing


def test_numbers_keep_their_places_and_floats_their_bits() -> None:
    packing = Packing()
    places = [
        packing.put([1, -2, 3]),
        packing.put([]),
        packing.put(np.array([0.5, -np.inf], dtype=np.float32)),
        packing.put(np.array([[2**32 - 1, 7]], dtype=np.uint32)),
        packing.put(np.arange(3)),
    ]
    words = StagingRing(CpuDevice(), 4).send(packing)
    assert [words[place].tolist() for place in (places[0], places[1], places[3], places[4])] == [
        [1, -2, 3],
        [],
        [-1, 7],
        [0, 1, 2],
    ]
    assert floats(words[places[2]]).tolist() == [0.5, -np.inf]


def test_a_buffer_is_written_again_only_after_its_copy_has_run() -> None:
    device = SlowCopies()
    ring = StagingRing(device, 8)
    sent = [ring.send(packed(number)) for number in range(RING_DEPTH)]
    assert device.waited == []
    sent += [ring.send(packed(number)) for number in range(RING_DEPTH, 3 * RING_DEPTH)]
    assert device.waited == list(range(2 * RING_DEPTH))
    device.run_up_to(len(sent) - 1)
    assert [int(words[0]) for words in sent] == list(range(3 * RING_DEPTH))


def test_the_ring_holds_the_steps_in_flight_and_the_one_being_packed() -> None:
    assert RING_DEPTH >= 3


def test_what_does_not_fit_gets_a_larger_buffer() -> None:
    ring = StagingRing(CpuDevice(), 2)
    for _ in range(2 * RING_DEPTH):
        assert ring.send(packed(*range(1000))).tolist() == list(range(1000))
