"""The server's engine: in a process of its own, reached over a socket by one or several API workers.

Runs on the API worker's event loop. Backpressure lives on this side: a stream past its high-water mark sends pause and resume,
a stalled one is failed and aborted from here. When the connection is lost, every stream ends with `EngineDead`; or, where the
engine is restarted, waits and is resumed.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from streamserve.engine.base import SequenceStream
from streamserve.engine.given_up import GivenUp
from streamserve.engine.ipc.connection import EngineConnection
from streamserve.engine.ipc.link import LinkLimits
from streamserve.engine.process.launch import EngineProcess
from streamserve.engine.stream import ChannelStream, StreamLimits
from streamserve.engine.stream_table import StreamTable
from streamserve.errors import EngineDead, QueueFull, StreamserveError, Unavailable
from streamserve.types import EngineInfo, EngineStats, SequenceSpec, TokenDelta

STATS_TIMEOUT_S = 5.0
"""Seconds after which an engine that does not reply counts as hung."""

SUSPECT_TIMEOUT_S = 10.0
"""Seconds that a resumed suspect gets to generate a token before the next one is resumed."""

RECONNECT_INTERVAL_S = 0.05
"""Seconds between two attempts to reach an engine that was lost."""

logger = logging.getLogger(__name__)


class RemoteEngine:
    """An `Engine` behind a socket; everything from `start` on belongs to one event loop.

    engine      the path of the engine socket, or the process that this side starts, connects to and stops
    reconnects  the engine is restarted elsewhere when it ends, at the same path, for as long as the path exists: meanwhile new
                sequences are `Unavailable` and open ones wait
    on_given_up called with the number of engines that ended under a sequence when it is given up for that
    """

    def __init__(
        self,
        engine: str | EngineProcess,
        *,
        reconnects: bool = False,
        on_given_up: Callable[[int], None] = lambda num_ends: None,
        stream_limits: StreamLimits | None = None,
        link_limits: LinkLimits | None = None,
    ) -> None:
        self._engine = engine
        self._reconnects = reconnects
        self._connection = EngineConnection(link_limits or LinkLimits(), on_deltas=self._deliver, on_end=self._end)
        self._streams = StreamTable(self._connection, stream_limits or StreamLimits())
        self._info: EngineInfo | None = None
        self._is_lost = False
        self._lost = anyio.Event()
        self._on_given_up = on_given_up
        self._given_up = GivenUp()
        self._no_suspects = anyio.Event()
        self._no_suspects.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = anyio.Event()

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise Unavailable("the engine is starting: try again in a few seconds")
        return self._info

    async def start(self) -> EngineInfo:
        """Start the process if it is ours, connect, and wait until the model is loaded; raises what prevented that."""
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
        self._require_connection()
        # A new sequence that ends the engine would have its end charged to a suspect.
        await self._no_suspects.wait()
        await self._connection.drained()
        self._require_connection()
        # Added before the reply: the first tokens may come in the same burst of frames.
        streams = self._streams.add(specs)
        try:
            await self._connection.open(specs)
        except StreamserveError:
            self._streams.forget(streams)
            self._require_connection()
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
        """A snapshot; raises `Unavailable` when the engine does not reply within `STATS_TIMEOUT_S`."""
        self._require_connection()
        try:
            with anyio.fail_after(STATS_TIMEOUT_S):
                stats = await self._connection.stats()
        except TimeoutError:
            raise Unavailable(f"the engine has not replied for {STATS_TIMEOUT_S:g} s") from None
        wasted = stats.tokens_wasted_after_disconnect + self._streams.late_tokens
        return msgspec.structs.replace(stats, tokens_wasted_after_disconnect=wasted)

    async def stop(self) -> None:
        """End every stream with `EngineDead`, disconnect, and end the process if it is ours. Idempotent."""
        self._reconnects = False
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
        """Return once the engine has ended and will not be restarted; its streams have ended by then."""
        await self._ended.wait()

    async def wait_lost(self) -> None:
        """Return once the engine has ended, whether another is awaited or not."""
        await self._lost.wait()

    @property
    def is_lost(self) -> bool:
        """Whether the engine has ended and another is awaited."""
        return self._is_lost

    @property
    def _address(self) -> str:
        return self._engine.address if isinstance(self._engine, EngineProcess) else self._engine

    def _require_connection(self) -> None:
        if self._is_lost:
            raise Unavailable("the engine is restarting: try again in a few seconds")

    def _deliver(self, deltas: list[tuple[str, TokenDelta]]) -> None:
        self._streams.deliver(deltas)

    def _end(self, reason: StreamserveError) -> None:
        """Wait for the engine's restart, or end with it."""
        if not (self._reconnects and self._info is not None):
            self._give_up(reason)
        elif not self._is_lost:
            self._is_lost = True
            self._lost.set()
            for task in self._tasks:
                task.cancel()
            self._spawn(self._reconnect(reason))

    def _give_up(self, reason: StreamserveError) -> None:
        self._reconnects = self._is_lost = False
        self._no_suspects.set()
        self._lost.set()
        self._connection.end(reason)
        self._streams.end_all(reason)
        self._ended.set()

    async def _reconnect(self, reason: StreamserveError) -> None:
        """Try to connect until the engine is restarted, and resume its sequences; give up when its address is removed."""
        logger.warning("lost the engine: %s", reason.message)
        while self._is_lost:
            # First, so that calls without a reply take their streams out of the table.
            await asyncio.sleep(RECONNECT_INTERVAL_S)
            try:
                self._info = await self._connection.connect(self._address)
            except StreamserveError:
                # Not up yet, or unable to start: its supervisor may restart it.
                if not self._may_restart():
                    self._give_up(reason)
            else:
                self._is_lost, self._lost = False, anyio.Event()
                self._resume_all()

    def _may_restart(self) -> bool:
        return os.path.exists(self._address)

    def _resume_all(self) -> None:
        """Have the new engine continue the sequences of the one that was lost."""
        given_up = self._streams.engine_lost()
        for state in given_up:
            logger.error("gave up a sequence: %d engines have ended under it", state.num_losses)
            self._on_given_up(state.num_losses)
        self._given_up.add(state.fingerprint for state in given_up)
        self._connection.refuse(self._given_up.fingerprints)
        streams = self._streams.streams()
        logger.warning("reconnected to the engine: resuming %d sequences", len(streams))
        others = [stream for stream in streams if not stream.resume_state.is_suspect]
        for stream in others:
            self._spawn(self._resume(stream))
        suspects = [stream for stream in streams if stream.resume_state.is_suspect]
        if suspects:
            # The event that callers wait on already, if there is one.
            if self._no_suspects.is_set():
                self._no_suspects = anyio.Event()
            self._spawn(self._resume_suspects(suspects, others))
        else:
            self._no_suspects.set()

    async def _resume_suspects(self, suspects: list[ChannelStream], others: list[ChannelStream]) -> None:
        """Resume suspects once all others have a token, one by one and then more at a time, to find the one that ends engines.

        Of many, most were waiting in the queue when the engine ended: what has run longest comes first.
        """
        await self._progress(others)
        suspects.sort(key=lambda stream: -stream.resume_state.num_losses)
        first = 0
        while first < len(suspects):
            group = suspects[first : first + max(1, first // 2)]
            for stream in group:
                await self._resume(stream, is_alone=len(group) == 1)
            await self._progress(group)
            first += len(group)
        self._no_suspects.set()

    async def _progress(self, streams: list[ChannelStream]) -> None:
        """Return once each of them has a token of this engine, has ended or is paused, or after `SUSPECT_TIMEOUT_S`."""
        for _ in range(round(SUSPECT_TIMEOUT_S / RECONNECT_INTERVAL_S)):
            if all(self._has_progressed(stream) for stream in streams):
                return
            await asyncio.sleep(RECONNECT_INTERVAL_S)

    def _has_progressed(self, stream: ChannelStream) -> bool:
        return stream.sequence_id not in self._streams or stream.resume_state.has_progressed or stream.is_paused

    async def _resume(self, stream: ChannelStream, *, is_alone: bool = False) -> None:
        """Continue one sequence in the new engine, unless its reader has left; `is_alone` as in `ResumeState.hand_over`."""
        while True:
            await self._connection.drained()
            if stream.sequence_id not in self._streams:
                return
            try:
                await self._connection.open([stream.resume_state.hand_over(is_alone=is_alone)])
            except QueueFull as full:
                await asyncio.sleep(min(full.retry_after_s, 1.0))
            except EngineDead:
                # Lost again: the next reconnect resumes it.
                return
            except StreamserveError as error:
                self._streams.fail(stream.sequence_id, error)
            else:
                self._streams.engine_resumed(stream.sequence_id)
                return

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
