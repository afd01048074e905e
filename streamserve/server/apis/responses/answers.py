"""How a response leaves over HTTP: as one object when it has ended, or as the events of its log.

ASGI apps, on one API worker's event loop. A client that leaves stops reading, and the producer decides what becomes of it.
"""

from __future__ import annotations

import anyio
import orjson
from anyio.abc import TaskGroup
from litestar.types import Receive, Scope, Send

from streamserve.aio.wakeup import Wakeup
from streamserve.server.apis.responses.stored_response import StoredResponse
from streamserve.server.delivery.event_log import Cursor, Entry, ResumeGap, as_server_sent_event
from streamserve.server.delivery.sse import HEADERS, KEEPALIVE
from streamserve.server.http.errors import error_object, send_error
from streamserve.server.service import Service

MAX_WRITE = 64 << 10
"""Bytes of events that go into one write while a client catches up."""

Headers = list[tuple[bytes, bytes]]


class ResponseObject:
    """Sends a response as it stands."""

    def __init__(self, record: StoredResponse, headers: Headers) -> None:
        self._record = record
        self._headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = orjson.dumps(self._record.as_object())
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *self._headers]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})


class WholeResponse:
    """Starts a response and sends its object once it has ended, or at once when it runs in the background."""

    def __init__(self, service: Service, record: StoredResponse, headers: Headers) -> None:
        self._service = service
        self._record = record
        self._headers = headers
        self._has_left = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = self._record
        await self._service.start(record.producer)
        if not record.is_background:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch, receive)
                await record.producer.wait_ended()
                tasks.cancel_scope.cancel()
        if self._has_left:
            return
        if record.error is not None:
            await send_error(send, record.error)
        else:
            await ResponseObject(record, self._headers)(scope, receive, send)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            continue
        self._has_left = True
        producer = self._record.producer
        self._service.metrics.disconnects.add(1, "streaming" if producer.has_begun else "queued")
        producer.abort()


class ResponseEvents:
    """Sends the events of a response from `number` on, as they come, until its end.

    record  started first unless it runs already
    """

    def __init__(
        self, service: Service, record: StoredResponse, headers: Headers, *, number: int = 0, starts: bool = False
    ) -> None:
        self._service = service
        self._record = record
        self._headers = headers
        self._number = number
        self._starts = starts
        self._wake = Wakeup()
        self._is_sending = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Read before it starts, so that the producer notices a client that leaves in between.
        with self._record.producer.log.read(self._number, self._wake.set) as cursor:
            if self._starts:
                await self._service.start(self._record.producer)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch, receive, tasks)
                await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS, *self._headers]})
                await self._relay(cursor, send)
                tasks.cancel_scope.cancel()

    async def _relay(self, cursor: Cursor, send: Send) -> None:
        is_over = False
        while not is_over:
            body, is_over = self._take(cursor)
            if not body and not is_over:
                with anyio.move_on_after(self._service.config.keepalive_s) as silence:
                    await self._wake.wait()
                if not silence.cancelled_caught:
                    continue
                body = KEEPALIVE
            if not await self._send(send, body, more_body=not is_over):
                return

    def _take(self, cursor: Cursor) -> tuple[bytes, bool]:
        """What can be sent without waiting, and whether that is the end."""
        body = b""
        try:
            while len(body) < MAX_WRITE and (taken := cursor.take()) is not None:
                body += as_server_sent_event(taken[1], taken[0])
        except ResumeGap as gap:
            entry = Entry("error", orjson.dumps(error_object(gap)["error"])[1:-1])
            return body + as_server_sent_event(entry, cursor.number), True
        return body, cursor.is_at_end

    async def _send(self, send: Send, body: bytes, *, more_body: bool) -> bool:
        """Write; False when the client has taken nothing for too long."""
        self._is_sending = True
        with anyio.move_on_after(self._service.config.send_timeout_s) as patience:
            await send({"type": "http.response.body", "body": body, "more_body": more_body})
        self._is_sending = False
        if patience.cancelled_caught:
            self._service.metrics.slow_client_closes.add()
            self._service.metrics.disconnects.add(1, "blocked")
        return not patience.cancelled_caught

    async def _watch(self, receive: Receive, tasks: TaskGroup) -> None:
        while (await receive())["type"] != "http.disconnect":
            continue
        self._service.metrics.disconnects.add(1, "blocked" if self._is_sending else self._phase())
        tasks.cancel_scope.cancel()

    def _phase(self) -> str:
        return "streaming" if self._record.producer.has_begun else "queued"
