"""One end of an engine socket: calls a function with each message that arrives, and bounds what a peer leaves unread.

Runs on the event loop of its process; both ends use it. Never waits for the peer: what it sends is queued, and a connection
that does not drain within bounds is closed. Knows no command and no reply. An asyncio protocol and not an anyio stream,
because there is a frame per step and this way there is no task and no wait per frame.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Generic, NamedTuple, cast

from streamserve.engine.ipc.frames import Command, Reply
from streamserve.fail_points import cut_point
from streamserve.process.framing import FrameDecoder, M, ProtocolViolation, encode

logger = logging.getLogger(__name__)

LINK_WRITE = "link_write"
"""The fail point of a frame of which only a part is written."""


class LinkLimits(NamedTuple):
    """When the connection to a peer that does not read is closed.

    high_water_bytes  unsent bytes above which the socket counts as not draining
    backlog_bytes     unsent bytes above which it is closed
    drain_timeout_s   seconds of not draining after which it is closed
    message_ids       token ids in one message, at most: they take a few milliseconds to encode, and more to decode
    """

    high_water_bytes: int = 1 << 20
    backlog_bytes: int = 64 << 20
    drain_timeout_s: float = 60.0
    message_ids: int = 1 << 20


class Link(asyncio.Protocol, Generic[M]):
    """A connection that carries messages.

    on_connected  called once, when messages can be sent
    on_message    called with each message, in order
    on_lost       called once, when the connection is closed for whatever reason
    """

    def __init__(
        self,
        decoder: FrameDecoder[M],
        limits: LinkLimits,
        *,
        on_message: Callable[[M], None],
        on_lost: Callable[[], None],
        on_connected: Callable[[], None] | None = None,
    ) -> None:
        self._decoder = decoder
        self._on_connected = on_connected
        self._on_message = on_message
        self._on_lost = on_lost
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._drain_timer: asyncio.TimerHandle | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._lost = self._loop.create_future()

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection that has not been lost yet."""
        return self._transport is not None

    def send(self, message: Command | Reply) -> None:
        """Queue a message; dropped once the connection is closing. Never blocks."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.write(cut_point(LINK_WRITE, encode(message)))
        if transport.get_write_buffer_size() > self._limits.backlog_bytes:
            self._close_as_stalled()

    async def drained(self) -> None:
        """Return once no more is unsent than the high-water mark, or the connection is lost."""
        # Whoever was woken before may have filled it again.
        while not self._writable.is_set():
            await self._writable.wait()

    def close(self) -> None:
        """Close the connection once everything queued has been sent."""
        if self._transport is not None:
            self._transport.close()

    def cut_off(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    async def wait_closed(self) -> None:
        """Return once the connection is closed."""
        await asyncio.wait([self._lost])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not to be checked with isinstance: uvloop's transports are no asyncio.Transport.
        self._transport = made = cast(asyncio.Transport, transport)
        made.set_write_buffer_limits(high=self._limits.high_water_bytes)
        if self._on_connected is not None:
            self._on_connected()

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._decoder.feed(data):
                self._on_message(message)
        except ProtocolViolation as violation:
            logger.warning("the peer broke the engine protocol; closing the connection: %s", violation)
            self.cut_off()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.resume_writing()
        self._on_lost()
        self._lost.set_result(None)

    def pause_writing(self) -> None:
        self._writable.clear()
        self._drain_timer = self._loop.call_later(self._limits.drain_timeout_s, self._close_as_stalled)

    def resume_writing(self) -> None:
        self._writable.set()
        if self._drain_timer is not None:
            self._drain_timer.cancel()
            self._drain_timer = None

    def _close_as_stalled(self) -> None:
        logger.warning("the peer does not read what it is sent; closing the connection")
        self.cut_off()
