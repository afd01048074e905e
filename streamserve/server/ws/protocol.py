"""uvicorn's WebSocket protocol; adds closing towards a client that does not read, and JSON bodies to refused upgrades.

Named by `http_server`; lives between the transport and the app.
"""

from __future__ import annotations

import http
import logging
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Response
from websockets.server import ServerProtocol

from streamserve.errors import InvalidRequest
from streamserve.server.http.errors import InternalError, NotFound, error_body, send_error
from streamserve.server.http.protocol import refusal

NOT_HERE = NotFound("no WebSocket at this path; there are some at /v1/ws and /v1/responses")
CLOSE_TIMEOUT_S = 5.0
"""How long a client may take to read what it was sent last, and to answer the close frame."""


class BadHandshake(InvalidRequest):
    """The request asks for a WebSocket, and not as RFC 6455 has it."""

    code = "bad_handshake"


class Handshake(ServerProtocol):
    """`websockets`' half of the connection, whose refusals have the shape of every error."""

    def reject(self, status: http.HTTPStatus | int, text: str) -> Response:
        response = super().reject(status, text)
        error = BadHandshake(text.strip()) if status < 500 else InternalError(text.strip())
        response.body = error_body(error)
        for name, value in (("Content-Type", "application/json"), ("Content-Length", str(len(response.body)))):
            del response.headers[name]
            response.headers[name] = value
        return response


class SocketProtocol(WebSocketsSansIOProtocol):
    """One connection that asked for a WebSocket."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn = Handshake(max_size=self.config.ws_max_size, logger=logging.getLogger("uvicorn.error"))

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        fault = self.conn.handshake_exc
        if fault is not None and not self.handshake_initiated:
            # uvicorn waits for the rest of a head that `websockets` has given up: for ever.
            self.handshake_initiated = self.close_sent = True
            self.transport.write(refusal(BadHandshake(f"the head of this upgrade is not accepted: {fault.__cause__ or fault}")))
            self.transport.close()

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:
            # A client that pings and does not read would fill this process's memory with pongs.
            self.conn.data_to_send()

    async def send(self, message: Any) -> None:
        if message["type"] == "websocket.close" and not self.handshake_complete:
            # How Litestar turns down a path without a socket; uvicorn would say 403 and not a word more.
            await send_error(super().send, NOT_HERE, prefix="websocket.http")
            self.handshake_complete = True
            return
        if message["type"] == "websocket.close":
            # uvicorn would wait here until the client has read: for ever, if not reading is why it is closed.
            self.writable.set()
            self.loop.call_later(CLOSE_TIMEOUT_S, self.transport.abort)
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            # Else uvicorn logs that the app did not complete the handshake.
            self.handshake_complete = True
