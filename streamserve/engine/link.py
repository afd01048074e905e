"""One end of an engine socket: frames in as calls, frames out as bytes, and a bound on a peer that does not read.

Runs on the event loop of its process; both ends use it. Never waits for the peer: what it sends is queued, and a socket that
does not drain within bounds is treated as gone. Knows no command and no reply. An asyncio protocol and not an anyio stream,
because there is a frame per step and this way there is no task and no wait per frame.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Generic, NamedTuple, cast

from streamserve.engine.frames import Command, FrameDecoder, M, ProtocolViolation, Reply, encode

logger = logging.getLogger(__name__)


class LinkLimits(NamedTuple):
    """When a peer that does not read is treated as gone.

    high_water_bytes  unsent bytes above which the socket counts as not draining
    backlog_bytes     unsent bytes above which it is given up
    drain_timeout_s   seconds of not draining after which it is given up
    """

    high_water_bytes: int = 1 << 20
    backlog_bytes: int = 64 << 20
    drain_timeout_s: float = 60.0


class Link(asyncio.Protocol, Generic[M]):
    """A connection that carries frames.

    on_made     called once, when messages can be sent
    on_message  called with each message, in order
    on_lost     called once, when the connection is gone for whatever reason
    """

    def __init__(
        self,
        decoder: FrameDecoder[M],
        limits: LinkLimits,
        *,
        on_message: Callable[[M], None],
        on_lost: Callable[[], None],
        on_made: Callable[[], None] | None = None,
    ) -> None:
        self._decoder = decoder
        self._on_made = on_made
        self._on_message = on_message
        self._on_lost = on_lost
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._lost = self._loop.create_future()

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection that has not been lost yet."""
        return self._transport is not None

    def send(self, message: Command | Reply) -> None:
        """Queue a message; dropped when the peer has gone. Never blocks."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.write(encode(message))
        if transport.get_write_buffer_size() > self._limits.backlog_bytes:
            self._give_up()

    def close(self) -> None:
        """Close the connection once everything queued has been sent."""
        if self._transport is not None:
            self._transport.close()

    def cut_off(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    async def wait_closed(self) -> None:
        """Return when the connection is gone."""
        await asyncio.wait([self._lost])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not to be checked with isinstance: uvloop's transports are no asyncio.Transport.
        self._transport = made = cast(asyncio.Transport, transport)
        made.set_write_buffer_limits(high=self._limits.high_water_bytes)
        if self._on_made is not None:
            self._on_made()

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._decoder.feed(data):
                self._on_message(message)
        except ProtocolViolation as violation:
            logger.warning("the peer broke the engine protocol and is cut off: %s", violation)
            self.cut_off()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.resume_writing()
        self._on_lost()
        self._lost.set_result(None)

    def pause_writing(self) -> None:
        self._patience = self._loop.call_later(self._limits.drain_timeout_s, self._give_up)

    def resume_writing(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        logger.warning("the peer does not read what it is sent and is treated as gone")
        self.cut_off()
