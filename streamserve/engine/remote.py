"""The server's host: an engine in a process of its own, reached over a socket by one or several API workers.

Runs on the API worker's event loop. Backpressure lives on this side: a stream over its mark sends pause and resume, a stalled
one is failed and aborted from here. When the connection ends, every stream ends with `EngineDead`.
"""

from __future__ import annotations

import anyio
import anyio.to_thread
import msgspec

from streamserve.engine.base import SequenceStream
from streamserve.engine.connection import EngineConnection
from streamserve.engine.launch import EngineProcess
from streamserve.engine.link import LinkLimits
from streamserve.engine.stream import StreamLimits
from streamserve.engine.stream_table import StreamTable
from streamserve.errors import EngineDead, StreamserveError, Unavailable
from streamserve.types import EngineInfo, EngineStats, SequenceSpec, TokenDelta

STATS_TIMEOUT_S = 5.0
"""Seconds after which an engine that does not answer counts as hung."""


class RemoteEngine:
    """An `Engine` behind a socket; everything from `start` on belongs to one event loop.

    engine  the path of the engine socket, or the process that this side starts, connects to and stops
    """

    def __init__(
        self,
        engine: str | EngineProcess,
        *,
        stream_limits: StreamLimits | None = None,
        link_limits: LinkLimits | None = None,
    ) -> None:
        self._engine = engine
        self._connection = EngineConnection(link_limits or LinkLimits(), on_deltas=self._deliver, on_end=self._end_streams)
        self._streams = StreamTable(self._connection, stream_limits or StreamLimits())
        self._info: EngineInfo | None = None
        self._ended = anyio.Event()

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise Unavailable("the engine is starting: try again in a few seconds")
        return self._info

    async def start(self) -> EngineInfo:
        """Start the process if it is ours, connect, and wait until the model is loaded; raises what kept it from loading."""
        try:
            if isinstance(self._engine, EngineProcess):
                await anyio.to_thread.run_sync(self._engine.start)
            self._info = await self._connection.connect(self._address)
        except BaseException:
            await self.stop()
            raise
        return self._info

    async def open(self, specs: list[SequenceSpec]) -> list[SequenceStream]:
        """Admit sequences, all or none; see `Engine.open`."""
        # Opened before the answer: the first tokens may come in the same burst of frames.
        streams = self._streams.add(spec.sequence_id for spec in specs)
        try:
            await self._connection.open(specs)
        except StreamserveError:
            self._streams.forget(streams)
            raise
        except BaseException:
            for stream in streams:
                stream.close()
            raise
        return list(streams)

    def abort(self, sequence_id: str) -> bool:
        """End a sequence with reason "abort", keeping what its reader has not read yet. False when unknown."""
        return self._streams.abort_stream(sequence_id)

    async def stats(self) -> EngineStats:
        """A snapshot; raises `Unavailable` when the engine does not answer within `STATS_TIMEOUT_S`."""
        try:
            with anyio.fail_after(STATS_TIMEOUT_S):
                stats = await self._connection.stats()
        except TimeoutError:
            raise Unavailable(f"the engine has not answered for {STATS_TIMEOUT_S:g} s") from None
        wasted = stats.tokens_wasted_after_disconnect + self._streams.late_tokens
        return msgspec.structs.replace(stats, tokens_wasted_after_disconnect=wasted)

    async def stop(self) -> None:
        """End every stream with `EngineDead`, disconnect, and end the process if it is ours. Idempotent."""
        with anyio.CancelScope(shield=True):
            await self._connection.close(EngineDead("the engine was stopped"))
            if isinstance(self._engine, EngineProcess):
                await anyio.to_thread.run_sync(self._engine.stop)

    async def wait_ended(self) -> None:
        """Returns once the engine is gone, for whatever reason; its streams have ended by then."""
        await self._ended.wait()

    @property
    def _address(self) -> str:
        return self._engine.address if isinstance(self._engine, EngineProcess) else self._engine

    def _deliver(self, deltas: list[tuple[str, TokenDelta]]) -> None:
        self._streams.deliver(deltas)

    def _end_streams(self, reason: StreamserveError) -> None:
        self._streams.end_all(reason)
        self._ended.set()
