"""An answer as server-sent events.

An ASGI response of our own: a framework's would cost a coroutine or two per event and forgets its iterator when the client
leaves. Every write holds whole events; after a 200 there is exactly one ending, whatever happens; after a disconnect nothing
more is written.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

import anyio
import msgspec
from litestar.types import Receive, Scope, Send

from streamserve.engine.error_info import restore
from streamserve.errors import StreamserveError
from streamserve.server.apis.openai.frames import Frames
from streamserve.server.delivery.answer import Answer, Generation
from streamserve.server.delivery.flusher import Flusher
from streamserve.server.delivery.run_until_blocked import Rest, run_until_blocked
from streamserve.server.http.errors import guarded
from streamserve.server.http.protocol import direct_write
from streamserve.types import TextDelta

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]
KEEPALIVE = b"\n\n"
LAST_WORDS_S = 1.0
"""How long the ending of a failed stream may wait for a client that does not read."""


class EventStream(Answer):
    """Streams text deltas as `frames` encodes them.

    Events are written from callbacks, without a turn of this answer's task; it only takes over while the client does not read.
    """

    def __init__(self, frames: Frames, flusher: Flusher, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._frames = frames
        self._flusher = flusher
        self._take: Callable[[], TextDelta | None] = lambda: None
        self._send: Send | None = None
        self._write: Callable[[bytes], bool] | None = None
        self._rest: Rest | None = None
        self._is_due = False
        self._is_over = False
        self._wanted = anyio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._write = direct_write(scope)
        await super().__call__(scope, receive, send)

    async def _answer(self, generation: Generation, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS, *self._headers]})
        self._account.last_event_at = monotonic()
        self._send = send
        self._take = generation.take_nowait
        generation.listen(self._become_due)
        try:
            while not self._is_over or self._rest is not None:
                await self._wanted.wait()
                self._wanted = anyio.Event()
                await self._finish_sending()
        finally:
            self._is_over = True

    def _become_due(self) -> None:
        if not (self._is_due or self._is_sending or self._is_over):
            self._is_due = True
            self._flusher.add(self)

    def flush(self) -> None:
        """Write what is ready; see `flusher.Flushable`."""
        self._is_due = False
        if self._is_over or self._error is not None or self._client_left:
            return
        try:
            self._write_ready()
        except Exception as error:
            self._error, self._is_over = guarded(error, self.request_id), True
        if self._is_over or self._rest is not None:
            self._wanted.set()

    def _write_ready(self) -> None:
        body = self._ready_events()
        if not body or (self._write is not None and not self._has_ended and self._write(body)):
            return
        assert self._send is not None
        self._rest = run_until_blocked(
            self._send({"type": "http.response.body", "body": body, "more_body": not self._has_ended})
        )
        self._is_sending = self._rest is not None

    def _ready_events(self) -> bytes:
        """Everything that can be had without waiting; a connection that lags finds several deltas."""
        body = b""
        while (delta := self._take()) is not None:
            if delta.error is not None:
                self._error, self._is_over = restore(delta.error), True
                return body + self._frames.delta(msgspec.structs.replace(delta, finish_reason=None, error=None))
            self._account.record(delta)
            body += self._frames.delta(delta)
        if self._account.unfinished == 0:
            self._is_over = self._has_ended = True
            body += self._frames.end()
        return body

    async def _finish_sending(self) -> None:
        """Wait until the client has read enough of what it was sent, then go on."""
        rest, self._rest = self._rest, None
        if rest is not None:
            await rest
            self._is_sending = False
            self._become_due()

    async def _answer_failure(self, error: StreamserveError, send: Send) -> None:
        with anyio.move_on_after(LAST_WORDS_S):
            await send({"type": "http.response.body", "body": self._frames.failure(error), "more_body": False})

    async def _watch(self, receive: Receive, send: Send) -> None:
        limits = self._limits
        kept_alive_at = 0.0
        while True:
            due = max(self._account.last_event_at, kept_alive_at) + limits.keepalive_s
            with anyio.move_on_after(max(due - monotonic(), 0.0)):
                if (await receive())["type"] == "http.disconnect":
                    self._leave(self._phase())
                    return
            now = monotonic()
            if now < max(self._account.last_event_at, kept_alive_at) + limits.keepalive_s:
                continue
            kept_alive_at = now
            if not self._is_sending:
                await send({"type": "http.response.body", "body": KEEPALIVE, "more_body": True})
            elif now - self._account.last_event_at >= limits.send_timeout_s:
                self._metrics.slow_client_closes.add()
                self._leave("blocked")
                return

    def _phase(self) -> str:
        if self._is_sending:
            return "blocked"
        return "streaming" if self._account.has_begun else "queued"
