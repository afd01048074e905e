"""Inputs for the Triton kernels, and how far they are from their references in fp32.

On a machine with a GPU the kernels run there; elsewhere in Triton's interpreter, which tests/conftest.py chooses.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from streamserve_kernels import StepSequences, StepTokens

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# bf16 is silently wrong in the interpreter.
DTYPES = [torch.float32, torch.float16, torch.bfloat16] if DEVICE.type == "cuda" else [torch.float32, torch.float16]
LIMITS = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 1e-2}


def triton_area(name: str) -> ModuleType:
    """A Triton module of the kernels; those of the package itself are imported only for tensors on a GPU."""
    return import_module(f"streamserve_kernels.{name}")


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal, different in every call."""
    return torch.randn(*shape, device=DEVICE).to(dtype)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """|actual - expected| / |expected|; infinite where something is not finite."""
    if not bool(torch.isfinite(actual).all()):
        return float("inf")
    difference = (actual.double() - expected.double()).norm() / expected.double().norm()
    return float(difference)


@dataclass(frozen=True)
class PagedBatch:
    """Sequences in a paged cache, decoding ones first.

    cache         every slot that no sequence owns holds NaN
    finite_cache  the same with zeros there, in fp32, for the reference
    positions, slots  of the step's tokens
    """

    cache: Tensor
    block_tables: Tensor
    seq_lens: Tensor
    query_start: Tensor
    positions: Tensor
    slots: Tensor
    num_decodes: int
    max_seq_len: int

    @property
    def finite_cache(self) -> Tensor:
        return self.cache.float().nan_to_num()

    @property
    def num_tokens(self) -> int:
        return self.positions.shape[0]

    @property
    def sequences(self) -> StepSequences:
        return StepSequences(self.block_tables, self.seq_lens, self.query_start, self.num_decodes, self.max_seq_len)

    @property
    def reference_sequences(self) -> StepSequences:
        """The same for the reference, which reads all entries of a table."""
        return self.sequences._replace(block_tables=self.block_tables.clamp(max=self.cache.shape[0] - 1))

    def tokens(self, cos_sin: Tensor | None) -> StepTokens:
        return StepTokens(self.positions, cos_sin, self.slots)


def paged_batch(
    seq_lens: list[int], query_lens: list[int], *, kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype
) -> PagedBatch:
    """A cache with random keys and values of every token, in shuffled blocks; unused table entries are out of range."""
    counts = [-(-length // block_size) for length in seq_lens]
    order = torch.randperm(sum(counts) + 1)
    tables = torch.full((len(seq_lens), max(counts) + 1), 1 << 30, dtype=torch.int32)
    cache = torch.full((sum(counts) + 1, 2, kv_heads, block_size, head_dim), float("nan"), dtype=dtype)
    used = 0
    for row, (length, count) in enumerate(zip(seq_lens, counts, strict=True)):
        tables[row, :count] = order[used : used + count]
        used += count
        for index in range(count):
            filled = min(block_size, length - index * block_size)
            cache[tables[row, index], :, :, :filled] = torch.randn(2, kv_heads, filled, head_dim).to(dtype)
    positions = torch.cat([torch.arange(length - count, length) for length, count in zip(seq_lens, query_lens, strict=True)])
    rows = torch.repeat_interleave(torch.arange(len(seq_lens)), torch.tensor(query_lens))
    slots = tables[rows, positions // block_size].long() * block_size + positions % block_size
    return PagedBatch(
        cache=cache.to(DEVICE),
        block_tables=tables.to(DEVICE),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32, device=DEVICE),
        query_start=torch.tensor([0, *torch.tensor(query_lens).cumsum(0).tolist()], dtype=torch.int32, device=DEVICE),
        positions=positions.to(DEVICE),
        slots=slots.to(DEVICE),
        num_decodes=next((index for index, count in enumerate(query_lens) if count != 1), len(query_lens)),
        max_seq_len=max(seq_lens),
    )
