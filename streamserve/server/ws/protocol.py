"""uvicorn's WebSocket protocol, which can also close towards a client that does not read, and says why it opens no socket.

Named by `http_server`; lives between the transport and the app.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from streamserve.server.errors import NotFound, send_error

NOT_HERE = NotFound("no WebSocket at this path; there are some at /v1/ws and /v1/responses")
CLOSE_TIMEOUT_S = 5.0
"""How long a client may take to read what it was sent last, and to answer the close frame."""


class SocketProtocol(WebSocketsSansIOProtocol):
    """See the module."""

    async def send(self, message: Any) -> None:
        if message["type"] == "websocket.close" and not self.handshake_complete:
            # How Litestar turns down a path without a socket; uvicorn would say 403 and not a word more.
            await send_error(super().send, NOT_HERE, prefix="websocket.http")
            return
        if message["type"] == "websocket.close":
            # uvicorn would wait here until the client has read: for ever, if not reading is why it is closed.
            self.writable.set()
            self.loop.call_later(CLOSE_TIMEOUT_S, self.transport.abort)
        await super().send(message)
