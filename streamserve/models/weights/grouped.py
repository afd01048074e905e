"""Matrices stored as small integers with a scale for every group of columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from streamserve_kernels import INT4_GROUP, Int4Weight, pack_eight_bits, pack_four_bits


@dataclass(frozen=True)
class GroupedIntegers:
    """The matrix scale * (quants - 8) + zero of 4-bit integers, or scale * quants of 8-bit ones, which have no zero.

    quants       [rows, columns]       uint8 with values 0..15, or int8
    scale, zero  [rows, columns / 32]  of any float dtype
    """

    quants: Tensor
    scale: Tensor
    zero: Tensor | None

    def part(self, rows: slice, columns: slice) -> GroupedIntegers:
        """A rectangle of it, whose columns begin and end between groups."""
        groups = slice(columns.start // INT4_GROUP, columns.stop // INT4_GROUP)
        zero = None if self.zero is None else self.zero[rows, groups]
        return GroupedIntegers(self.quants[rows, columns], self.scale[rows, groups], zero)

    def pack(self, expanded: Tensor) -> Int4Weight:
        """As a kernel multiplies it. expanded [rows, columns] bf16, overwritten with the matrix; rows a multiple of 16."""
        if self.zero is None:
            return pack_eight_bits(self.quants, self.scale, expanded)
        return pack_four_bits(self.quants, self.scale, self.zero, expanded)


def join_rows(parts: Sequence[GroupedIntegers]) -> GroupedIntegers:
    """Matrices of as many columns and of one kind, below each other."""
    zeros = [part.zero for part in parts if part.zero is not None]
    return GroupedIntegers(
        torch.cat([part.quants for part in parts]),
        torch.cat([part.scale for part in parts]),
        torch.cat(zeros) if zeros else None,
    )


@dataclass(frozen=True)
class FourBits:
    """The matrix scale * (quants - zero) of 4-bit integers in groups of columns.

    quants  [rows, columns]  uint8 with values 0..15
    scale   [rows, groups]   of any float dtype
    zero    [rows, groups]   uint8; None where all are 8
    order   [columns]        int64: which column of the model's weight each one here is, those of a group side by side; None for
                             columns that lie as in the model
    """

    quants: Tensor
    scale: Tensor
    zero: Tensor | None = None
    order: Tensor | None = None

    @classmethod
    def of_groups(cls, quants: Tensor, scale: Tensor, zero: Tensor | None, group_of: Tensor | None) -> FourBits:
        """group_of  [columns] of the model's weight: their groups, in any order; None where they follow each other"""
        if group_of is None:
            return cls(quants, scale, zero)
        order = torch.argsort(group_of, stable=True)
        return cls(quants[:, order], scale, zero, order)

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return self.quants.shape[1] // self.scale.shape[1]

    def numbers(self) -> Tensor:
        """The matrix, in fp32, with columns as in the model."""
        zero = 8.0 if self.zero is None else self.zero.float().repeat_interleave(self.group, 1)
        numbers = (self.quants.float() - zero) * self.scale.float().repeat_interleave(self.group, 1)
        return numbers if self.order is None else torch.empty_like(numbers).index_copy_(1, self.order, numbers)

    def in_groups_of_32(self) -> GroupedIntegers:
        """The same, as the kernel of a CPU takes it; columns must lie as in the model."""
        scale = self.scale.float().repeat_interleave(self.group // INT4_GROUP, 1)
        if self.zero is None:
            return GroupedIntegers(self.quants, scale, torch.zeros_like(scale))
        zero = self.zero.float().repeat_interleave(self.group // INT4_GROUP, 1)
        return GroupedIntegers(self.quants, scale, (8 - zero) * scale)
