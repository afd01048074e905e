"""Requests about responses that another API worker keeps: sent on to that worker, and its answers back.

ASGI apps, on one API worker's event loop. Only a worker that has just said it keeps something is asked for it, so nothing goes
round in circles.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

from streamserve.errors import Unavailable
from streamserve.server.http.errors import send_error
from streamserve.server.service import Service

if TYPE_CHECKING:
    from httpx import Response

_PREFIX = "/v1/responses/"
_HOP_BY_HOP = frozenset({b"connection", b"content-length", b"host", b"keep-alive", b"transfer-encoding"})


class ForwardingByPath:
    """A middleware: what asks about a response by its path goes to the worker that keeps it."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        door = await self._door(scope)
        app = self._app if door is None else Forwarded(door)
        await app(scope, receive, send)

    async def _door(self, scope: Scope) -> str | None:
        if scope["type"] != ScopeType.HTTP or not scope["path"].startswith(_PREFIX):
            return None
        response_id = scope["path"].removeprefix(_PREFIX).partition("/")[0]
        return None if self._service.responses.get(response_id) else await self._service.door_to(response_id)


class Forwarded:
    """Has the worker behind `door` answer a request.

    body  the request's, where it has been read already; else it has none
    """

    def __init__(self, door: str, body: bytes = b"") -> None:
        self._door = door
        self._body = body
        self._has_begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch, receive, tasks.cancel_scope)
            await self._forward(scope, send)
            tasks.cancel_scope.cancel()

    async def _forward(self, scope: Scope, send: Send) -> None:
        # Here and not above: most servers have one worker, and never need it.
        from httpx import RequestError

        try:
            async with self._answer(scope) as answer:
                await self._relay(answer, send)
        except RequestError:
            if self._has_begun:
                raise
            await send_error(send, Unavailable("the API worker that keeps this response is gone"))

    @asynccontextmanager
    async def _answer(self, scope: Scope) -> AsyncIterator[Response]:
        from httpx import URL, AsyncClient, AsyncHTTPTransport

        headers = [(name, value) for name, value in scope["headers"] if name not in _HOP_BY_HOP]
        url = URL("http://neighbour", raw_path=scope["raw_path"] + b"?" + scope["query_string"])
        method = str(scope["method"])  # type: ignore[typeddict-item]
        async with (
            AsyncClient(transport=AsyncHTTPTransport(uds=self._door), timeout=None) as client,
            client.stream(method, url, headers=headers, content=self._body) as answer,
        ):
            yield answer

    async def _relay(self, answer: Response, send: Send) -> None:
        self._has_begun = True
        headers = [(name.lower(), value) for name, value in answer.headers.raw if name.lower() not in _HOP_BY_HOP]
        await send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
        async for piece in answer.aiter_raw():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _watch(self, receive: Receive, scope: anyio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            continue
        scope.cancel()
