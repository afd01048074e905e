"""How the sequences of a decode step attend: in units, the same in every layer with the same window, made once a step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from streamserve.models.aot.shape import AttentionShape

UNIT_TOKENS = 128
"""Tokens that are attended to in one unit, in whole blocks."""


class Units(NamedTuple):
    """The fields of a `DecodeStep` but for its slots, in its order."""

    owners: Tensor
    tables: Tensor
    first: Tensor
    end: Tensor
    units: Tensor


def attention_units(
    shape: AttentionShape, positions: Tensor, block_tables: Tensor, window: int | None, num_blocks: int
) -> Units:
    """Of a step with one token of each sequence.

    positions     [rows]  int64, of each sequence's new token, which is its last
    block_tables  [rows, max_blocks]  int32, unused entries may hold anything
    window        a token sees itself and the window - 1 tokens before it; None sees all
    num_blocks    of the cache
    """
    block, span = shape.block_size, max(1, UNIT_TOKENS // shape.block_size)
    # In Python: for a few dozen units that takes less time than the calls of torch would.
    owners: list[int] = []
    begins: list[int] = []
    first: list[int] = []
    end: list[int] = []
    units: list[range] = []
    width = 1
    for row, position in enumerate(positions.tolist()):
        seen = 0 if window is None else max(0, position + 1 - window)
        blocks = range(seen // block, position // block + 1, span)
        units.append(range(len(owners), len(owners) + len(blocks)))
        owners += [row] * len(blocks)
        begins += blocks
        first += [seen - begin * block for begin in blocks]
        end += [position + 1 - begin * block for begin in blocks]
        width = max(width, min(span, blocks.stop - blocks.start))
    most = max(len(numbers) for numbers in units)
    owner = torch.tensor(owners)
    columns = torch.tensor(begins).unsqueeze(1) + torch.arange(width)
    tables = block_tables[owner].gather(1, columns.clamp_(max=block_tables.shape[1] - 1))
    return Units(
        owners=owner,
        tables=tables.long().clamp_(0, num_blocks - 1),
        first=torch.tensor(first),
        end=torch.tensor(end),
        units=torch.tensor([[*numbers, *[-1] * (most - len(numbers))] for numbers in units]),
    )
