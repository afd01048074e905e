"""Sums and gathers among GPUs in one launch, through memory that they map from each other (CUDA IPC over NVLink or PCIe).

Every program of a rank writes its block of numbers into a slot of each other rank's memory, and waits until theirs have come
into its own: one trip, and no barrier besides. A slot holds a value that is never sent (-0.0, which is sent as 0.0) until its
number arrives, so that data are their own signal (as in the "Lamport" buffers of TensorRT-LLM). Who has read a number puts
that value back. A block has two slots, used in turn: a rank writes to one again only in its next exchange but one, and it
completes the one between only with what the other rank sent after it had cleared the slot.

Among more than two ranks a large sum goes in parts: of each block every rank adds up a part of its own and sends that on. It is
two trips, and 2 (n - 1) / n times the numbers where one trip takes n - 1 times.

Ranks launch the same exchanges in the same order, on one stream each.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda

from streamserve_kernels.launch import dependent_launch, kernel
from streamserve_kernels.peers.slots import VECTOR, PeerSlots

_VECTOR: tl.constexpr = tl.constexpr(VECTOR)

_WARP_NUMBERS = 256
"""Numbers of one warp."""


@triton.jit
def _numbers(x, WORD: tl.constexpr, EMPTY: tl.constexpr):
    """The words that are sent for x."""
    word = x.to(WORD, bitcast=True)
    return tl.where(word == EMPTY, tl.zeros_like(word), word)


@triton.jit
def _send(value, slots_ptr, place, inside, RANK: tl.constexpr, WORLD: tl.constexpr, WORD: tl.constexpr):
    """Write a block of words to the other ranks."""
    for other in tl.static_range(WORLD):
        if other != RANK:
            base = tl.load(slots_ptr + other).to(tl.pointer_type(WORD))
            tl.store(tl.multiple_of(base, 16) + place, value, mask=inside)


@triton.jit
def _receive(slots_ptr, place, lanes, inside, RANK: tl.constexpr, PROBE: tl.constexpr, WORD: tl.constexpr, EMPTY: tl.constexpr):
    """Wait for a block of words from another rank, at `place` + lanes, and clear its slots."""
    base = tl.multiple_of(tl.load(slots_ptr + RANK).to(tl.pointer_type(WORD)), 16) + place
    if PROBE:
        # A part may be outside as a whole: nothing comes then.
        some = tl.max(inside.to(tl.int32), axis=0) != 0
        while tl.load(base, mask=some, other=0, volatile=True) == EMPTY:
            pass
    ptrs = base + lanes
    value = tl.load(ptrs, mask=inside, other=0, volatile=True)
    while tl.max((value == EMPTY).to(tl.int32), axis=0) != 0:
        value = tl.load(ptrs, mask=inside, other=0, volatile=True)
    tl.store(ptrs, tl.full(value.shape, EMPTY, WORD), mask=inside)
    return value


@kernel(do_not_specialize=["vectors"])
def _sum_kernel(
    x_ptr, residual_ptr, out_ptr, slots_ptr, calls_ptr, vectors, capacity,
    RANK: tl.constexpr, WORLD: tl.constexpr, SIZE: tl.constexpr, RESIDUAL: tl.constexpr,
    PROBE: tl.constexpr, WORD: tl.constexpr, EMPTY: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Add up one block of the ranks' x, in the order of ranks, onto the residual."""
    if PDL:
        cuda.gdc_launch_dependents()
    program = tl.program_id(0)
    start = program * SIZE
    lanes = tl.arange(0, SIZE)
    # Spelled as a multiple, which it is known by: otherwise numbers would be loaded one by one.
    inside = start + lanes < vectors * _VECTOR
    if PDL:
        cuda.gdc_wait()
    call = tl.load(calls_ptr + program)
    first = (call % 2) * WORLD * capacity + start
    x = tl.load(x_ptr + start + lanes, mask=inside, other=0.0)
    own = _numbers(x, WORD, EMPTY)
    _send(own, slots_ptr, first + RANK * capacity + lanes, inside, RANK, WORLD, WORD)
    total = tl.zeros([SIZE], tl.float32)
    for rank in tl.static_range(WORLD):
        if rank == RANK:
            value = own
        else:
            value = _receive(slots_ptr, first + rank * capacity, lanes, inside, RANK, PROBE, WORD, EMPTY)
        total += value.to(x.dtype, bitcast=True).to(tl.float32)
    if RESIDUAL:
        total += tl.load(residual_ptr + start + lanes, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + start + lanes, total.to(x.dtype), mask=inside)
    tl.store(calls_ptr + program, call + 1)


@kernel(do_not_specialize=["vectors"])
def _sum_in_parts_kernel(
    x_ptr, residual_ptr, out_ptr, slots_ptr, calls_ptr, vectors, capacity,
    RANK: tl.constexpr, WORLD: tl.constexpr, SIZE: tl.constexpr, RESIDUAL: tl.constexpr,
    PROBE: tl.constexpr, WORD: tl.constexpr, EMPTY: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Add up this rank's part of WORLD blocks, in the order of ranks, onto the residual; the others' parts come added up."""
    if PDL:
        cuda.gdc_launch_dependents()
    program = tl.program_id(0)
    lanes = tl.arange(0, SIZE)
    start = program * WORLD * SIZE
    end = vectors * _VECTOR
    if PDL:
        cuda.gdc_wait()
    call = tl.load(calls_ptr + program)
    # Of a sender's slots, the first half is for its numbers and the second for its sums.
    first = (call % 2) * WORLD * capacity + program * SIZE
    half = capacity // 2
    for part in tl.static_range(WORLD):
        if part != RANK:
            at = start + part * SIZE + lanes
            inside = at < end
            word = _numbers(tl.load(x_ptr + at, mask=inside, other=0.0), WORD, EMPTY)
            base = tl.load(slots_ptr + part).to(tl.pointer_type(WORD))
            tl.store(tl.multiple_of(base, 16) + first + RANK * capacity + lanes, word, mask=inside)
    own = start + RANK * SIZE + lanes
    inside = own < end
    x = tl.load(x_ptr + own, mask=inside, other=0.0)
    total = tl.zeros([SIZE], tl.float32)
    if RESIDUAL:
        residual = tl.load(residual_ptr + own, mask=inside, other=0.0).to(tl.float32)
    for rank in tl.static_range(WORLD):
        if rank == RANK:
            total += x.to(tl.float32)
        else:
            word = _receive(slots_ptr, first + rank * capacity, lanes, inside, RANK, PROBE, WORD, EMPTY)
            total += word.to(x.dtype, bitcast=True).to(tl.float32)
    if RESIDUAL:
        total += residual
    sums = _numbers(total.to(x.dtype), WORD, EMPTY)
    _send(sums, slots_ptr, first + RANK * capacity + half + lanes, inside, RANK, WORLD, WORD)
    tl.store(out_ptr + own, sums.to(x.dtype, bitcast=True), mask=inside)
    for rank in tl.static_range(WORLD):
        if rank != RANK:
            at = start + rank * SIZE + lanes
            inside = at < end
            word = _receive(slots_ptr, first + rank * capacity + half, lanes, inside, RANK, PROBE, WORD, EMPTY)
            tl.store(out_ptr + at, word.to(x.dtype, bitcast=True), mask=inside)
    tl.store(calls_ptr + program, call + 1)


@kernel(do_not_specialize=["vectors"])
def _gather_kernel(
    x_ptr, out_ptr, slots_ptr, calls_ptr, vectors, capacity,
    RANK: tl.constexpr, WORLD: tl.constexpr, SIZE: tl.constexpr, PROBE: tl.constexpr, WORD: tl.constexpr, EMPTY: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Put one block of a row of the ranks' x side by side."""
    if PDL:
        cuda.gdc_launch_dependents()
    row = tl.program_id(0)
    width = vectors * _VECTOR
    columns = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    inside = columns < width
    program = row * tl.num_programs(1) + tl.program_id(1)
    start = program * SIZE
    lanes = tl.arange(0, SIZE)
    if PDL:
        cuda.gdc_wait()
    call = tl.load(calls_ptr + program)
    first = (call % 2) * WORLD * capacity + start
    x = tl.load(x_ptr + row.to(tl.int64) * width + columns, mask=inside, other=0.0)
    own = _numbers(x, WORD, EMPTY)
    _send(own, slots_ptr, first + RANK * capacity + lanes, inside, RANK, WORLD, WORD)
    out_ptrs = out_ptr + row.to(tl.int64) * WORLD * width + columns
    for rank in tl.static_range(WORLD):
        if rank == RANK:
            value = own
        else:
            value = _receive(slots_ptr, first + rank * capacity, lanes, inside, RANK, PROBE, WORD, EMPTY)
        tl.store(out_ptrs + rank * width, value.to(x.dtype, bitcast=True), mask=inside)
    tl.store(calls_ptr + program, call + 1)


def peer_sum(x: torch.Tensor, slots: PeerSlots, residual: torch.Tensor | None = None) -> torch.Tensor:
    """`dispatch.peer_sum` in one launch."""
    out = torch.empty_like(x)
    numel = x.numel()
    sums, size = (_sum_in_parts_kernel, slots.world_size * slots.block) if slots.in_parts else (_sum_kernel, slots.block)
    sums[(triton.cdiv(numel, size),)](
        x, residual, out, slots.addresses, slots.calls, numel // VECTOR, slots.capacity,
        RANK=slots.rank, WORLD=slots.world_size, SIZE=slots.block, RESIDUAL=residual is not None, **_words(slots),
        num_warps=max(1, slots.block // _WARP_NUMBERS), **dependent_launch(x.device),
    )  # fmt: skip
    return out


def peer_gather(x: torch.Tensor, slots: PeerSlots) -> torch.Tensor:
    """`dispatch.peer_gather` in one launch."""
    rows, width = x.shape
    out = x.new_empty(rows, slots.world_size * width)
    _gather_kernel[(rows, triton.cdiv(width, slots.block))](
        x, out, slots.addresses, slots.calls, width // VECTOR, slots.capacity,
        RANK=slots.rank, WORLD=slots.world_size, SIZE=slots.block, **_words(slots),
        num_warps=max(1, slots.block // _WARP_NUMBERS), **dependent_launch(x.device),
    )  # fmt: skip
    return out


def _words(slots: PeerSlots) -> dict[str, object]:
    """How to wait; integers as wide as the numbers, and the one whose bits are those of -0.0."""
    word, empty = (tl.int32, -(1 << 31)) if slots.itemsize == 4 else (tl.int16, -(1 << 15))
    return {"PROBE": slots.probes, "WORD": word, "EMPTY": empty}
