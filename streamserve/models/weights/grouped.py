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
