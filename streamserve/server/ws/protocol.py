"""uvicorn's WebSocket protocol; adds closing towards a client that does not read, and JSON bodies to refused upgrades.

Named by `http_server`; lives between the transport and the app.
"""

from __future__ import annotations

import http
import logging
from functools import partial
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import PayloadTooBig
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Response
from websockets.server import ServerProtocol

from streamserve.errors import InvalidRequest
from streamserve.server.http.bodies.body_memory import BodyMemory
from streamserve.server.http.connections.protocol import refusal
from streamserve.server.http.errors import InternalError, NotFound, error_body, send_error

NOT_HERE = NotFound("no WebSocket at this path; there are some at /v1/ws and /v1/responses")
CLOSE_TIMEOUT_S = 5.0
"""How long a client may take to read what it was sent last, and to answer the close frame."""


MAX_FRAGMENTS = 4096
"""Frames of one message; browsers and libraries send a message of the largest size in some hundreds."""

FRAMES_PER_TURN = 512
"""Frames of one connection that are read before others' events have their turn: they take one or two milliseconds."""

SLICE_BYTES = 2048
"""Bytes that are parsed at a time; the shortest frame has 6."""


class BadHandshake(InvalidRequest):
    """The request asks for a WebSocket, and not as RFC 6455 has it."""

    code = "bad_handshake"


class Handshake(ServerProtocol):
    """`websockets`' half of the connection: its refusals have the shape of every error, and the fragments of messages an end.

    num_frames  frames received so far
    """

    num_frames = 0
    _num_fragments = 0

    def recv_frame(self, frame: Frame) -> None:
        self.num_frames += 1
        if frame.opcode is Opcode.CONT:
            self._num_fragments += 1
            if self._num_fragments > MAX_FRAGMENTS:
                raise PayloadTooBig(None, self.max_message_size)
        elif frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._num_fragments = 0
        super().recv_frame(frame)

    def reject(self, status: http.HTTPStatus | int, text: str) -> Response:
        response = super().reject(status, text)
        error = BadHandshake(text.strip()) if status < 500 else InternalError(text.strip())
        response.body = error_body(error)
        for name, value in (("Content-Type", "application/json"), ("Content-Length", str(len(response.body)))):
            del response.headers[name]
            response.headers[name] = value
        return response


class SocketProtocol(WebSocketsSansIOProtocol):
    """One connection that requests a WebSocket.

    memory  holds its message while that arrives
    """

    def __init__(self, *arguments: Any, memory: BodyMemory, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn = self._frames = Handshake(max_size=self.config.ws_max_size, logger=logging.getLogger("uvicorn.error"))
        self._unread = bytearray()
        self._is_behind = False
        self._message = memory.hold(self._drop)
        self._new_message = partial(memory.hold, self._drop)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_message()
        super().connection_lost(exc)

    def send_receive_event_to_app(self) -> None:
        self._end_message()
        super().send_receive_event_to_app()

    def data_received(self, data: bytes) -> None:
        is_waiting = bool(self._unread)
        self._unread += data
        if is_waiting:
            self.transport.pause_reading()
        else:
            self._read()

    def _read(self) -> None:
        """Read a turn's frames; the rest when others had theirs."""
        last = self._frames.num_frames + FRAMES_PER_TURN
        while self._unread and self._frames.num_frames < last and not self.transport.is_closing():
            piece = bytes(self._unread[:SLICE_BYTES])
            del self._unread[:SLICE_BYTES]
            self._receive(piece)
        if self.transport.is_closing():
            self._unread.clear()
        elif self._unread:
            # `receive` resumes reading when this is set: not before all of this has been read.
            self.read_paused = False
            self._is_behind = True
            self.transport.pause_reading()
            self.loop.call_soon(self._read)
        elif self._is_behind:
            self._catch_up()

    def _catch_up(self) -> None:
        self._is_behind = False
        if self.queue.empty():
            self.read_paused = False
            self.transport.resume_reading()
        else:
            self.read_paused = True

    def _end_message(self) -> None:
        with self._message:
            self._message = self._new_message()

    def _drop(self) -> None:
        """Close a socket whose message must make room for others."""
        self.conn.fail(CloseCode.TRY_AGAIN_LATER, "too many large messages are arriving")
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.transport.close()

    def _receive(self, data: bytes) -> None:
        self._message.grow(len(data))
        if self.transport.is_closing():
            return
        super().data_received(data)
        if not (self.frames or self.conn.reader.buffer):
            # What came was no message: pings, say.
            self._end_message()
        fault = self.conn.handshake_exc
        if fault is not None and not self.handshake_initiated:
            # uvicorn waits for the rest of a head that `websockets` has given up: for ever.
            self.handshake_initiated = self.close_sent = True
            self.transport.write(refusal(BadHandshake(f"the head of this upgrade is not accepted: {fault.__cause__ or fault}")))
            self.transport.close()

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:
            # A client that pings and does not read would fill this process's memory with pongs.
            self.conn.data_to_send()

    async def send(self, message: Any) -> None:
        if message["type"] == "websocket.close" and not self.handshake_complete:
            # How Litestar turns down a path without a socket; uvicorn would say 403 and not a word more.
            await send_error(super().send, NOT_HERE, prefix="websocket.http")
            self.handshake_complete = True
            return
        if message["type"] == "websocket.close":
            # uvicorn would wait here until the client has read: for ever, if not reading is why it is closed.
            self.writable.set()
            self.loop.call_later(CLOSE_TIMEOUT_S, self.transport.abort)
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            # Else uvicorn logs that the app did not complete the handshake.
            self.handshake_complete = True
