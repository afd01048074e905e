"""One API worker's connection to an engine process: calls, commands that have no result, and deltas.

Runs on the API worker's event loop. Knows nothing of streams or processes: its owner gets deltas and the end by callback.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from streamserve.aio.calls import PendingCalls
from streamserve.engine.error_info import restore
from streamserve.engine.ipc import frames
from streamserve.engine.ipc.link import Link, LinkLimits
from streamserve.engine.ipc.packing import pack
from streamserve.engine.ipc.standings import Standings
from streamserve.engine.ipc.tcp import TcpAddress, open_tcp
from streamserve.errors import EngineDead, InvalidParameter, StreamserveError, Unavailable
from streamserve.types import EngineInfo, EngineStats, SequenceSpec, TokenDelta


class EngineConnection:
    """Once ended, every call raises the reason, until it has been connected again. The `SequenceControl` of remote streams.

    standings  what the engine has said of tenants

    on_deltas  called with the deltas of each step
    on_end     called at each end, with the reason
    """

    def __init__(
        self,
        limits: LinkLimits,
        *,
        on_deltas: Callable[[list[tuple[str, TokenDelta]]], None],
        on_end: Callable[[StreamserveError], None],
    ) -> None:
        self._limits = limits
        self._on_deltas = on_deltas
        self._on_end = on_end
        self._link: Link[frames.Reply] | None = None
        self._shares_clock = True
        self._ready: asyncio.Future[EngineInfo] | None = None
        self._calls: PendingCalls[frames.Opened | frames.Refused | frames.Stats] = PendingCalls()
        self.standings = Standings()

    async def connect(self, address: str | TcpAddress) -> EngineInfo:
        """Connect and wait until the model is loaded; raises what kept it from loading, or `EngineDead`.

        address  the path of an engine's socket on this machine, or the gateway of one on any
        """
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[EngineInfo] = loop.create_future()
        if self._link is not None:
            self._link.cut_off()
        self._ready = ready
        self._calls.reopen()
        link: Link[frames.Reply] = Link(
            frames.reply_decoder(), self._limits, on_message=self._take, on_lost=lambda: self._lose(link)
        )
        self._link = link
        self._shares_clock = isinstance(address, str)
        try:
            if isinstance(address, str):
                await loop.create_unix_connection(lambda: link, address)
            else:
                await loop.create_connection(lambda: link, sock=await open_tcp(address))
        except OSError as error:
            self._link = self._ready = None
            raise EngineDead(f"the engine process can't be reached: {error.strerror or error}") from error
        info = await ready
        # An engine may be ready and fail in one burst of frames, before whoever waits for it goes on.
        self._calls.require_open()
        return info

    async def drained(self) -> None:
        """Return once the engine has read most of what it was sent: a long prompt is not to be queued behind others."""
        if self._link is not None:
            await self._link.drained()

    async def open(self, specs: list[SequenceSpec], *, are_suspects: bool = False) -> None:
        """Have sequences admitted, all or none; raises the refusal.

        are_suspects  as in `OpenSequences`

        The message is sent before the first await. Call it once `drained`: more than a bounded amount is never queued.
        """
        sequences = pack(specs)
        if sequences.num_ids > self._limits.message_ids:
            raise InvalidParameter(
                "prompt",
                f"the request has {sequences.num_ids} tokens in all its prompts and lists; at most {self._limits.message_ids}",
            )
        tenant = specs[0].tenant
        reply = await self._call(lambda number: frames.OpenSequences(number, sequences, are_suspects))
        assert isinstance(reply, frames.Opened | frames.Refused)
        self.standings.told_quotas(tenant, reply.quotas)
        if isinstance(reply, frames.Refused):
            self.standings.told_refusal(tenant, reply.error, reply.holds_s)
            raise restore(reply.error, param=reply.param)

    async def stats(self) -> EngineStats:
        """The engine's own snapshot."""
        reply = await self._call(frames.ReadStats)
        if isinstance(reply, frames.Refused):
            raise restore(reply.error)
        assert isinstance(reply, frames.Stats)
        return reply.stats

    def refuse(self, fingerprints: list[bytes]) -> None:
        """Have the engine admit no more sequences of these requests."""
        self._send(frames.RefuseRequests(fingerprints))

    def pause(self, sequence_id: str) -> None:
        self._send(frames.PauseSequence(sequence_id))

    def resume(self, sequence_id: str) -> None:
        self._send(frames.ResumeSequence(sequence_id))

    def end_reasoning(self, sequence_id: str) -> None:
        self._send(frames.EndReasoning(sequence_id))

    def abort(self, sequence_id: str) -> None:
        self._send(frames.AbortSequence(sequence_id, time.monotonic() if self._shares_clock else None))

    def end(self, reason: StreamserveError) -> None:
        """Fail pending calls and later ones with `reason`, until the next `connect`; only the first reason counts."""
        if self._calls.is_closed:
            return
        self._calls.close(reason)
        self.standings.forget()
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(reason)
        self._on_end(reason)

    async def close(self, reason: StreamserveError) -> None:
        """End and disconnect. Idempotent."""
        self.end(reason)
        if self._link is not None and self._link.is_connected:
            self._link.cut_off()
            await self._link.wait_closed()

    def _send(self, command: frames.Command) -> None:
        if self._link is not None:
            self._link.send(command)

    async def _call(self, command: Callable[[int], frames.Command]) -> frames.Opened | frames.Refused | frames.Stats:
        def send(number: int) -> None:
            if self._link is None or not self._link.is_connected:
                raise Unavailable("the engine is starting: try again in a few seconds")
            self._link.send(command(number))

        return await self._calls.call(send)

    def _take(self, reply: frames.Reply) -> None:
        match reply:
            case frames.Deltas(deltas):
                self._on_deltas(deltas)
            case frames.Opened(number) | frames.Refused(number) | frames.Stats(number):
                self._calls.complete(number, reply)
            case frames.Room():
                self.standings.told_room()
            case frames.Ready(info):
                if self._ready is not None and not self._ready.done():
                    self._ready.set_result(info)
            case frames.Failed(error):
                self.end(restore(error))

    def _lose(self, link: Link[frames.Reply]) -> None:
        # The link of an engine before may take its time to be lost.
        if link is self._link:
            self.end(EngineDead("the engine process has ended"))
