"""Weights of 4-bit integers as public tools store them, written here bit by bit."""

from __future__ import annotations

import torch
from torch import Tensor

Stored = tuple[dict[str, Tensor], Tensor]
"""A weight's tensors by the ends of their names, and in fp64 the numbers that they stand for."""

AWQ_ROWS = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight rows each four bits of a word are, from the lowest."""


def words(integers: Tensor, dim: int, order: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """Eight integers of a dimension in an int32, the first in the lowest bits."""
    apart = integers.long().unflatten(dim, (-1, 8)).movedim(dim + 1, -1)
    word = sum(apart[..., row] << 4 * place for place, row in enumerate(order))
    assert isinstance(word, Tensor)
    return torch.where(word >= 1 << 31, word - (1 << 32), word).int()


def integers(rows: int, columns: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random ones [rows, columns], scales and zero points [rows, groups]."""
    groups = columns // group
    quants, zero = torch.randint(0, 16, (rows, columns)), torch.randint(1, 16, (rows, groups))
    return quants, (torch.rand(rows, groups) / 16 + 0.01).half(), zero


def numbers(quants: Tensor, scale: Tensor, zero: Tensor | int, group_of: Tensor) -> Tensor:
    zero_of = zero if isinstance(zero, int) else zero[:, group_of].double()
    return (quants.double() - zero_of) * scale[:, group_of].double()


def gptq(rows: int, columns: int, group: int = 32, *, sym: bool = True, act_order: bool = False) -> Stored:
    """AutoGPTQ's: zero points are stored less one."""
    quants, scale, zero = integers(rows, columns, group)
    zero = torch.full_like(zero, 8) if sym else zero
    group_of = torch.arange(columns) // group
    if act_order:
        group_of = group_of[torch.randperm(columns, generator=torch.Generator().manual_seed(columns))]
    return gptq_tensors(quants, scale, zero, group_of), numbers(quants, scale, 8 if sym else zero, group_of)


def gptq_tensors(quants: Tensor, scale: Tensor, zero: Tensor, group_of: Tensor) -> dict[str, Tensor]:
    return {
        "qweight": words(quants.t(), 0),
        "qzeros": words(zero.t() - 1, 1),
        "scales": scale.t().contiguous(),
        "g_idx": group_of.int(),
    }


def awq(rows: int, columns: int, group: int = 32) -> Stored:
    """AutoAWQ's for GEMM."""
    quants, scale, zero = integers(rows, columns, group)
    return awq_tensors(quants, scale, zero), numbers(quants, scale, zero, torch.arange(columns) // group)


def awq_tensors(quants: Tensor, scale: Tensor, zero: Tensor) -> dict[str, Tensor]:
    return {
        "qweight": words(quants.t(), 1, AWQ_ROWS),
        "qzeros": words(zero.t(), 1, AWQ_ROWS),
        "scales": scale.t().contiguous(),
    }


def pack_quantized(rows: int, columns: int, group: int = 32, *, symmetric: bool = True, act_order: bool = False) -> Stored:
    """Those of compressed-tensors."""
    quants, scale, zero = integers(rows, columns, group)
    group_of = torch.arange(columns) // group
    tensors = {
        "weight_packed": words(quants, 1),
        "weight_scale": scale,
        "weight_shape": torch.tensor([rows, columns]),
    }
    if not symmetric:
        tensors["weight_zero_point"] = words(zero, 0)
    if act_order:
        group_of = group_of[torch.randperm(columns, generator=torch.Generator().manual_seed(columns))]
        tensors["weight_g_idx"] = group_of.int()
    return tensors, numbers(quants, scale, 8 if symmetric else zero, group_of)
