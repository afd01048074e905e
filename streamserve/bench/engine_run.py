"""Runs sequences on an engine in this process and records when their tokens arrived. Tokens only: no tokenizer, no text."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from streamserve.bench.workloads import BenchRequest
from streamserve.checkpoint.names import checkpoint_of
from streamserve.config import EngineConfig, replace
from streamserve.engine.base import Engine, SequenceStream
from streamserve.engine.inline import InlineEngine
from streamserve.errors import StreamFailed
from streamserve.executor.tuning import tune_after_loading, tune_before_loading
from streamserve.types import Sampling, SequenceSpec


@dataclass(slots=True)
class SequenceTimes:
    """When one sequence's tokens arrived.

    arrivals  (seconds of `time.perf_counter`, tokens so far)
    """

    started_s: float
    prompt_len: int
    arrivals: list[tuple[float, int]] = field(default_factory=list)

    @property
    def output_len(self) -> int:
        return self.arrivals[-1][1]

    @property
    def first_s(self) -> float:
        return self.arrivals[0][0]

    @property
    def last_s(self) -> float:
        return self.arrivals[-1][0]

    def tokens_between(self, start_s: float, end_s: float) -> int:
        """Tokens that arrived after `start_s` and not after `end_s`."""
        before = max((total for at, total in self.arrivals if at <= start_s), default=0)
        return max((total for at, total in self.arrivals if at <= end_s), default=0) - before


@asynccontextmanager
async def running_engine(config: EngineConfig) -> AsyncIterator[Engine]:
    """A started engine in this process, tuned as an engine process is, and stopped on the way out.

    Raises `ConfigError` when it can't start.
    """
    checkpoint = checkpoint_of(config)
    tune_before_loading(config, checkpoint)
    engine = InlineEngine(replace(config, model=str(checkpoint.path)), checkpoint)
    try:
        await engine.start()
        tune_after_loading()
        # As an engine process does: the collector would go through all that loading left in the middle of a run, for as long as
        # thirty steps on a GPU.
        gc.collect()
        gc.freeze()
        yield engine
    finally:
        await engine.stop()
        gc.unfreeze()
        gc.collect()


async def run_requests(engine: Engine, requests: Sequence[BenchRequest], *, temperature: float = 0.0) -> list[SequenceTimes]:
    """Admit every request at once and read all of them to the end; outputs have exactly the requested length."""
    started_s = time.perf_counter()
    streams = await engine.open([_spec(number, request, temperature) for number, request in enumerate(requests)])
    times = [SequenceTimes(started_s, len(request.prompt_token_ids)) for request in requests]
    await asyncio.gather(*map(_read, streams, times))
    return times


def _spec(number: int, request: BenchRequest, temperature: float) -> SequenceSpec:
    return SequenceSpec(
        sequence_id=f"bench-{number}",
        prompt_token_ids=request.prompt_token_ids,
        max_tokens=request.output_len,
        sampling=Sampling(seed=number, temperature=temperature),
    )


async def _read(stream: SequenceStream, times: SequenceTimes) -> None:
    total = 0
    with stream:
        async for delta in stream:
            if delta.error is not None:
                raise StreamFailed(delta.error.message)
            if delta.token_ids:
                total += len(delta.token_ids)
                times.arrivals.append((time.perf_counter(), total))
