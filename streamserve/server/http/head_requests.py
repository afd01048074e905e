"""HEAD wherever there is GET: the app answers a GET, and the server below sends its head alone (RFC 9110, 9.3.2).

Wraps the whole app, on an API worker's event loop.
"""

from __future__ import annotations

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send


class HeadAsGet:
    """Middleware that hands HEAD requests to the app as GET; uvicorn, which keeps its own scope, drops their bodies."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)
