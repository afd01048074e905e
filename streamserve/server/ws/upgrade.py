"""From the HTTP upgrade to an open socket: checks, and refusals as HTTP responses.

Keys are checked before, by the middleware that serves both kinds of scope.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from litestar import WebSocket, websocket
from litestar.di import NamedDependency
from litestar.handlers import WebsocketRouteHandler
from litestar.types import Scope

from streamserve.errors import QueueFull, StreamserveError
from streamserve.server.api import Create
from streamserve.server.config import CorsConfig
from streamserve.server.http.errors import guarded, send_error
from streamserve.server.service import Service
from streamserve.server.ws.socket import StreamSocket

PROTOCOL = "realtime"
"""The subprotocol that browsers offer beside the one that carries their key; the only one ever echoed."""


class OriginForbidden(StreamserveError):
    """A page of another site tried to open a socket with its visitor's rights."""

    status = 403
    type = "invalid_request_error"
    code = "origin_forbidden"


class TooManySockets(QueueFull):
    """This worker has as many sockets as it may."""

    code = "too_many_sockets"


def websocket_routes(paths: list[str], creates: Mapping[str, Create]) -> WebsocketRouteHandler:
    """The sockets at `paths`, which all speak the same; `creates` by message type."""

    @websocket(paths)
    async def stream_socket(socket: WebSocket[Any, Any, Any], service: NamedDependency[Service]) -> None:
        await socket.receive()
        try:
            _check(service, socket.scope)
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


def _check(service: Service, scope: Scope) -> None:
    service.lifecycle.require_ready()
    origin = _header(scope, b"origin")
    if origin is not None and not _is_allowed(origin, _header(scope, b"host"), service.config.cors):
        raise OriginForbidden("pages of this origin may not open sockets here: allow it with --allowed-origins")
    if len(service.sockets) >= service.config.max_sockets:
        raise TooManySockets(f"{service.config.max_sockets} sockets are open already: use one for many streams")


def _is_allowed(origin: str, host: str | None, cors: CorsConfig | None) -> bool:
    """Whether it is the server's own page, or one that the operator allows."""
    if host is not None and origin.partition("://")[2].lower() == host.lower():
        return True
    return cors is not None and ("*" in cors.origins or origin in cors.origins)


def _header(scope: Scope, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)
