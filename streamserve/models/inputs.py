"""What a model needs to know about one step, as tensors on its device. Made by the worker, read by every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from streamserve_kernels import Shared, StepSequences, StepTokens


@dataclass(frozen=True)
class StepInputs:
    """The tokens of one step, sequence after sequence, those with a single token first.

    token_ids        [tokens]                 int64 or int32
    positions        [tokens]                 int64, place of each token in its sequence
    slot_mapping     per layer: [tokens]                 int64, place in the KV cache (block * block_size + offset); negative is
                     padding
    block_tables     per layer: [sequences, max_blocks]  int32, entries past a sequence's end and before a layer's window may be
                     any block. Layers that share tables have the same tensor
    seq_lens         [sequences]              int32, tokens in the cache once this step has written its own
    query_start      [sequences + 1]          int32, prefix sums of the tokens per sequence
    num_decodes      leading sequences with exactly one token
    max_seq_len      largest of seq_lens
    shared           what the layers compute alike; a step's own
    """

    token_ids: Tensor
    positions: Tensor
    slot_mapping: Sequence[Tensor]
    block_tables: Sequence[Tensor]
    seq_lens: Tensor
    query_start: Tensor
    num_decodes: int
    max_seq_len: int
    shared: Shared = field(default_factory=Shared)

    def tokens(self, layer: int, cos_sin: Tensor | None) -> StepTokens:
        """For the attention of a layer that rotates by `cos_sin`, [positions, rot_dim]."""
        return StepTokens(self.positions, cos_sin, self.slot_mapping[layer])

    def sequences(self, layer: int) -> StepSequences:
        """For the attention of a layer."""
        return StepSequences(self.block_tables[layer], self.seq_lens, self.query_start, self.num_decodes, self.max_seq_len)
