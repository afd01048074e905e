"""What attention is told: of a step, its tokens and sequences; of a layer, its heads and how they score. Plain values."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class StepTokens(NamedTuple):
    """The tokens of a step, sequence after sequence.

    positions  [tokens]              int64
    cos_sin    [positions, rot_dim]  fp32, cosines then sines; None for layers without rotary embeddings
    slots      [tokens]              int64, place in the KV cache; a negative slot is padding and written nowhere
    """

    positions: Tensor
    cos_sin: Tensor | None
    slots: Tensor

    def after(self, num_tokens: int) -> StepTokens:
        """Those that follow the first ones."""
        return StepTokens(self.positions[num_tokens:], self.cos_sin, self.slots[num_tokens:])


class StepSequences(NamedTuple):
    """The sequences of a step, those with a single query first.

    block_tables  [sequences, max_blocks]  int32, entries past a sequence's end may hold anything, those before its window
                  any block
    seq_lens      [sequences]      int32, tokens in the cache including this step's
    query_start   [sequences + 1]  int32, prefix sums of query lengths; a sequence's queries are its last tokens
    num_decodes   how many leading sequences have exactly one query
    max_seq_len   the largest of seq_lens, or a bound for it, for choosing launches
    """

    block_tables: Tensor
    seq_lens: Tensor
    query_start: Tensor
    num_decodes: int
    max_seq_len: int


class QueryScaling(NamedTuple):
    """Queries grow with their position: times 1 + beta * log(1 + floor(position / length)), after the rotation.

    Scalable-Softmax (Nakanishi, 2025, https://arxiv.org/abs/2501.19399), in steps of `length` tokens.
    """

    beta: float
    length: int

    def factors(self, positions: Tensor) -> Tensor:
        """Of queries at these positions, [tokens] fp32."""
        return 1 + self.beta * torch.log1p((positions // self.length).float())


class Heads(NamedTuple):
    """The heads of a layer, and what becomes of them before they attend.

    q_heads         a multiple of kv_heads
    q_norm, k_norm  [head_dim]  RMS norm of every query and key head before the rotation, with `eps` (Qwen3, Gemma 3)
    norm_rotated    the norm follows the rotation instead (HunYuan)
    interleaved     the rotation pairs neighbouring dimensions instead of halves (RoFormer's order; GLM, ERNIE 4.5)
    query_scaling   of the queries, last (Ministral 3)
    """

    q_heads: int
    kv_heads: int
    head_dim: int
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    eps: float = 1e-6
    norm_rotated: bool = False
    interleaved: bool = False
    query_scaling: QueryScaling | None = None

    @property
    def width(self) -> int:
        """Columns of the fused projection."""
        return (self.q_heads + 2 * self.kv_heads) * self.head_dim


class Scoring(NamedTuple):
    """How the queries of a layer score its keys.

    scale    factor of the scores
    window   a token sees itself and the window - 1 tokens before it (Mistral, Gemma 3); None sees all
    softcap  scores become softcap * tanh(score / softcap) (Gemma 2)
    sinks    [q_heads] fp32: a score of each head beside those of the keys, which takes its share of the weights and adds
             nothing (attention sinks; gpt-oss, OpenAI, 2025, https://arxiv.org/abs/2508.10925)
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
