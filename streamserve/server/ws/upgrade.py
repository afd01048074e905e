"""From the HTTP upgrade to an open socket: checks, and refusals as HTTP responses.

Keys and origins are checked before, by middleware that serves both kinds of scope.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from litestar import WebSocket, websocket
from litestar.di import NamedDependency
from litestar.handlers import WebsocketRouteHandler

from streamserve.errors import QueueFull
from streamserve.server.api import Create
from streamserve.server.http.errors import guarded, send_error
from streamserve.server.service import Service
from streamserve.server.ws.socket import StreamSocket

PROTOCOL = "realtime"
"""The subprotocol that browsers offer beside the one that carries their key; the only one ever echoed."""


class TooManySockets(QueueFull):
    """This worker has as many sockets as it may."""

    code = "too_many_sockets"


def websocket_routes(paths: list[str], creates: Mapping[str, Create]) -> WebsocketRouteHandler:
    """The sockets at `paths`, which all speak the same; `creates` by message type."""

    @websocket(paths)
    async def stream_socket(socket: WebSocket[Any, Any, Any], service: NamedDependency[Service]) -> None:
        await socket.receive()
        try:
            _check(service)
        except Exception as error:
            refusal = guarded(error, "upgrade")
            service.metrics.reject(refusal)
            await send_error(socket.send, refusal, prefix="websocket.http")
            return
        offered = socket.scope.get("subprotocols") or []
        subprotocol = PROTOCOL if PROTOCOL in offered else None
        await socket.send({"type": "websocket.accept", "subprotocol": subprotocol, "headers": []})
        await StreamSocket(service, creates, socket.scope, socket.receive, socket.send).run()

    return stream_socket


def _check(service: Service) -> None:
    service.lifecycle.require_ready()
    if len(service.sockets) >= service.config.max_sockets:
        raise TooManySockets(f"{service.config.max_sockets} sockets are open already: use one for many streams")
