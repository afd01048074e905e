"""An engine that does what a test tells it to, at the very protocol the real ones have.

Its streams are the engine's own channels, so merging, pausing and stalling are real; only the tokens are the test's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import anyio

from streamserve.engine.base import SequenceStream
from streamserve.engine.stream import StreamLimits
from streamserve.engine.stream_table import StreamTable
from streamserve.errors import EngineDead, QueueFull, StreamserveError
from streamserve.types import (
    EngineInfo,
    EngineSnapshot,
    EngineStats,
    ErrorInfo,
    FinishReason,
    Quotas,
    SequenceSpec,
    Tenant,
    TokenDelta,
    TokenLogprobs,
)
from tests.support.byte_tokenizer import EOS, VOCAB_SIZE

EMBEDDING_SIZE = 16

Reply = Callable[[SequenceSpec], Sequence[TokenDelta]]


class ScriptedEngine:
    """Admits what it is given and generates what it is told.

    reply   what to generate for each sequence, at once; without it the test calls `say`, `finish` and `fail`
    refuse  an error to raise on admission
    refuses_all  with which every request is refused, as far as is known without asking
    said_quotas  what tenants may still use, by name
    admit   a gate that admissions wait for
    """

    def __init__(self, *, reply: Reply | None = None, limits: StreamLimits | None = None, max_model_len: int = 4096) -> None:
        self.info = EngineInfo(
            model="scripted",
            architecture="Scripted",
            dtype="float32",
            kv_cache_dtype="float32",
            device="cpu",
            max_model_len=max_model_len,
            vocab_size=VOCAB_SIZE,
            num_blocks=1024,
            block_size=16,
            max_num_seqs=64,
            embedding_size=EMBEDDING_SIZE,
        )
        self.reply = reply
        self.refuse: StreamserveError | None = None
        self.refuses_all: QueueFull | None = None
        self.said_quotas: dict[str, Quotas] = {}
        self.admit = anyio.Event()
        self.admit.set()
        self.num_asked = 0
        self.specs: dict[str, SequenceSpec] = {}
        self.aborted: list[str] = []
        self.answering: list[str] = []
        self.paused: list[str] = []
        self.resumed: list[str] = []
        self.heartbeat_s = 0.0
        self._changed = asyncio.Condition()
        self._streams = StreamTable(self._control(), limits or StreamLimits())

    def _control(self) -> _Control:
        return _Control(self)

    async def start(self) -> EngineInfo:
        return self.info

    async def open(self, specs: list[SequenceSpec]) -> list[SequenceStream]:
        self.num_asked += 1
        await self._notify()
        await self.admit.wait()
        if self.refuse is not None:
            raise self.refuse
        streams = self._streams.add(specs)
        self.specs.update((spec.sequence_id, spec) for spec in specs)
        if self.reply is not None:
            for spec in specs:
                self._streams.deliver([(spec.sequence_id, delta) for delta in self.reply(spec)])
        await self._notify()
        return list(streams)

    def refusal(self, tenant: Tenant) -> QueueFull | None:
        return self.refuses_all

    def quotas(self, tenant: Tenant) -> Quotas | None:
        return self.said_quotas.get(tenant.name)

    def abort(self, sequence_id: str) -> bool:
        return self._streams.abort_stream(sequence_id)

    async def stats(self) -> EngineStats:
        return EngineStats(
            num_requests_running=len(self._streams), kv_blocks_total=1024, kv_blocks_used=16, heartbeat_s=self.heartbeat_s
        )

    async def snapshots(self) -> list[EngineSnapshot]:
        return [EngineSnapshot(self.info, await self.stats())]

    async def stop(self) -> None:
        self.die()

    def say(self, sequence_id: str, text: str) -> None:
        """Generate a text, a delta per byte."""
        self._streams.deliver([(sequence_id, TokenDelta([byte])) for byte in text.encode()])

    def generate(self, sequence_id: str, delta: TokenDelta) -> None:
        self._streams.deliver([(sequence_id, delta)])

    def finish(self, sequence_id: str, reason: FinishReason = "stop") -> None:
        """End a sequence, with an end-of-sequence token when it stops by itself."""
        token_ids = [EOS] if reason == "stop" else []
        self._streams.deliver(
            [(sequence_id, TokenDelta(token_ids, finish_reason=reason, stop_reason=EOS if token_ids else None))]
        )

    def fail(self, sequence_id: str, code: str, message: str, *, retry_after_s: float | None = None) -> None:
        error = ErrorInfo(code, message, retry_after_s)
        self._streams.deliver([(sequence_id, TokenDelta([], finish_reason="error", error=error))])

    def die(self) -> None:
        """End every stream as an engine that crashed does."""
        self._streams.end_all(EngineDead("the engine process ended"))

    async def asked(self) -> None:
        """Wait until an admission is waiting at the gate, or through it."""
        await self._until(lambda: [str(self.num_asked)] if self.num_asked else None)

    async def sequences(self, count: int = 1) -> list[str]:
        """Wait until `count` sequences have been admitted; their ids in that order."""
        return await self._until(lambda: list(self.specs) if len(self.specs) >= count else None)

    async def aborts(self, count: int = 1) -> list[str]:
        """Wait until `count` sequences have been aborted."""
        return await self._until(lambda: self.aborted if len(self.aborted) >= count else None)

    async def answers(self, count: int = 1) -> list[str]:
        """Wait until the reasoning of `count` sequences has been ended."""
        return await self._until(lambda: self.answering if len(self.answering) >= count else None)

    async def pauses(self) -> list[str]:
        """Wait until a sequence has been paused."""
        return await self._until(lambda: self.paused or None)

    async def _until(self, look: Callable[[], list[str] | None]) -> list[str]:
        with anyio.fail_after(10):
            async with self._changed:
                while (found := look()) is None:
                    await self._changed.wait()
                return found

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def notify_soon(self) -> None:
        asyncio.get_running_loop().create_task(self._notify())


class _Control:
    """What streams ask for, written down."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self._engine = engine

    def pause(self, sequence_id: str) -> None:
        self._engine.paused.append(sequence_id)
        self._engine.notify_soon()

    def resume(self, sequence_id: str) -> None:
        self._engine.resumed.append(sequence_id)
        self._engine.notify_soon()

    def end_reasoning(self, sequence_id: str) -> None:
        self._engine.answering.append(sequence_id)
        self._engine.notify_soon()

    def abort(self, sequence_id: str) -> None:
        self._engine.aborted.append(sequence_id)
        self._engine.notify_soon()


def text_reply(text: str, reason: FinishReason = "stop") -> Reply:
    """Generates `text`, a token per byte, then ends."""

    def reply(spec: SequenceSpec) -> list[TokenDelta]:
        if spec.pooling is not None:
            vector = bytes(4 * (spec.pooling.dimensions or EMBEDDING_SIZE))
            return [TokenDelta([], finish_reason="stop", embedding=vector)]
        deltas = [TokenDelta([byte], logprobs=_logprobs(spec, byte)) for byte in text.encode()]
        if deltas and spec.sampling.prompt_logprobs is not None:
            entries = [None, *(TokenLogprobs(token, -0.5, 1, [(token, -0.5)]) for token in spec.prompt_token_ids[1:])]
            deltas[0] = TokenDelta(deltas[0].token_ids, deltas[0].logprobs, entries)
        if reason == "stop":
            return [*deltas, TokenDelta([EOS], logprobs=_logprobs(spec, EOS), finish_reason="stop", stop_reason=EOS)]
        return [*deltas, TokenDelta([], finish_reason=reason)]

    return reply


def _logprobs(spec: SequenceSpec, token_id: int) -> list[TokenLogprobs] | None:
    if spec.sampling.logprobs is None:
        return None
    top = [(token_id, -0.25), (ord("x"), -1.5), (ord("y"), -2.5)][: spec.sampling.logprobs]
    return [TokenLogprobs(token_id, -0.25, 1, top)]
