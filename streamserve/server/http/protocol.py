"""uvicorn's HTTP protocol, with patience that ends and a short way out for events.

One per connection, on the API worker's event loop; named by `http_server`. uvicorn calls an app only once it has read a
request's head, so whoever connects and says nothing, or stops in the middle, is hung up on here; that covers the upgrades of
WebSockets, whose heads come this way, too. A client of HTTP/1.0, which knows no chunks, gets its streams up to the end of the
connection (RFC 9112, 6.1 and 6.3). Knows nothing of what is served.

A client that closes its own half of the connection counts as gone: on the wire that is all a program that ends leaves behind,
and a sequence must not run on for nobody until a write fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from litestar.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from streamserve.errors import InvalidRequest, StreamserveError
from streamserve.server.http.errors import error_body, error_headers

MAX_HEAD_BYTES = 64 << 10
"""Bytes of one request's head, all of its headers included."""

WRITE = "streamserve.write"
"""The ASGI extension by which an app gets at `BodyWriter.write`."""


class RequestTimeout(InvalidRequest):
    """A request began and did not go on."""

    status = 408
    code = "request_timeout"


class HeadTooLarge(InvalidRequest):
    """The headers are over the server's limit."""

    status = 431
    code = "headers_too_large"


class RequestProtocol(HttpToolsProtocol):
    """See the module.

    receive_timeout_s  how long a head may take from its first byte, or from the connection's start, and how long the body may
                       then pause
    """

    def __init__(self, *arguments: Any, receive_timeout_s: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._receive_timeout_s = receive_timeout_s
        self._heard_at = self.loop.time()
        self._patience: asyncio.TimerHandle | None = None
        self._is_in_head = False
        self._is_whole = False
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._be_patient(self._receive_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._is_whole = False
        super().data_received(data)
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(HeadTooLarge(f"a request's head may have {MAX_HEAD_BYTES} bytes"))
        if self._patience is None and not self._is_whole and not self.transport.is_closing():
            self._be_patient(self._receive_timeout_s)

    def handle_websocket_upgrade(self) -> None:
        cycle = self._last_cycle
        if self.scope["http_version"] == "1.0" or not (cycle is None or cycle.response_complete):
            # The one before it would never learn that its client has gone.
            self._refuse(InvalidRequest("a WebSocket takes HTTP/1.1, and a connection on which nothing else is being answered"))
            return
        self._stop_waiting()
        self._is_whole = True
        super().handle_websocket_upgrade()

    def send_400_response(self, msg: str) -> None:
        self._refuse(InvalidRequest("this is no HTTP request"))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._heard_at = self.loop.time()
        self._is_whole, self._is_in_head, self._head_bytes = False, True, 0

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._heard_at = self.loop.time()
        self._is_in_head = False
        cycle = self._last_cycle
        if cycle is not None and cycle.scope is self.scope:
            cycle.scope["extensions"] = {WRITE: BodyWriter(cycle).write}  # type: ignore[dict-item]

    def on_body(self, body: bytes) -> None:
        self._heard_at = self.loop.time()
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_whole = True
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        super()._start_asgi_task(cycle, UntilClose(cycle, app) if cycle.scope["http_version"] == "1.0" else app)  # type: ignore[arg-type]

    @property
    def _last_cycle(self) -> RequestResponseCycle | None:
        """The request whose head came last; none before the first, whatever uvicorn's annotation says."""
        return self.cycle

    @property
    def _is_answering(self) -> bool:
        """Whether a whole request is being answered: meanwhile nothing is expected of the client."""
        cycle = self._last_cycle
        return cycle is not None and not (cycle.more_body or cycle.response_complete)

    def _be_patient(self, seconds: float) -> None:
        self._patience = self.loop.call_later(seconds, self._lose_patience)

    def _lose_patience(self) -> None:
        self._patience = None
        if self._is_whole or self.transport.is_closing():
            return
        left = self._heard_at + self._receive_timeout_s - self.loop.time()
        if left > 0:
            self._be_patient(left)
        elif self._is_answering or self.flow.read_paused:
            self._be_patient(self._receive_timeout_s)
        else:
            self._hang_up()

    def _hang_up(self) -> None:
        cycle = self._last_cycle
        if self._is_in_head or (cycle is not None and not cycle.response_complete):
            self._refuse(RequestTimeout(f"nothing more of the request came for {self._receive_timeout_s:g} s"))
        else:
            self.transport.close()

    def _refuse(self, error: StreamserveError) -> None:
        """Answer what can't be handed to the app, unless another answer has begun; and close."""
        self._stop_waiting()
        cycle = self._last_cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            self.transport.write(refusal(error))
        self.transport.close()

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None


def refusal(error: StreamserveError) -> bytes:
    """The whole answer to what can't be handed to an app; the connection is to be closed after it."""
    body = error_body(error)
    headers = [*error_headers(error), (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    return b"%b%b\r\n%b" % (STATUS_LINE[error.status], lines, body)


class UntilClose:
    """An app for a client of HTTP/1.0: a body whose length is not known ends with the connection."""

    def __init__(self, cycle: RequestResponseCycle, app: ASGIApp) -> None:
        self._cycle = cycle
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_unchunked(message: Message) -> None:
            if message["type"] == "http.response.start" and not any(
                name.lower() == b"content-length" for name, _ in message.get("headers", [])
            ):
                self._cycle.chunked_encoding = False
            elif message["type"] == "http.response.body" and not self._cycle.expected_content_length:
                self._cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await self._app(scope, receive, send_unchunked)


class BodyWriter:
    """Puts pieces of a streamed body where the ASGI `send` of the same request would, without its layers.

    A coroutine, a message and a middleware per piece cost as much as the rest of an event. The head and the last piece go by
    `send`.
    """

    __slots__ = ("_cycle", "_flow", "_transport")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._flow = cycle.flow
        self._transport = cycle.transport

    def write(self, body: bytes) -> bool:
        """Write now; False, and nothing written, when that would have to wait: then `send` it. `body` must not be empty."""
        cycle = self._cycle
        if self._flow.write_paused or not cycle.chunked_encoding:
            return False
        if not cycle.disconnected:
            self._transport.write(b"%x\r\n%b\r\n" % (len(body), body))
        return True


def direct_write(scope: Mapping[str, Any]) -> Callable[[bytes], bool] | None:
    """`BodyWriter.write` of a request; None where another server than ours carries the app."""
    write: Callable[[bytes], bool] | None = (scope.get("extensions") or {}).get(WRITE)
    return write
