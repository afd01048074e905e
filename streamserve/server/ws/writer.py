"""What leaves a socket, in turns: one message of each stream that has one, round after round.

One task per socket, on its API worker's event loop. A stream with many events waits for its turn like all others, and a
socket that does not drain makes them all wait: each log then holds back its own run, and no other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from types import TracebackType
from typing import Protocol, Self

import anyio
import orjson
from litestar.exceptions import WebSocketDisconnect
from litestar.types import Send

from streamserve.aio.wakeup import Wakeup
from streamserve.server.delivery.event_log import Cursor, EventLog, ResumeGap
from streamserve.server.delivery.events import SocketEvent
from streamserve.server.ws.messages import error_message

MAX_REPLIES = 64
"""Messages outside of streams that may wait; beyond, nothing more is read from the client."""


class Turn(Protocol):
    """One stream of a socket, which queues for a turn whenever it has a message."""

    def next_message(self) -> str | None:
        """The message whose turn it is, if there is one."""
        ...

    def settle(self) -> None:
        """The message has been sent: queue again, or finish."""
        ...


class SocketWriter:
    """Sends the messages of one socket.

    sending_since  the time at which the message began that is being sent, None between messages
    """

    def __init__(self, send: Send) -> None:
        self._send_event = send
        self._replies: deque[str] = deque()
        self._turns: deque[Turn] = deque()
        self._wake = Wakeup()
        self._room = anyio.Event()
        self.sending_since: float | None = None

    async def run(self) -> None:
        """Write until the client has gone."""
        try:
            while True:
                await self._wake.wait()
                while self._replies or self._turns:
                    await self._send_round()
                    # Nothing in a round waits while the client reads: other sockets want the loop, too.
                    await asyncio.sleep(0)
        except (OSError, WebSocketDisconnect):
            # Gone; the reading side learns it by itself.
            return

    def reply(self, text: str) -> None:
        """Send a message outside of any stream, ahead of all streams. Never blocks."""
        self._replies.append(text)
        self._wake.set()

    async def wait_for_room(self) -> None:
        """Return once fewer than `MAX_REPLIES` such messages wait."""
        while len(self._replies) >= MAX_REPLIES:
            self._room = anyio.Event()
            await self._room.wait()

    async def flush_replies(self) -> None:
        """Send the messages outside of streams that still wait."""
        while self._replies:
            await self._send(self._replies.popleft())

    def queue(self, relay: Turn) -> None:
        """Give a stream its turn."""
        self._turns.append(relay)
        self._wake.set()

    async def _send_round(self) -> None:
        await self.flush_replies()
        self._room.set()
        for _ in range(len(self._turns)):
            relay = self._turns.popleft()
            text = relay.next_message()
            if text is not None:
                await self._send(text)
            relay.settle()

    async def _send(self, text: str) -> None:
        self.sending_since = monotonic()
        await self._send_event({"type": "websocket.send", "text": text, "bytes": None})
        self.sending_since = None


class Relay:
    """One stream's way from its log to a socket; leave its `with` block to stop reading.

    Raises `ResumeGap` when `log` does not hold event `number`.
    """

    def __init__(self, writer: SocketWriter, log: EventLog[SocketEvent], number: int, stream_id: str | None) -> None:
        self._writer = writer
        self._stream_id = stream_id
        self._encoded_id = None if stream_id is None else orjson.dumps(stream_id)
        self._is_queued = False
        self._sent = anyio.Event()
        self._cursor: Cursor[SocketEvent] = log.read(number, self._become_ready)

    async def wait_sent(self) -> None:
        """Return once the stream's last message has been sent."""
        await self._sent.wait()

    def next_message(self) -> str | None:
        """The message whose turn it is, if there is one."""
        try:
            taken = self._cursor.take()
        except ResumeGap as gap:
            self._sent.set()
            return error_message(gap, self._stream_id)
        if taken is None:
            return None
        number, event = taken
        return event.message(number, self._encoded_id)

    def settle(self) -> None:
        """The message has been sent: queue again, or finish."""
        self._is_queued = False
        if self._sent.is_set():
            return
        if self._cursor.is_at_end:
            self._sent.set()
        elif self._cursor.has_next:
            self._become_ready()

    def _become_ready(self) -> None:
        if not (self._is_queued or self._sent.is_set()):
            self._is_queued = True
            self._writer.queue(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._sent.set()
        self._cursor.close()
