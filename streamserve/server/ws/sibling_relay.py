"""A stream of a socket that another API worker makes: requested over that worker's internal socket, its messages
passed on as they are.

One per such stream, in a task of the socket's own group. A client that lags holds it back like any other stream: few messages
are kept here, and the connection between the workers does the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import orjson
from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from streamserve.aio.wakeup import Wakeup
from streamserve.errors import StreamFailed
from streamserve.server.ws.messages import TERMINAL
from streamserve.server.ws.writer import SocketWriter

WINDOW = 16
"""Messages that may wait here for their turns."""

_PATH = "ws://sibling/v1/ws"


class SiblingRelay:
    """One stream that a sibling makes.

    internal_socket  of the worker that keeps the response
    authorization    shows the key of the client, whose response it is
    """

    def __init__(
        self, writer: SocketWriter, stream_id: str | None, internal_socket: str, authorization: Mapping[str, str]
    ) -> None:
        self._writer = writer
        self._name = {} if stream_id is None else {"stream_id": stream_id}
        self._internal_socket = internal_socket
        self._headers = authorization
        self._messages: deque[str] = deque()
        self._is_queued = False
        self._room = Wakeup()
        self._socket: ClientConnection | None = None
        # Commands that came before the socket did.
        self._waiting: list[str] = []

    async def run(self, message: Mapping[str, Any]) -> None:
        """Send `message` to the sibling, and return once the stream's ending has been sent to the client.

        Raises `StreamFailed` when the other worker goes away.
        """
        try:
            async with unix_connect(
                self._internal_socket, uri=_PATH, additional_headers=self._headers, compression=None, max_size=None
            ) as socket:
                try:
                    await self._send_request(socket, message)
                    await self._relay(socket)
                finally:
                    # Now: a task that is cancelled can't wait for a closing handshake.
                    socket.transport.abort()
        except (OSError, WebSocketException) as error:
            raise StreamFailed("the API worker that makes this response is gone") from error

    async def cancel(self) -> None:
        """Have the stream end as cancelled; its ending is passed on."""
        await self._command("response.cancel")

    async def answer_now(self) -> None:
        """Have the stream end its reasoning."""
        await self._command("response.answer")

    async def _command(self, kind: str) -> None:
        if self._socket is None:
            self._waiting.append(kind)
        else:
            await self._send_command(self._socket, kind)

    async def _send_request(self, socket: ClientConnection, message: Mapping[str, Any]) -> None:
        await socket.send(orjson.dumps({**message, **self._name}).decode())
        self._socket = socket
        for kind in self._waiting:
            await self._send_command(socket, kind)

    async def _send_command(self, socket: ClientConnection, kind: str) -> None:
        with suppress(ConnectionClosed):
            await socket.send(orjson.dumps({"type": kind, **self._name}).decode())

    async def _relay(self, socket: ClientConnection) -> None:
        async for text in socket:
            assert isinstance(text, str), "a stream is made of text"
            self._messages.append(text)
            self._become_ready()
            if orjson.loads(text)["type"] in TERMINAL:
                break
            await self._wait_until_fewer_than(WINDOW)
        else:
            raise ConnectionClosed(None, None)
        await self._wait_until_fewer_than(1)

    async def _wait_until_fewer_than(self, count: int) -> None:
        while len(self._messages) >= count:
            await self._room.wait()

    def next_message(self) -> str | None:
        """The message whose turn it is, if there is one."""
        return self._messages.popleft() if self._messages else None

    def settle(self) -> None:
        """The message has been sent: queue again, or wait for the next."""
        self._is_queued = False
        self._room.set()
        if self._messages:
            self._become_ready()

    def _become_ready(self) -> None:
        if not self._is_queued:
            self._is_queued = True
            self._writer.queue(self)
