"""The memory through which ranks exchange numbers, as one of them sees it; `memory` says how."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

VECTOR = 8
"""Numbers that are moved at a time."""


@dataclass(frozen=True)
class PeerSlots:
    """Slots of every rank: [2, world_size, capacity] numbers each, by turn and sender.

    addresses  [world_size] int64, where each rank's slots are in this one's address space
    calls      [capacity / block] int32, exchanges that each block has been through
    capacity   numbers that one rank sends another in one exchange
    block      numbers that one program exchanges, in every exchange: a block's slots are those of its program
    itemsize   bytes of a number
    probes     a program watches one of its numbers until that has come, and then all: where many wait, watching delays
    in_parts   for sums alone, of which every rank adds up a part: a program takes a block for each rank, and half of the
               capacity is for the parts
    """

    rank: int
    world_size: int
    addresses: Tensor
    calls: Tensor
    capacity: int
    block: int
    itemsize: int
    probes: bool
    in_parts: bool = False

    def holds(self, rows: int, width: int) -> bool:
        """Whether so much fits one exchange, in whole vectors; each row of a gather begins a block of its own."""
        per_program = self.block * (self.world_size if self.in_parts else 1)
        capacity = self.capacity * self.world_size // 2 if self.in_parts else self.capacity
        return width % VECTOR == 0 and rows * -(-width // per_program) * per_program <= capacity


def slot_bytes(world_size: int, capacity: int, itemsize: int) -> int:
    """Bytes of one rank's slots."""
    return 2 * world_size * capacity * itemsize


def clear_slots(memory: Tensor, itemsize: int) -> None:
    """Mark every slot of this rank's memory [bytes] uint8 as empty: -0.0 in each of its numbers."""
    word, empty = (torch.int32, -(1 << 31)) if itemsize == 4 else (torch.int16, -(1 << 15))
    memory.view(word).fill_(empty)
