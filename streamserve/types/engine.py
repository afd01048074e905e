"""Facts and statistics of an engine."""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

import msgspec

from streamserve.kv_groups import KvGroups
from streamserve.types.pooling import Pooling


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Facts of a loaded engine, which its API side gets once it is ready.

    max_model_len   tokens of prompt and output together
    embedding_size  numbers of a pooled vector
    pooling         how prompts are pooled where a request says nothing
    model_limit     what the model reaches, where it serves less unless more is requested; else None
    num_blocks      KV blocks in total, of `block_size` tokens each
    model_impl      whose layers run: "streamserve" or "transformers"
    kv_cache_dtype  of keys and values, as the flag has it
    windows         of the model's layer groups, as in `KvGroups`
    compiled        whether layers run compiled on a CPU; None where there is nothing to compile
    """

    model: str
    architecture: str
    model_impl: str = "streamserve"
    dtype: str
    kv_cache_dtype: str
    device: str
    max_model_len: int
    vocab_size: int
    num_blocks: int
    block_size: int
    max_num_seqs: int
    windows: tuple[int | None, ...] = (None,)
    compiled: bool | None = None
    model_limit: int | None = None
    embedding_size: int = 0
    pooling: Pooling = Pooling()
    startup_s: dict[str, float] = {}

    @property
    def kv_capacity_tokens(self) -> int:
        """Tokens of sequences of `max_model_len` tokens that fit the cache once their prompts are computed."""
        size = -(-self.max_model_len // self.block_size) * self.block_size
        return self.num_blocks * size // KvGroups(self.block_size, self.windows).blocks_for(self.max_model_len, 1)


class Tally(msgspec.Struct, kw_only=True):
    """Whole numbers observed, by size.

    bounds  ascending
    counts  how many were at most each bound and above the one before it; the last, above all of them
    total   their sum
    """

    bounds: tuple[int, ...]
    counts: list[int]
    total: int = 0

    @classmethod
    def by(cls, *bounds: int) -> Tally:
        """Without an observation."""
        return cls(bounds=bounds, counts=[0] * (len(bounds) + 1))

    def observe(self, value: int) -> None:
        """Count one observation."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


def step_sizes() -> Tally:
    """An empty tally of tokens per step, with vLLM's bounds."""
    return Tally.by(1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


def preemption_counts() -> Tally:
    """An empty tally of preemptions per sequence, with vLLM's bounds."""
    return Tally.by(1, 2, 3, 4, 5, 10, 20)


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of the engine for /metrics, /load and logs. Counters are totals since start; names follow vLLM's metrics.

    step_tokens       computed per step
    divided_steps     run in pieces, since the device lacked the memory to run them whole
    ended_preemptions per sequence that has ended
    abort_latency_s   total over `num_aborts`: seconds from a reader's departure until its sequence's blocks are free
    heartbeat_s       age of the step loop's last iteration, 0 while it is idle
    """

    num_requests_running: int = 0
    num_requests_waiting: int = 0
    num_requests_paused: int = 0
    kv_blocks_total: int = 0
    kv_blocks_used: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    num_preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    steps: int = 0
    divided_steps: int = 0
    wasted_tokens: int = 0
    tokens_wasted_after_disconnect: int = 0
    step_tokens: Tally = msgspec.field(default_factory=step_sizes)
    ended_preemptions: Tally = msgspec.field(default_factory=preemption_counts)
    num_aborts: int = 0
    abort_latency_s: float = 0.0
    heartbeat_s: float = 0.0


class EngineSnapshot(NamedTuple):
    """What is known of one engine: its facts, and its statistics unless it does not answer."""

    info: EngineInfo
    stats: EngineStats | None
