"""Random arguments that a piece is traced with and compared by."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.export import Dim

from streamserve.models.aot.pieces import Piece
from streamserve.models.aot.shape import LayerShape
from streamserve.models.aot.units import UNIT_TOKENS, attention_units
from streamserve_kernels import INT4_FEW_ROWS

ROWS = 8
TOKENS = 2 * UNIT_TOKENS - 3
"""Two units, the last block not full."""


class Example(NamedTuple):
    """A piece, arguments to run it with, and for each but the weights which of its sizes vary.

    stand_ins  the weights as tracing takes them: it can't look into oneDNN's
    """

    piece: Piece
    arguments: tuple[Tensor, ...]
    dynamic: tuple[object, ...]
    weights: list[Tensor]
    stand_ins: list[Tensor]


def rows_of(name: str) -> int:
    """How many rows are enough to trace a piece by, and not more than it takes."""
    return INT4_FEW_ROWS if name == "decode_few" else ROWS


def example(name: str, piece: Piece, shape: LayerShape, num_rows: int) -> Example:
    """Of the piece of this name."""
    arguments, dynamic = _arguments(name, shape, num_rows)
    reals, stand_ins = [each.real for each in piece.samples], [each.stand_in for each in piece.samples]
    return Example(piece, arguments, dynamic, reals, stand_ins)


def _arguments(name: str, shape: LayerShape, num_rows: int) -> tuple[tuple[Tensor, ...], tuple[object, ...]]:
    attention = shape.attention
    rows = Dim("rows")
    hidden = _random(shape, num_rows, shape.hidden_size)
    if name == "after":
        attended = _random(shape, num_rows, attention.q_heads * attention.head_dim)
        return (hidden, attended), ({0: rows}, {0: rows})
    num_blocks = num_rows * -(-TOKENS // attention.block_size)
    kv_cache = _random(shape, num_blocks, 2, attention.kv_heads, attention.block_size, attention.head_dim)
    tables = torch.arange(num_blocks, dtype=torch.int32).view(num_rows, -1)
    slots = tables[:, -1].long() * attention.block_size + (TOKENS - 1) % attention.block_size
    arguments = (hidden, kv_cache, torch.rand(num_rows, attention.planes, attention.rot_dim), slots)
    sizes = ({0: rows}, {0: Dim("blocks")}, {0: rows}, {0: rows})
    if name == "before":
        return arguments, sizes
    units, width = Dim("units"), Dim("width") if attention.block_size < UNIT_TOKENS else None
    attended_by = attention_units(attention, torch.full((num_rows,), TOKENS - 1), tables, None, num_blocks)
    per_unit = ({0: units}, {0: units, 1: width}, {0: units}, {0: units}, {0: rows, 1: Dim("most")})
    return (*arguments, *attended_by), (*sizes, *per_unit)


def _random(shape: LayerShape, *size: int) -> Tensor:
    return torch.randn(size).to(shape.torch_dtype)
