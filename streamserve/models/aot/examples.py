"""Random arguments that a piece is traced with and compared by."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim

from streamserve.models.aot.pieces import AfterAttention, BeforeAttention, DecodeLayer
from streamserve.models.aot.shape import LayerShape, LinearShape
from streamserve.models.aot.units import UNIT_TOKENS, attention_units
from streamserve_kernels import INT4_FEW_ROWS, INT4_GROUP

ROWS = 8
TOKENS = 2 * UNIT_TOKENS - 3
"""Two units, the last block not full."""


class Example(NamedTuple):
    """A piece, arguments to run it with, and for each but the weights which of its sizes vary.

    stand_ins  the weights as tracing takes them: it can't look into oneDNN's
    """

    piece: nn.Module
    arguments: tuple[Tensor, ...]
    dynamic: tuple[object, ...]
    weights: list[Tensor]
    stand_ins: list[Tensor]


def rows_of(name: str) -> int:
    """How many rows are enough to trace a piece by, and not more than it takes."""
    return INT4_FEW_ROWS if name == "decode_few" else ROWS


def example(name: str, shape: LayerShape, num_rows: int) -> Example:
    """Of the piece that `LayerKernels` calls so."""
    few = name == "decode_few"
    before, after = _weights_before(shape, few), _weights_after(shape, few)
    rows = Dim("rows")
    hidden = _random(shape, num_rows, shape.output.out_features)
    if name == "after":
        attended = _random(shape, num_rows, shape.output.in_features)
        return Example(AfterAttention(shape), (attended, hidden), ({0: rows}, {0: rows}), after.real, after.stand_ins)
    num_blocks = num_rows * -(-TOKENS // shape.block_size)
    kv_cache = _random(shape, num_blocks, 2, shape.kv_heads, shape.block_size, shape.head_dim)
    tables = torch.arange(num_blocks, dtype=torch.int32).view(num_rows, -1)
    slots = tables[:, -1].long() * shape.block_size + (TOKENS - 1) % shape.block_size
    arguments = (hidden, kv_cache, torch.rand(num_rows, 2, shape.rot_dim), slots)
    sizes = ({0: rows}, {0: Dim("blocks")}, {0: rows}, {0: rows})
    if name == "before":
        return Example(BeforeAttention(shape), arguments, sizes, before.real, before.stand_ins)
    units, width = Dim("units"), Dim("width") if shape.block_size < UNIT_TOKENS else None
    attended_by = attention_units(shape, torch.full((num_rows,), TOKENS - 1), tables, None, num_blocks)
    return Example(
        DecodeLayer(shape, few=few),
        (*arguments, *attended_by),
        (*sizes, {0: units}, {0: units, 1: width}, {0: units}, {0: units}, {0: rows, 1: Dim("most")}),
        before.real + after.real,
        before.stand_ins + after.stand_ins,
    )


def _weights_before(shape: LayerShape, few: bool) -> _Weights:
    weights = _Weights(shape, few)
    weights.add_norm(shape.qkv.in_features)
    weights.add(shape.qkv)
    for _ in range(2 if shape.qk_norm else 0):
        weights.add_norm(shape.head_dim)
    return weights


def _weights_after(shape: LayerShape, few: bool) -> _Weights:
    weights = _Weights(shape, few)
    weights.add(shape.output)
    weights.add_norm(shape.gate_up.in_features)
    weights.add(shape.gate_up)
    weights.add(shape.down)
    return weights


class _Weights:
    """Random weights, as pieces are run with and as they are traced with."""

    def __init__(self, shape: LayerShape, few: bool) -> None:
        self._shape = shape
        self._few = few
        self.real: list[Tensor] = []
        self.stand_ins: list[Tensor] = []

    def add_norm(self, size: int) -> None:
        self._add(_random(self._shape, size))

    def add(self, linear: LinearShape) -> None:
        if self._few and linear.digits:
            packed_features = linear.digits * linear.in_features
            self._add(torch.randint(0, 256, (linear.out_features, packed_features // 2), dtype=torch.uint8))
            self._add(_random(self._shape, packed_features // INT4_GROUP, linear.out_features, 2) / 100)
        else:
            plain = _random(self._shape, linear.out_features, linear.in_features) / linear.in_features**0.5
            self._add(plain, torch.ops.mkldnn._reorder_linear_weight(plain) if linear.form == "blocked" else None)
        if linear.bias:
            self._add(_random(self._shape, linear.out_features))

    def _add(self, stand_in: Tensor, real: Tensor | None = None) -> None:
        self.stand_ins.append(stand_in)
        self.real.append(stand_in if real is None else real)


def _random(shape: LayerShape, *size: int) -> Tensor:
    return torch.randn(size).to(shape.torch_dtype)
