"""Runs sequences on an engine in this process and notes when their tokens came. No tokenizer, no text: tokens only."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from streamserve.bench.workloads import Ask
from streamserve.checkpoint.names import checkpoint_of
from streamserve.config import EngineConfig, replace
from streamserve.engine.base import Engine, SequenceStream
from streamserve.engine.inline import InlineEngine
from streamserve.errors import StreamFailed
from streamserve.executor.tuning import tune_after_loading, tune_before_loading
from streamserve.types import SequenceSpec


@dataclass(slots=True)
class Trace:
    """When one sequence's tokens came: (seconds of `time.perf_counter`, how many by then)."""

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
        """Tokens that came after `start_s` and not after `end_s`."""
        before = max((total for at, total in self.arrivals if at <= start_s), default=0)
        return max((total for at, total in self.arrivals if at <= end_s), default=0) - before


@asynccontextmanager
async def running_engine(config: EngineConfig) -> AsyncIterator[Engine]:
    """A started engine in this process, tuned as an engine process is, and stopped on the way out.

    Raises `ConfigError` when it can't start.
    """
    checkpoint = checkpoint_of(config)
    tune_before_loading(config)
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


async def run_asks(engine: Engine, asks: Sequence[Ask], *, temperature: float = 0.0) -> list[Trace]:
    """Admit every request at once and read all of them to the end; outputs have exactly the asked length."""
    started_s = time.perf_counter()
    streams = await engine.open([_spec(number, ask, temperature) for number, ask in enumerate(asks)])
    return list(
        await asyncio.gather(
            *(_read(stream, Trace(started_s, len(ask.prompt_token_ids))) for stream, ask in zip(streams, asks, strict=True))
        )
    )


def _spec(number: int, ask: Ask, temperature: float) -> SequenceSpec:
    return SequenceSpec(
        sequence_id=f"bench-{number}",
        prompt_token_ids=ask.prompt_token_ids,
        seed=number,
        max_tokens=ask.output_len,
        temperature=temperature,
    )


async def _read(stream: SequenceStream, trace: Trace) -> Trace:
    total = 0
    with stream:
        async for delta in stream:
            if delta.error is not None:
                raise StreamFailed(delta.error.message)
            if delta.token_ids:
                total += len(delta.token_ids)
                trace.arrivals.append((time.perf_counter(), total))
    return trace
