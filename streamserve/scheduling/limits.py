"""How much one scheduler may hand out: blocks, rows, tokens per step, places in the queue. Fixed at start."""

from __future__ import annotations

import msgspec

from streamserve.config import SchedulingPolicy
from streamserve.errors import ConfigError
from streamserve.kv_groups import KvGroups


class SchedulerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The room a scheduler works in; fields as in `EngineConfig`, with what only the loaded model can tell filled in.

    num_blocks     KV blocks in all, numbered from 0
    windows        of the model's layer groups, as in `KvGroups`
    max_num_seqs   rows
    max_model_len  tokens of prompt and output together
    vocab_size     ids that the model has embeddings of: from 0 up; by default as many as a row can hold
    max_scored_tokens  prompt tokens with log-probabilities in a step that others take a token of: each of them is the work of a
                       sampled one besides, and those others wait

    Raises `ConfigError` when a step could not hold what it must.
    """

    num_blocks: int
    block_size: int
    windows: tuple[int | None, ...] = (None,)
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    vocab_size: int = 1 << 31
    max_queue: int = 4096
    max_queue_tokens: int = 1 << 24
    max_queue_time_s: float | None = None
    policy: SchedulingPolicy = "fcfs"
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    max_scored_tokens: int = 256

    def __post_init__(self) -> None:
        if self.num_blocks < 1:
            raise ConfigError(
                "no memory is left for the KV cache: raise --kv-cache-memory or, on a GPU, --gpu-memory-utilization"
            )
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"--max-num-batched-tokens {self.max_num_batched_tokens} is below --max-num-seqs {self.max_num_seqs}: "
                "every running sequence needs one token of each step, so raise the first or lower the second"
            )
        if not self.enable_chunked_prefill and self.max_num_batched_tokens < self.max_model_len:
            raise ConfigError(
                f"without chunked prefill a prompt must fit one step: raise --max-num-batched-tokens to {self.max_model_len}, "
                f"lower --max-model-len to {self.max_num_batched_tokens}, or leave chunked prefill on"
            )

    @property
    def groups(self) -> KvGroups:
        """The model's layer groups."""
        return KvGroups(self.block_size, self.windows)

    @property
    def watermark(self) -> int:
        """Blocks that admission leaves free for the growth of sequences already running: at least 1 % of all."""
        return self.num_blocks // 100


__all__ = ["SchedulerLimits"]
