"""Memory that the GPUs of one machine map from each other. torch's symmetric memory makes and maps it; multicast is not used.

Up to some hundred rows are exchanged by one kernel, through slots (`streamserve_kernels.peers`). Thousands of rows of two
ranks go through an inbox, which the other GPU's copy engine fills: copies take no multiprocessor from the products that run
meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from streamserve_kernels import PeerSlots, clear_slots, peer_gather, peer_sum, slot_bytes


class SlotSet(NamedTuple):
    """Slots for exchanges in which a rank sends another so many bytes at most; the rest as in `PeerSlots`."""

    num_bytes: int
    block: int
    probes: bool
    in_parts: bool = False


FEW = SlotSet(1 << 19, 256, False)
"""Between two ranks, up to 64 rows of 4096 in bf16, of which programs watch every number."""

MANY = SlotSet(16 << 20, 512, True)
"""Between two ranks, up to 2048 rows; among more, of gathers alone."""

SUMMED_BYTES = 16 << 20
"""Of a sum that more than two ranks add up in parts."""


def slot_sets(world_size: int) -> tuple[SlotSet, ...]:
    """All slots of a rank, by size."""
    if world_size == 2:
        return FEW, MANY
    in_halves = 2 * SUMMED_BYTES // world_size // 4096 * 4096
    return FEW, SlotSet(in_halves, 512, True, in_parts=True), MANY


ITEMSIZES = (2, 4)

INBOX_PIECES = 4
"""Pieces of one exchange, at most; an inbox has as many places again, for those of the exchange before."""

PIECE_BYTES = 32 << 20

_CHANNEL = 1


class PeerMemory:
    """This rank's memory and its view of the others'. Every rank makes one at the same time, and uses them alike.

    has_inbox  whether there is one; only two ranks have

    Raises `RuntimeError` where GPUs can't map each other's memory.
    """

    def __init__(self, rank: int, world_size: int, device: torch.device) -> None:
        # Read by torch when memory is first made.
        os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
        import torch.distributed._symmetric_memory as symmetric

        self.has_inbox = world_size == 2
        slots_bytes = sum(
            slot_bytes(world_size, slot_set.num_bytes, 1) for _ in ITEMSIZES for slot_set in slot_sets(world_size)
        )
        inbox_bytes = 2 * INBOX_PIECES * PIECE_BYTES if self.has_inbox else 0
        self._memory = symmetric.empty(slots_bytes + inbox_bytes, dtype=torch.uint8, device=device)
        self._handle: Any = symmetric.rendezvous(self._memory, dist.group.WORLD)  # type: ignore[arg-type]
        self._rank, self._world_size, self._inbox_at, self._half = rank, world_size, slots_bytes, 0
        self._slots: dict[int, list[PeerSlots]] = {itemsize: [] for itemsize in ITEMSIZES}
        begin = 0
        for itemsize in ITEMSIZES:
            for slot_set in slot_sets(world_size):
                size = slot_bytes(world_size, slot_set.num_bytes, 1)
                clear_slots(self._memory[begin : begin + size], itemsize)
                addresses = torch.tensor([pointer + begin for pointer in self._handle.buffer_ptrs], device=device)
                self._slots[itemsize].append(_slots(rank, world_size, addresses, slot_set, itemsize))
                begin += size
        # Nobody may send before all have cleared their slots.
        torch.cuda.synchronize(device)
        dist.barrier()

    def slots_for_sum(self, numel: int, itemsize: int) -> PeerSlots | None:
        """The smallest slots that a sum of so many numbers fits; None where there are none."""
        return next((slots for slots in self._slots.get(itemsize, ()) if slots.holds(1, self._sent(slots, numel))), None)

    def slots_for_gather(self, rows: int, width: int, itemsize: int) -> PeerSlots | None:
        """The smallest slots that a gather of so many rows and columns of each rank fits; None where there are none."""
        whole = (slots for slots in self._slots.get(itemsize, ()) if not slots.in_parts)
        return next((slots for slots in whole if slots.holds(rows, self._sent(slots, width))), None)

    def _sent(self, slots: PeerSlots, width: int) -> int:
        """What counts as sent: all of it to each other rank, which takes as much longer."""
        return width if slots.in_parts else width * (self._world_size - 1)

    def swap(self, x: Tensor, piece: int) -> Tensor:
        """The other rank's piece of this number, of at most `PIECE_BYTES`, queued on the current stream.

        It stays until the exchange after the next. Not to be captured: turns are counted on the host.
        """
        place, other = self._half * INBOX_PIECES + piece, 1 - self._rank
        offset = (self._inbox_at + place * PIECE_BYTES) // x.itemsize
        self._handle.get_buffer(other, x.shape, x.dtype, storage_offset=offset).copy_(x)
        self._handle.put_signal(other, _CHANNEL)
        self._handle.wait_signal(other, _CHANNEL)
        ours: Tensor = self._handle.get_buffer(self._rank, x.shape, x.dtype, storage_offset=offset)
        return ours

    def end_exchange(self) -> None:
        """Call it once the worker's stream waits for all that read this exchange's pieces; the next one begins.

        It goes where those of the one before went: the other rank sent its last pieces after it had read those.
        """
        self._half ^= 1


def exchange_launches(world_size: int, dtype: torch.dtype, device: torch.device) -> list[Callable[[], object]]:
    """What launches every kernel of `PeerMemory`'s slots on tensors without memory, for each rank."""

    def launch(slots: PeerSlots) -> None:
        x = torch.empty(1, slots.block, dtype=dtype, device=device)
        peer_sum(x, slots)
        peer_sum(x, slots, x)
        if not slots.in_parts:
            peer_gather(x, slots)

    addresses = torch.empty(world_size, dtype=torch.int64, device=device)
    ranks = range(world_size) if world_size > 1 else ()
    every = [
        _slots(rank, world_size, addresses, slot_set, dtype.itemsize) for rank in ranks for slot_set in slot_sets(world_size)
    ]
    return [lambda slots=slots: launch(slots) for slots in every]  # type: ignore[misc]


def _slots(rank: int, world_size: int, addresses: Tensor, slot_set: SlotSet, itemsize: int) -> PeerSlots:
    num_bytes, block, probes, in_parts = slot_set
    capacity = num_bytes // itemsize
    calls = torch.zeros(capacity // block, dtype=torch.int32, device=addresses.device)
    return PeerSlots(rank, world_size, addresses, calls, capacity, block, itemsize, probes, in_parts)
