"""Forwarding of requests about a response to the API worker that keeps it, and of its answer to the client.

ASGI apps, on one API worker's event loop. A request is forwarded only to a worker that has just been found to keep the
response, so none is forwarded in a circle. Knows neither what is kept nor by whom.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

from streamserve.errors import Unavailable
from streamserve.server.http.access.owned_id import OwnedId, owned_id
from streamserve.server.http.errors import send_error

if TYPE_CHECKING:
    from httpx import Response

_PREFIX = "/v1/responses/"
_NOT_IDS = ("compact", "input_tokens")
_HOP_BY_HOP = frozenset({b"connection", b"content-length", b"host", b"keep-alive", b"transfer-encoding"})


class ForwardingByPath:
    """Middleware that forwards requests about a response, named by its path, to the worker that keeps it.

    find_elsewhere  the internal socket of another worker that keeps a response; None for one that is to be answered here
    """

    def __init__(self, app: ASGIApp, find_elsewhere: Callable[[OwnedId], Awaitable[str | None]]) -> None:
        self._app = app
        self._find_elsewhere = find_elsewhere

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        internal_socket = await self._find(scope)
        app = self._app if internal_socket is None else Forwarded(internal_socket)
        await app(scope, receive, send)

    async def _find(self, scope: Scope) -> str | None:
        if scope["type"] != ScopeType.HTTP or not scope["path"].startswith(_PREFIX):
            return None
        response_id = scope["path"].removeprefix(_PREFIX).partition("/")[0]
        return None if response_id in _NOT_IDS else await self._find_elsewhere(owned_id(scope, response_id))


class Forwarded:
    """Forwards a request to the worker that serves on `internal_socket`.

    body  the request's, where it has been read already; else it has none
    """

    def __init__(self, internal_socket: str, body: bytes = b"") -> None:
        self._internal_socket = internal_socket
        self._body = body
        self._has_begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._cancel_on_disconnect, receive, tasks.cancel_scope)
            await self._forward(scope, send)
            tasks.cancel_scope.cancel()

    async def _forward(self, scope: Scope, send: Send) -> None:
        # Here and not above: most servers have one worker, and never need it.
        from httpx import RequestError

        try:
            async with self._response(scope) as response:
                await self._relay(response, send)
        except RequestError:
            if self._has_begun:
                raise
            await send_error(send, Unavailable("the API worker that keeps this response is gone"))

    @asynccontextmanager
    async def _response(self, scope: Scope) -> AsyncIterator[Response]:
        from httpx import URL, AsyncClient, AsyncHTTPTransport

        headers = [(name, value) for name, value in scope["headers"] if name not in _HOP_BY_HOP]
        url = URL("http://sibling", raw_path=scope["raw_path"] + b"?" + scope["query_string"])
        method = str(scope["method"])  # type: ignore[typeddict-item]
        async with (
            AsyncClient(transport=AsyncHTTPTransport(uds=self._internal_socket), timeout=None) as client,
            client.stream(method, url, headers=headers, content=self._body) as response,
        ):
            yield response

    async def _relay(self, response: Response, send: Send) -> None:
        self._has_begun = True
        headers = [(name.lower(), value) for name, value in response.headers.raw if name.lower() not in _HOP_BY_HOP]
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        async for chunk in response.aiter_raw():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _cancel_on_disconnect(self, receive: Receive, scope: anyio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            continue
        scope.cancel()
