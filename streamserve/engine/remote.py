"""The server's host: an engine in a process of its own, reached over a socket by one or several API workers.

Runs on the API worker's event loop. Backpressure lives on this side: a stream over its mark sends pause and resume, a stalled
one is failed and aborted from here. When the connection ends, every stream ends with `EngineDead`; or, where the engine is one
that comes back, waits and goes on.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from streamserve.engine.base import SequenceStream
from streamserve.engine.connection import EngineConnection
from streamserve.engine.launch import EngineProcess
from streamserve.engine.link import LinkLimits
from streamserve.engine.stream import ChannelStream, StreamLimits
from streamserve.engine.stream_table import StreamTable
from streamserve.errors import EngineDead, QueueFull, StreamserveError, Unavailable
from streamserve.types import EngineInfo, EngineStats, SequenceSpec, TokenDelta

STATS_TIMEOUT_S = 5.0
"""Seconds after which an engine that does not answer counts as hung."""

SUSPICION_S = 10.0
"""Seconds that a sequence which may be what engines die of is waited for before the next such one gets its turn."""

KNOCK_S = 0.05
"""Seconds between two looks whether an engine that went away is there again."""

logger = logging.getLogger(__name__)


class RemoteEngine:
    """An `Engine` behind a socket; everything from `start` on belongs to one event loop.

    engine      the path of the engine socket, or the process that this side starts, connects to and stops
    comes_back  an engine that goes away is started again by somebody, at the same path, for as long as the path exists: until
                then new sequences are `Unavailable` and open ones wait
    """

    def __init__(
        self,
        engine: str | EngineProcess,
        *,
        comes_back: bool = False,
        stream_limits: StreamLimits | None = None,
        link_limits: LinkLimits | None = None,
    ) -> None:
        self._engine = engine
        self._comes_back = comes_back
        self._connection = EngineConnection(link_limits or LinkLimits(), on_deltas=self._deliver, on_end=self._end)
        self._streams = StreamTable(self._connection, stream_limits or StreamLimits())
        self._info: EngineInfo | None = None
        self._is_away = False
        self._tasks: set[asyncio.Task[None]] = set()
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
        self._require_present()
        # Opened before the answer: the first tokens may come in the same burst of frames.
        streams = self._streams.add(specs)
        try:
            await self._connection.open(specs)
        except StreamserveError:
            self._streams.forget(streams)
            self._require_present()
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
        self._require_present()
        try:
            with anyio.fail_after(STATS_TIMEOUT_S):
                stats = await self._connection.stats()
        except TimeoutError:
            raise Unavailable(f"the engine has not answered for {STATS_TIMEOUT_S:g} s") from None
        wasted = stats.tokens_wasted_after_disconnect + self._streams.late_tokens
        return msgspec.structs.replace(stats, tokens_wasted_after_disconnect=wasted)

    async def stop(self) -> None:
        """End every stream with `EngineDead`, disconnect, and end the process if it is ours. Idempotent."""
        self._comes_back = False
        with anyio.CancelScope(shield=True):
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
            reason = EngineDead("the engine was stopped")
            await self._connection.close(reason)
            self._give_up(reason)
            if isinstance(self._engine, EngineProcess):
                await anyio.to_thread.run_sync(self._engine.stop)

    async def wait_ended(self) -> None:
        """Returns once the engine is gone for good, for whatever reason; its streams have ended by then."""
        await self._ended.wait()

    @property
    def _address(self) -> str:
        return self._engine.address if isinstance(self._engine, EngineProcess) else self._engine

    def _require_present(self) -> None:
        if self._is_away:
            raise Unavailable("the engine is being started again: try again in a few seconds")

    def _deliver(self, deltas: list[tuple[str, TokenDelta]]) -> None:
        self._streams.deliver(deltas)

    def _end(self, reason: StreamserveError) -> None:
        """The connection is gone."""
        if not (self._comes_back and self._info is not None):
            self._give_up(reason)
        elif not self._is_away:
            self._is_away = True
            for task in self._tasks:
                task.cancel()
            self._begin(self._await_return(reason))

    def _give_up(self, reason: StreamserveError) -> None:
        self._comes_back = self._is_away = False
        self._connection.end(reason)
        self._streams.end_all(reason)
        self._ended.set()

    async def _await_return(self, reason: StreamserveError) -> None:
        """Knock until the engine is there again, and hand it the sequences that it lost."""
        logger.warning("the engine went away: %s", reason.message)
        while self._is_away:
            # Also for calls that were never answered, which now take their streams out of the table.
            await asyncio.sleep(KNOCK_S)
            try:
                self._info = await self._connection.connect(self._address)
            except StreamserveError:
                # Not there yet, or there and unable to start: whoever starts it may try again.
                if not self._may_come_back():
                    self._give_up(reason)
            else:
                self._is_away = False
                self._hand_over(reason)

    def _may_come_back(self) -> bool:
        return os.path.exists(self._address)

    def _hand_over(self, reason: StreamserveError) -> None:
        """Have the engine that is there now go on with what the one before has lost."""
        streams = self._streams.interrupted(reason)
        logger.warning("the engine is back: %d sequences go on", len(streams))
        for stream in streams:
            if not stream.record.is_suspect:
                self._begin(self._go_on(stream))
        self._begin(self._go_on_in_turn([stream for stream in streams if stream.record.is_suspect]))

    async def _go_on_in_turn(self, suspects: list[ChannelStream]) -> None:
        """One after another, so that the one that engines die of takes none of the others along."""
        for stream in suspects:
            await self._go_on(stream)
            patience = round(SUSPICION_S / KNOCK_S)
            while patience and stream.sequence_id in self._streams and not (stream.record.has_progressed or stream.is_paused):
                patience -= 1
                await asyncio.sleep(KNOCK_S)

    async def _go_on(self, stream: ChannelStream) -> None:
        """Continue one sequence in the engine that is there now, unless its reader has left."""
        while stream.sequence_id in self._streams:
            try:
                await self._connection.open([stream.record.hand_over()])
            except QueueFull as full:
                await asyncio.sleep(min(full.retry_after_s, 1.0))
            except EngineDead:
                # Away again: the next return takes care of it.
                return
            except StreamserveError as error:
                self._streams.fail(stream.sequence_id, error)
            else:
                self._streams.went_on(stream.sequence_id)
                return

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
