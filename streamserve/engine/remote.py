"""The server's engine: in a process of its own, reached over a socket by one or several API workers.

Runs on the API worker's event loop. Backpressure lives on this side: a stream past its high-water mark sends pause and resume,
a stalled one is failed and aborted from here. When the connection is lost, every stream ends with `EngineDead`; or, where the
engine is restarted, waits and is resumed.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable
from typing import Protocol

import anyio
import anyio.to_thread
import msgspec

from streamserve.engine.base import SequenceStream
from streamserve.engine.given_up import GivenUp
from streamserve.engine.ipc.connection import EngineConnection
from streamserve.engine.ipc.link import LinkLimits
from streamserve.engine.ipc.tcp import Place, TcpAddress
from streamserve.engine.process.launch import EngineProcess
from streamserve.engine.resumption import Resumption
from streamserve.engine.stream import ChannelStream, StreamLimits
from streamserve.engine.stream_table import StreamTable
from streamserve.errors import EngineDead, QueueFull, StreamserveError, Unavailable
from streamserve.types import EngineInfo, EngineSnapshot, EngineStats, Quotas, SequenceSpec, Tenant, TokenDelta

STATS_TIMEOUT_S = 5.0
"""Seconds after which an engine that does not reply counts as hung."""

RECONNECT_INTERVAL_S = 0.05
"""Seconds between two attempts to reach an engine that was lost."""

logger = logging.getLogger(__name__)


class Peers(Protocol):
    """The other engines of the same model, to which an engine that is lost turns."""

    async def lost(self, engine: RemoteEngine) -> None:
        """The engine has ended, or will not return: continue what you can of its `continuable` streams, and `release` them."""
        ...

    def returned(self, engine: RemoteEngine) -> None:
        """The engine takes requests again."""
        ...

    def given_up(self, fingerprints: list[bytes]) -> None:
        """Requests with these fingerprints were given up: have them refused everywhere."""
        ...


class NoPeers:
    """The `Peers` of an engine that is the only one."""

    async def lost(self, engine: RemoteEngine) -> None:
        """Its streams wait for it."""

    def returned(self, engine: RemoteEngine) -> None:
        """Nothing waits for it elsewhere."""

    def given_up(self, fingerprints: list[bytes]) -> None:
        """Nobody else has to refuse them."""


class RemoteEngine:
    """An `Engine` behind a socket; everything from `start` on belongs to one event loop.

    engine      the path of the engine socket, the process that this side starts, connects to and stops, or the place where one
                engine of another machine follows the other
    reconnects  when the engine ends another one is awaited, for as long as the path exists or the place is not closed:
                meanwhile new sequences are `Unavailable` and open ones wait
    awaits_start    whether an engine that can't start is awaited likewise, since its supervisor starts it again
    on_given_up called with the number of engines that ended under a sequence when it is given up for that
    peers       other engines, which may continue the sequences of this one
    """

    def __init__(
        self,
        engine: str | EngineProcess | Place,
        *,
        reconnects: bool = False,
        awaits_start: bool = False,
        on_given_up: Callable[[int], None] = lambda num_ends: None,
        peers: Peers | None = None,
        stream_limits: StreamLimits | None = None,
        link_limits: LinkLimits | None = None,
    ) -> None:
        self._engine = engine
        self._reconnects = reconnects
        self._awaits_start = awaits_start
        self._connection = EngineConnection(link_limits or LinkLimits(), on_deltas=self._deliver, on_end=self._end)
        self._streams = StreamTable(self._connection, stream_limits or StreamLimits())
        self._resumption = Resumption(self._connection, self._streams)
        self._info: EngineInfo | None = None
        self._is_lost = False
        self._will_return = True
        self._lost = anyio.Event()
        self._on_given_up = on_given_up
        self._peers: Peers = peers or NoPeers()
        self._given_up = GivenUp()
        self._reconnecting: asyncio.Task[None] | None = None
        self._ended = anyio.Event()

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise Unavailable("the engine is starting: try again in a few seconds")
        return self._info

    async def start(self) -> EngineInfo:
        """Start the process if it is ours, connect, and wait until the model is loaded; raises what prevented that.

        An engine of somebody else's that has ended is awaited as long as its address exists: another may be on its way.
        """
        try:
            if isinstance(self._engine, EngineProcess):
                await anyio.to_thread.run_sync(self._engine.start)
            while self._info is None:
                try:
                    self._info = await self._connection.connect(self._address)
                except StreamserveError as error:
                    may_come = self._reconnects and isinstance(self._engine, str) and self._may_restart()
                    if not (may_come and (self._awaits_start or isinstance(error, EngineDead))):
                        raise
                    await asyncio.sleep(RECONNECT_INTERVAL_S)
        except BaseException:
            await self.stop()
            raise
        return self._info

    async def open(self, specs: list[SequenceSpec]) -> list[SequenceStream]:
        """Admit sequences, all or none; see `Engine.open`. Raises `EndsEngines` for those of requests that were given up."""
        self._given_up.check(specs)
        self._require_connection()
        await self._resumption.wait_no_suspects()
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

    def refusal(self, tenant: Tenant) -> QueueFull | None:
        """The error with which the engine refuses every request of a tenant now, as far as it has said so."""
        return self._connection.standings.refusal(tenant)

    def quotas(self, tenant: Tenant) -> Quotas | None:
        """What a tenant may still use, as far as the engine has said."""
        return self._connection.standings.quotas(tenant)

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

    async def snapshots(self) -> list[EngineSnapshot]:
        """The one snapshot of this engine."""
        try:
            stats = await self.stats()
        except StreamserveError:
            return [EngineSnapshot(self.info, None)]
        return [EngineSnapshot(self.info, stats)]

    async def stop(self) -> None:
        """End every stream with `EngineDead`, disconnect, and end the process if it is ours. Idempotent."""
        self._reconnects = False
        with anyio.CancelScope(shield=True):
            if self._reconnecting is not None:
                self._reconnecting.cancel()
                await asyncio.wait([self._reconnecting])
            await self._resumption.stop()
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
    def has_ended(self) -> bool:
        """Whether the engine has ended, and none is awaited."""
        return self._ended.is_set()

    @property
    def has_started(self) -> bool:
        """Whether the engine has been ready, at some time."""
        return self._info is not None

    @property
    def will_return(self) -> bool:
        """Whether an engine is started again when this one ends, as far as is known."""
        return self._will_return

    @property
    def has_suspects(self) -> bool:
        """Whether new sequences wait since one of those that are resumed may end the engine."""
        return self._resumption.has_suspects

    @property
    def num_streams(self) -> int:
        """Sequences that are open here."""
        return len(self._streams)

    @property
    def replicas(self) -> list[RemoteEngine]:
        """The engines that serve the model: this one."""
        return [self]

    def continuable(self) -> list[ChannelStream]:
        """Streams that another engine may continue: of an engine that will return, all but the suspects, which stay with it."""
        return [stream for stream in self._streams.streams() if not (self._will_return and stream.resume_state.is_suspect)]

    def leave(self) -> None:
        """Its sequences will be continued elsewhere although it has not ended: none of them is suspected of anything."""
        for stream in self._streams.streams():
            stream.resume_state.engine_left()

    def release(self, stream: ChannelStream) -> bool:
        """Give up a stream for another engine to `adopt`; False when it has ended meanwhile."""
        return self._streams.release(stream.sequence_id) is not None

    def adopt(self, stream: ChannelStream) -> None:
        """Continue the stream of another engine, now or when this one has returned."""
        self._streams.adopt(stream)
        if not self._is_lost:
            self._resumption.resume([stream])

    def refuse(self, fingerprints: Iterable[bytes]) -> None:
        """Have the engine refuse these requests, which were given up."""
        self._given_up.add(fingerprints)
        if not self._is_lost:
            self._connection.refuse(self._given_up.fingerprints)

    @property
    def _address(self) -> str | TcpAddress:
        if isinstance(self._engine, str):
            return self._engine
        if self._engine.address is None:
            raise EngineDead("no engine is there")
        return self._engine.address

    def _require_connection(self) -> None:
        if self._is_lost:
            raise Unavailable("the engine is restarting: try again in a few seconds")

    def _deliver(self, deltas: list[tuple[str, TokenDelta]]) -> None:
        self._streams.deliver(deltas)

    def _end(self, reason: StreamserveError) -> None:
        """Wait for the engine's restart, or end with it."""
        if self._info is None and self._awaits_start:
            # `start` tries again.
            return
        if not (self._reconnects and self._info is not None):
            self._give_up(reason)
        elif not self._is_lost:
            self._is_lost = True
            self._lost.set()
            self._resumption.interrupt()
            self._reconnecting = asyncio.create_task(self._reconnect(reason))

    def _give_up(self, reason: StreamserveError) -> None:
        self._reconnects = self._is_lost = False
        self._resumption.end()
        self._lost.set()
        self._connection.end(reason)
        self._streams.end_all(reason)
        self._ended.set()

    async def _reconnect(self, reason: StreamserveError) -> None:
        """Try to connect until the engine is restarted, and resume its sequences; give up when its address is removed."""
        logger.warning("lost the engine: %s", reason.message)
        # First, so that calls without a reply take their streams out of the table.
        await asyncio.sleep(RECONNECT_INTERVAL_S)
        self._count_loss()
        await self._peers.lost(self)
        while self._is_lost:
            try:
                self._info = await self._connection.connect(self._address)
            except StreamserveError:
                # Not up yet, or unable to start: its supervisor may restart it.
                if not self._may_restart():
                    self._will_return = False
                    await self._peers.lost(self)
                    self._give_up(reason)
                else:
                    await asyncio.sleep(RECONNECT_INTERVAL_S)
            else:
                self._is_lost, self._lost = False, anyio.Event()
                self._resume_all()

    def _may_restart(self) -> bool:
        if isinstance(self._engine, Place):
            return not self._engine.is_closed
        return os.path.exists(self._engine if isinstance(self._engine, str) else self._engine.address)

    def _count_loss(self) -> None:
        """End the streams that have lost one engine too many."""
        given_up = self._streams.engine_lost()
        for state in given_up:
            logger.error("gave up a sequence: %d engines have ended under it", state.num_losses)
            self._on_given_up(state.num_losses)
        if given_up:
            fingerprints = [state.fingerprint for state in given_up]
            self._given_up.add(fingerprints)
            self._peers.given_up(fingerprints)

    def _resume_all(self) -> None:
        """Have the new engine continue the sequences of the one that was lost."""
        self._connection.refuse(self._given_up.fingerprints)
        self._streams.expire()
        streams = self._streams.streams()
        logger.warning("reconnected to the engine: resuming %d sequences", len(streams))
        self._resumption.resume(streams)
        self._peers.returned(self)
