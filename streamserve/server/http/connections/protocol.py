"""uvicorn's HTTP protocol, with read timeouts and a fast write path for streamed events.

One per connection, on the API worker's event loop; configured by `http_server`. uvicorn calls an app only once it has read a
request's head, so clients that send nothing, or stop in the middle, are timed out here; that covers WebSocket upgrades, whose
heads are read here, too. HTTP/1.0 has no chunked encoding: there a stream ends with the connection (RFC 9112, 6.1 and 6.3).
An offer of another protocol than WebSocket is ignored, with which httptools would stop (RFC 9110, 7.8). Knows nothing of what
is served.

A client that half-closes the connection counts as gone: a program that ends leaves nothing else on the wire, and its sequences
must not run on until a write fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import httptools
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from streamserve.errors import InvalidRequest, StreamserveError
from streamserve.server.http.connections.connection_limit import EXCESS_TIMEOUT_S, ConnectionLimit, TooManyConnections
from streamserve.server.http.connections.head import MAX_HEAD_BYTES, HeadTooLarge, head_fault
from streamserve.server.http.errors import error_body, error_headers

MIN_BODY_RATE = 16 << 10
"""Bytes a second that a body must come with, on average, once the receive timeout has passed."""

WRITE = "streamserve.write"
"""The ASGI extension that gives an app `BodyWriter.write`."""


class RequestTimeout(InvalidRequest):
    """The rest of a request did not arrive in time."""

    status = 408
    code = "request_timeout"


class RequestProtocol(HttpToolsProtocol):
    """One connection.

    receive_timeout_s  seconds that a head may take, from its first byte or the connection's start, and that the body may pause;
                       and that a body may take in all, beside what it takes at `MIN_BODY_RATE`
    connection_limit   None for no limit
    """

    def __init__(
        self, *arguments: Any, receive_timeout_s: float, connection_limit: ConnectionLimit | None, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self._receive_timeout_s = receive_timeout_s
        self._limit = connection_limit
        self._is_excess = False
        self._is_retired = False
        self._last_read_at = self.loop.time()
        self._read_timer: asyncio.TimerHandle | None = None
        self._is_in_head = False
        self._is_complete = False
        self._head_bytes = 0
        self._body_bytes = 0
        self._body_began_at = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._limit is not None and self._limit.is_exceeded(len(self.connections)):
            self._is_excess = True
            self._receive_timeout_s = min(self._receive_timeout_s, EXCESS_TIMEOUT_S)
            if self._limit.is_exhausted(len(self.connections)):
                self._refuse(TooManyConnections())
                return
        self._start_read_timer(self._receive_timeout_s)

    def retire(self) -> None:
        """Close the connection after the response that is being sent, or else after the next one."""
        self._is_retired = True
        if self._last_cycle is not None:
            self._last_cycle.keep_alive = False

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_read_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._is_complete = False
        self._feed(data)
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(HeadTooLarge())
        if self._read_timer is None and not self._is_complete and not self.transport.is_closing():
            self._start_read_timer(self._receive_timeout_s)

    def handle_websocket_upgrade(self) -> None:
        cycle = self._last_cycle
        if self.scope["http_version"] == "1.0" or not (cycle is None or cycle.response_complete):
            # The request before it would never receive `http.disconnect`.
            self._refuse(InvalidRequest("a WebSocket takes HTTP/1.1, and a connection on which nothing else is being answered"))
            return
        self._stop_read_timer()
        self._is_complete = True
        super().handle_websocket_upgrade()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._last_read_at = self.loop.time()
        self._is_complete, self._is_in_head, self._head_bytes = False, True, 0

    def on_headers_complete(self) -> None:
        fault = head_fault(self.parser.get_http_version(), self.parser.get_method(), self.url, self.headers)
        if fault is not None:
            raise fault
        if self._is_excess and self._limit is not None and not self._limit.serves_always(self.url):
            raise TooManyConnections
        if self._offers_another_protocol:
            return
        super().on_headers_complete()
        self._last_read_at = self._body_began_at = self.loop.time()
        self._body_bytes = 0
        self._is_in_head = False
        cycle = self._last_cycle
        if cycle is not None and cycle.scope is self.scope:
            cycle.keep_alive = cycle.keep_alive and not (self._is_excess or self._is_retired)
            cycle.scope["extensions"] = {WRITE: BodyWriter(cycle).write}  # type: ignore[dict-item]

    def on_body(self, body: bytes) -> None:
        self._last_read_at = self.loop.time()
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._offers_another_protocol:
            return
        self._is_complete = True
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        super()._start_asgi_task(cycle, CloseDelimited(cycle, app) if cycle.scope["http_version"] == "1.0" else app)  # type: ignore[arg-type]

    @property
    def _offers_another_protocol(self) -> bool:
        return self.parser.should_upgrade() and not self._should_upgrade()

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
            else:
                self._ignore_offer(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            fault = error.__context__
            self._refuse(fault if isinstance(fault, StreamserveError) else InvalidRequest("this is no HTTP request"))

    def _ignore_offer(self, rest: bytes) -> None:
        """Read the request again without its offer of another protocol, then the `rest`, at which the parser has stopped."""
        parser = self.parser
        lines = [b"%b %b HTTP/%b" % (parser.get_method(), self.url, parser.get_http_version().encode())]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        # As uvicorn sets up the first one: what is pipelined behind `Connection: close` must not fail the answer before it.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._feed(b"\r\n".join([*lines, b"", rest]))

    @property
    def _last_cycle(self) -> RequestResponseCycle | None:
        """The request whose head came last; None before the first, which uvicorn's annotation omits."""
        return self.cycle

    @property
    def _is_answering(self) -> bool:
        """Whether a complete request is being answered, so that nothing need come from the client."""
        cycle = self._last_cycle
        return cycle is not None and not (cycle.more_body or cycle.response_complete)

    def _start_read_timer(self, seconds: float) -> None:
        self._read_timer = self.loop.call_later(seconds, self._on_read_timeout)

    def _on_read_timeout(self) -> None:
        self._read_timer = None
        if self._is_complete or self.transport.is_closing():
            return
        now = self.loop.time()
        due = self._last_read_at
        if not self._is_in_head:
            due = min(due, self._body_began_at + self._body_bytes / MIN_BODY_RATE)
        left = due + self._receive_timeout_s - now
        if left > 0:
            self._start_read_timer(left)
        elif self._is_answering or self.flow.read_paused:
            self._body_began_at, self._body_bytes = now, 0
            self._start_read_timer(self._receive_timeout_s)
        else:
            self._time_out()

    def _time_out(self) -> None:
        cycle = self._last_cycle
        if self._is_in_head or (cycle is not None and not cycle.response_complete):
            self._refuse(RequestTimeout("the rest of the request did not come in time"))
        else:
            self.transport.close()

    def _refuse(self, error: StreamserveError) -> None:
        """Send `error` for what can't be handed to the app, unless another response has begun, and close."""
        self._stop_read_timer()
        cycle = self._last_cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            self.transport.write(refusal(error))
        self.transport.close()

    def _stop_read_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None


def refusal(error: StreamserveError) -> bytes:
    """The response to what can't be handed to an app, in bytes; the connection must be closed after it."""
    body = error_body(error)
    headers = [*error_headers(error), (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    return b"%b%b\r\n%b" % (STATUS_LINE[error.status], lines, body)


class CloseDelimited:
    """Wraps an app for an HTTP/1.0 client: a body without a content length ends with the connection."""

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
    """Writes chunks of a streamed body as the ASGI `send` of the same request would, without its layers.

    A coroutine, a message and a middleware per chunk cost as much as the rest of an event. The head and the last chunk go
    through `send`.
    """

    __slots__ = ("_cycle", "_flow", "_transport")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._flow = cycle.flow
        self._transport = cycle.transport

    def write(self, body: bytes) -> bool:
        """Write a non-empty chunk; returns False, with nothing written, when it would block: `send` it then."""
        cycle = self._cycle
        if self._flow.write_paused or not cycle.chunked_encoding:
            return False
        if not cycle.disconnected:
            self._transport.write(b"%x\r\n%b\r\n" % (len(body), body))
        return True


def direct_write(scope: Mapping[str, Any]) -> Callable[[bytes], bool] | None:
    """`BodyWriter.write` of a request; None under another server than ours."""
    write: Callable[[bytes], bool] | None = (scope.get("extensions") or {}).get(WRITE)
    return write
