"""Exchanges through mapped memory, one rank's part at a time: what the others send is in its slots before it looks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from streamserve_kernels import PeerSlots, clear_slots, slot_bytes
from tests.support.kernel_cases import DEVICE, DTYPES, LIMITS, random, relative_error, triton_area

peer_memory = triton_area("peers.memory")

WORLD = 3
CAPACITY = 2048


class Ranks:
    """The memories of all ranks on one device, and what each sees of them."""

    def __init__(self, dtype: torch.dtype, block: int, *, probes: bool, in_parts: bool = False) -> None:
        size = slot_bytes(WORLD, CAPACITY, dtype.itemsize)
        self.memories = [torch.empty(size, dtype=torch.uint8, device=DEVICE) for _ in range(WORLD)]
        for memory in self.memories:
            clear_slots(memory, dtype.itemsize)
        addresses = torch.tensor([memory.data_ptr() for memory in self.memories], device=DEVICE)
        self.dtype = dtype
        self.slots = [
            PeerSlots(
                rank,
                WORLD,
                addresses,
                torch.zeros(CAPACITY // block, dtype=torch.int32, device=DEVICE),
                CAPACITY,
                block,
                dtype.itemsize,
                probes,
                in_parts,
            )
            for rank in range(WORLD)
        ]

    def sent(self, rank: int, turn: int, sender: int) -> Tensor:
        """The slots of a rank into which another one sends: [CAPACITY]."""
        return self.memories[rank].view(self.dtype).view(2, WORLD, CAPACITY)[turn, sender]

    def deliver(self, rank: int, turn: int, parts: list[Tensor], row_size: int) -> None:
        """Put what the others send into a rank's slots, rows `row_size` numbers apart."""
        for sender, part in enumerate(parts):
            if sender != rank:
                rows = self.sent(rank, turn, sender)[: part.shape[0] * row_size].view(part.shape[0], row_size)
                # As it is sent, -0.0 is 0.0.
                rows[:, : part.shape[1]] = part + 0.0

    def is_empty(self, rank: int) -> bool:
        words = torch.int32 if self.dtype.itemsize == 4 else torch.int16
        return bool((self.memories[rank].view(words) == torch.iinfo(words).min).all())


@pytest.fixture(params=[(256, False), (1024, True)], ids=["few", "many"])
def settings(request: pytest.FixtureRequest) -> tuple[int, bool]:
    value: tuple[int, bool] = request.param
    return value


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sum_is_that_of_all_ranks_and_the_residual_with_the_same_bits_on_each(
    dtype: torch.dtype, settings: tuple[int, bool]
) -> None:
    ranks = Ranks(dtype, settings[0], probes=settings[1])
    for turn in (0, 1, 0):
        parts, residual = [random(3, 296, dtype=dtype) for _ in range(WORLD)], random(3, 296, dtype=dtype)
        parts[0][0, :3] = -0.0
        totals = []
        for rank in range(WORLD):
            ranks.deliver(rank, turn, parts, 296)
            totals.append(peer_memory.peer_sum(parts[rank], ranks.slots[rank], residual))
            assert ranks.is_empty(rank), "what was read has made room"
            for other in range(WORLD):
                if other != rank:
                    assert torch.equal(ranks.sent(other, turn, rank)[: 3 * 296].view(3, 296), parts[rank])
                    clear_slots(ranks.memories[other], dtype.itemsize)
        assert relative_error(totals[0], sum(part.float() for part in parts) + residual.float()) < LIMITS[dtype]
        assert all(torch.equal(total, totals[0]) for total in totals)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sum_in_parts_sends_each_rank_its_part_and_all_of_them_the_sum_of_this_one(dtype: torch.dtype) -> None:
    block, half, numel = 256, CAPACITY // 2, 2 * WORLD * 256 + 264
    ranks = Ranks(dtype, block, probes=True, in_parts=True)
    for turn in (0, 1, 0):
        parts, residual = [random(1, numel, dtype=dtype) for _ in range(WORLD)], random(1, numel, dtype=dtype)
        expected = (sum(part.float() for part in parts) + residual.float()).to(dtype)
        # The blocks that a rank adds up, by program: the last has none for the third rank, and eight numbers for the second.
        owned = [range(rank * block, numel, WORLD * block) for rank in range(WORLD)]
        totals = []
        for rank in range(WORLD):
            for sender in range(WORLD):
                if sender != rank:
                    slots = ranks.sent(rank, turn, sender)
                    for place, at in enumerate(owned[rank]):
                        part = parts[sender][0, at : at + block]
                        slots[place * block : place * block + len(part)] = part
                    for place, at in enumerate(owned[sender]):
                        summed = expected[0, at : at + block]
                        slots[half + place * block : half + place * block + len(summed)] = summed
            totals.append(peer_memory.peer_sum(parts[rank], ranks.slots[rank], residual))
            assert ranks.is_empty(rank), "what was read has made room"
            for other in range(WORLD):
                if other != rank:
                    sent = ranks.sent(other, turn, rank)
                    for place, at in enumerate(owned[other]):
                        part = parts[rank][0, at : at + block]
                        assert torch.equal(sent[place * block : place * block + len(part)], part)
                    for place, at in enumerate(owned[rank]):
                        summed = totals[rank][0, at : at + block]
                        assert torch.equal(sent[half + place * block : half + place * block + len(summed)], summed)
                    clear_slots(ranks.memories[other], dtype.itemsize)
        assert all(relative_error(total, expected.float()) < LIMITS[dtype] for total in totals)


def test_zeros_of_either_sign_are_sent_as_numbers() -> None:
    ranks = Ranks(torch.float32, 256, probes=False)
    zeros = torch.full((1, 8), -0.0, device=DEVICE)
    ranks.deliver(0, 0, [zeros] * WORLD, 8)
    assert torch.equal(peer_memory.peer_sum(zeros, ranks.slots[0]), zeros)
    assert (ranks.sent(1, 0, 0)[:8].view(torch.int32) == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gather_puts_the_rows_of_ranks_side_by_side(dtype: torch.dtype, settings: tuple[int, bool]) -> None:
    block = settings[0]
    ranks = Ranks(dtype, block, probes=settings[1])
    parts = [random(2, 296, dtype=dtype) for _ in range(WORLD)]
    for rank in range(WORLD):
        ranks.deliver(rank, 0, parts, -(-296 // block) * block)
        assert torch.equal(peer_memory.peer_gather(parts[rank], ranks.slots[rank]), torch.cat(parts, dim=1))
        for memory in ranks.memories:
            clear_slots(memory, dtype.itemsize)


def test_slots_hold_what_they_can_and_only_whole_vectors() -> None:
    slots = Ranks(torch.float32, 256, probes=False).slots[0]
    assert slots.holds(2, 1024)
    assert not slots.holds(3, 1024)
    assert slots.holds(8, 200)
    assert not slots.holds(9, 200), "each row begins a block"
    assert not slots.holds(1, 12)
    in_parts = Ranks(torch.float32, 256, probes=False, in_parts=True).slots[0]
    assert in_parts.holds(1, 4 * WORLD * 256)
    assert not in_parts.holds(1, 4 * WORLD * 256 + 8)
