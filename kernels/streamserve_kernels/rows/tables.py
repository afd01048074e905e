"""Rows: the device-resident state of running sequences, one line of 32-bit words per sequence.

Everything a step needs to know about a sequence sits in its row, so that the host sends only what changed: token ids and their
number, block tables and sampling parameters. Floats are stored by their bits. The last row is padding: steps padded to a
captured size point at it; it owns no blocks, always has one token, and what is written there is never read for a real sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_PARAMETERS = 16
_ALIGNMENT = 32

PADDING_TOKENS = 1
"""Tokens of the padding row."""

BEHIND_TOKENS = -1
"""The first word of a segment of `apply_row_deltas` that goes behind the row's last token."""


@dataclass(frozen=True, slots=True)
class RowLayout:
    """Which word of a row holds what.

    max_model_len  tokens of a sequence; a row has one more place, for the id sampled after the last one
    max_blocks     entries of a block table
    num_groups     layer groups, each with a block table of its own
    """

    max_model_len: int
    max_blocks: int
    num_groups: int = 1

    NUM_PROMPT_TOKENS = 0
    SEED_LOW = 1
    SEED_HIGH = 2
    TOP_K = 3
    TEMPERATURE = 4
    TOP_P = 5
    MIN_P = 6
    PRESENCE_PENALTY = 7
    FREQUENCY_PENALTY = 8
    REPETITION_PENALTY = 9
    NUM_TOKENS = 10
    NUM_PARAMETERS = 11
    BLOCK_TABLES = _PARAMETERS

    def block_table(self, group: int) -> int:
        """First word of the block table of a layer group."""
        return self.BLOCK_TABLES + group * self.max_blocks

    @property
    def token_ids(self) -> int:
        return self.block_table(self.num_groups)

    @property
    def words(self) -> int:
        """Words of one row, a multiple of 128 bytes."""
        return -(-(self.token_ids + self.max_model_len + 1) // _ALIGNMENT) * _ALIGNMENT


@dataclass(frozen=True, slots=True)
class RowTables:
    """The rows, and views of their columns; every view shares `state`'s memory and its row stride.

    state              [rows + 1, words]              int32
    token_ids          [rows + 1, max_model_len + 1]  int32, valid up to the tokens the sequence has, those in flight included
    block_tables       [rows + 1, num_groups, max_blocks]  int32
    num_prompt_tokens  [rows + 1]                     int32
    num_tokens         [rows + 1]                     int32, tokens the sequence has, those in flight included: steps advance it
    seed_low, seed_high  [rows + 1]                   int32, the bits of the 64-bit seed
    top_k              [rows + 1]                     int32, 0 when off
    temperature        [rows + 1]                     fp32, 0 for greedy
    top_p, min_p, presence_penalty, frequency_penalty, repetition_penalty  [rows + 1]  fp32
    """

    layout: RowLayout
    state: Tensor
    token_ids: Tensor
    block_tables: Tensor
    num_prompt_tokens: Tensor
    num_tokens: Tensor
    seed_low: Tensor
    seed_high: Tensor
    top_k: Tensor
    temperature: Tensor
    top_p: Tensor
    min_p: Tensor
    presence_penalty: Tensor
    frequency_penalty: Tensor
    repetition_penalty: Tensor

    @property
    def padding_row(self) -> int:
        return self.state.shape[0] - 1


def make_row_tables(
    num_rows: int, max_model_len: int, max_blocks: int, device: torch.device, *, num_groups: int = 1
) -> RowTables:
    """Tables for `num_rows` sequences and the padding row, zeroed but for the one token that each has."""
    layout = RowLayout(max_model_len, max_blocks, num_groups)
    state = torch.zeros(num_rows + 1, layout.words, dtype=torch.int32, device=device)
    state[:, layout.NUM_TOKENS] = PADDING_TOKENS
    floats = state.view(torch.float32)
    block_tables = state[:, layout.BLOCK_TABLES : layout.token_ids].unflatten(1, (num_groups, max_blocks))  # type: ignore[no-untyped-call]
    return RowTables(
        layout=layout,
        state=state,
        token_ids=state[:, layout.token_ids : layout.token_ids + max_model_len + 1],
        block_tables=block_tables,
        num_prompt_tokens=state[:, layout.NUM_PROMPT_TOKENS],
        num_tokens=state[:, layout.NUM_TOKENS],
        seed_low=state[:, layout.SEED_LOW],
        seed_high=state[:, layout.SEED_HIGH],
        top_k=state[:, layout.TOP_K],
        temperature=floats[:, layout.TEMPERATURE],
        top_p=floats[:, layout.TOP_P],
        min_p=floats[:, layout.MIN_P],
        presence_penalty=floats[:, layout.PRESENCE_PENALTY],
        frequency_penalty=floats[:, layout.FREQUENCY_PENALTY],
        repetition_penalty=floats[:, layout.REPETITION_PENALTY],
    )
