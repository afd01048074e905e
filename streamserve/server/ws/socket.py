"""One open WebSocket: listens, starts and cancels streams, notices when it has been silent, slow or open for too long.

A reading task, a writing one, one that watches the clock, and one per stream that runs, in one task group on the API worker's
event loop: when the client goes, all of them go.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from time import monotonic
from typing import Any

import anyio
from anyio.lowlevel import checkpoint
from litestar.exceptions import WebSocketDisconnect
from litestar.types import Receive, Scope, Send

from streamserve.aio.wakeup import Wakeup
from streamserve.errors import InvalidParameter, StreamserveError
from streamserve.server.api import Create
from streamserve.server.config import ServerConfig
from streamserve.server.http.access.auth import authorization_of, tenant_of
from streamserve.server.http.bodies.request_body import Body
from streamserve.server.http.errors import guarded
from streamserve.server.open_sockets import Closing, Leave
from streamserve.server.service import Service
from streamserve.server.ws.closing import BINARY, IDLE, NOT_AN_OBJECT, SERVER_FAULT, SLOW, TOO_MANY_CREATES, TOO_OLD
from streamserve.server.ws.messages import (
    error_message,
    parse,
    pong_message,
    response_id_of,
    starting_after_of,
    stream_id_of,
)
from streamserve.server.ws.streams import Streams, TooManyStreams
from streamserve.server.ws.writer import SocketWriter

logger = logging.getLogger("streamserve.server")

FLUSH_TIMEOUT_S = 1.0
"""How long messages that wait may hold up a close."""


class StreamSocket:
    """Serves one accepted socket.

    creates  by message type
    scope    of the upgrade, which says whose the socket is
    """

    def __init__(self, service: Service, creates: Mapping[str, Create], scope: Scope, receive: Receive, send: Send) -> None:
        self._service = service
        self._creates = creates
        self._tenant = tenant_of(scope)
        self._authorization = authorization_of(scope)
        self._receive = receive
        self._send = send
        self._writer = SocketWriter(send)
        self._scope = anyio.CancelScope()
        self._closing: Closing | None = None
        self._leave: Leave | None = None
        self._is_taking = False
        self._deadlines_changed = Wakeup()
        self._opened_at = self._last_heard_at = monotonic()

    async def run(self) -> None:
        """Serve an accepted socket until it is closed by either side."""
        service = self._service
        service.metrics.ws_connections.add(1)
        try:
            with service.sockets.registered(self):
                try:
                    await self._serve()
                except Exception:
                    logger.exception("a WebSocket failed")
                    self._closing = SERVER_FAULT
                if self._closing is not None:
                    await self._send_close(self._closing)
        finally:
            service.metrics.ws_connections.add(-1)

    def leave(self, leave: Leave) -> None:
        """Close once every stream has had its ending and the silence has lasted for long enough. Idempotent."""
        self._leave = leave
        self._deadlines_changed.set()

    async def _serve(self) -> None:
        with self._scope:
            async with anyio.create_task_group() as tasks:
                streams = Streams(
                    self._service,
                    self._writer,
                    tasks,
                    tenant=self._tenant,
                    authorization=self._authorization,
                    max_streams=self._service.config.max_streams_per_socket,
                    on_idle=self._become_quiet,
                )
                tasks.start_soon(self._writer.run)
                tasks.start_soon(self._watch, self._service.config, streams)
                await self._read(streams)
                tasks.cancel_scope.cancel()

    def _close(self, closing: Closing) -> None:
        if self._closing is None:
            self._closing = closing
            self._scope.cancel()

    def _become_quiet(self) -> None:
        self._last_heard_at = monotonic()
        if self._leave is not None:
            self._deadlines_changed.set()

    async def _send_close(self, closing: Closing) -> None:
        try:
            if closing is SLOW:
                self._service.metrics.slow_client_closes.add()
            else:
                with anyio.move_on_after(FLUSH_TIMEOUT_S):
                    await self._writer.flush_replies()
            await self._send({"type": "websocket.close", "code": closing.code, "reason": closing.reason})
        except (OSError, WebSocketDisconnect):
            # It left first.
            return

    async def _read(self, streams: Streams) -> None:
        while (event := await self._receive())["type"] == "websocket.receive":
            self._is_taking = True
            await self._take(event.get("text"), streams)
            self._is_taking = False
            self._become_quiet()
            # Messages that are here already don't wait, and other tasks would.
            await checkpoint()
            await self._writer.wait_for_room()

    async def _take(self, text: str | None, streams: Streams) -> None:
        try:
            message = None if text is None else await parse(text, self._service.large_work)
        except StreamserveError as error:
            self._refuse(error)
        else:
            if message is None:
                self._close(BINARY if text is None else NOT_AN_OBJECT)
            else:
                self._dispatch(message, streams)

    def _dispatch(self, body: Body, streams: Streams) -> None:
        message = body.fields
        kind = message.pop("type", None)
        try:
            if isinstance(kind, str) and (create := self._creates.get(kind)) is not None:
                self._create(kind, body, streams, create)
            elif kind == "response.resume":
                self._resume(message, streams)
            elif kind == "response.cancel":
                _command(message, streams.cancel, streams.cancel_response)
            elif kind == "response.answer":
                _command(message, streams.answer_now, streams.answer_response_now)
            elif kind == "ping":
                self._writer.reply(pong_message(message))
            else:
                known = ", ".join([*self._creates, "response.resume", "response.cancel", "response.answer", "ping"])
                raise InvalidParameter("type", f"must be one of {known}")
        except Exception as error:
            self._refuse(guarded(error, "-"))

    def _refuse(self, error: StreamserveError) -> None:
        self._service.metrics.reject(error)
        self._writer.reply(error_message(error))

    def _create(self, kind: str, body: Body, streams: Streams, create: Create) -> None:
        stream_id = stream_id_of(body.fields, required=kind != "response.create")
        body.fields.pop("stream_id", None)
        try:
            streams.create(stream_id, create, kind, body)
        except TooManyStreams as error:
            self._service.metrics.reject(error)
            self._writer.reply(error_message(error, stream_id))
        if streams.is_overfull:
            self._close(TOO_MANY_CREATES)

    def _resume(self, message: dict[str, Any], streams: Streams) -> None:
        stream_id = stream_id_of(message)
        response_id = response_id_of(message)
        if response_id is None:
            raise InvalidParameter("response_id", "is required")
        try:
            streams.resume(stream_id, response_id, starting_after_of(message))
        except TooManyStreams as error:
            self._service.metrics.reject(error)
            self._writer.reply(error_message(error, stream_id))

    async def _watch(self, config: ServerConfig, streams: Streams) -> None:
        while True:
            now = monotonic()
            due, closing = min(self._deadlines(config, streams, now))
            if due <= now:
                self._close(closing)
                return
            with anyio.move_on_after(due - now):
                await self._deadlines_changed.wait()

    def _deadlines(self, config: ServerConfig, streams: Streams, now: float) -> Iterator[tuple[float, Closing]]:
        yield self._opened_at + config.socket_age_s, TOO_OLD
        yield (self._writer.sending_since or now) + config.send_timeout_s, SLOW
        is_quiet = streams.has_no_streams and not self._is_taking
        yield (self._last_heard_at if is_quiet else now) + config.socket_idle_s, IDLE
        if is_quiet and self._leave is not None:
            yield self._leave.due_at(self._last_heard_at, self._opened_at), self._leave.closing


def _command(message: Mapping[str, Any], to_stream: Callable[[str | None], None], to_response: Callable[[str], None]) -> None:
    """Pass a command on to the stream of this socket, or the response of any, that its message names."""
    response_id = response_id_of(message)
    if response_id is None:
        to_stream(stream_id_of(message))
    else:
        to_response(response_id)
