"""An answer as server-sent events.

An ASGI response of our own: a framework's would cost a coroutine or two per event and forgets its iterator when the client
leaves. Every write holds whole events; after a 200 there is exactly one ending, whatever happens; after a disconnect nothing
more is written.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

import anyio
from litestar.types import Receive, Send

from streamserve.engine.error_info import restore
from streamserve.errors import StreamFailed, StreamserveError
from streamserve.server.answer import Answer, Generation
from streamserve.server.frames import Frames
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
    """Streams text deltas as `frames` encodes them."""

    def __init__(self, frames: Frames, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._frames = frames

    async def _answer(self, generation: Generation, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS, *self._headers]})
        self._last_event_at = monotonic()
        try:
            await self._relay(generation, send)
        except Exception as error:
            self._error = self._guarded(error)

    async def _relay(self, generation: Generation, send: Send) -> None:
        async for delta in generation:
            body = self._encode(delta)
            # A connection that lags finds several deltas waiting: one write takes them all.
            while (ready := generation.take_nowait()) is not None:
                body += self._encode(ready)
            is_last = self._unfinished == 0
            if is_last:
                body += self._frames.end()
            if body:
                self._is_sending = True
                await send({"type": "http.response.body", "body": body, "more_body": not is_last})
                self._is_sending = False
            if is_last:
                return
        raise StreamFailed("the engine's stream ended without a finish")

    def _encode(self, delta: TextDelta) -> bytes:
        if delta.finish_reason == "error":
            raise StreamFailed("unknown error") if delta.error is None else restore(delta.error)
        self._record(delta)
        return self._frames.delta(delta)

    async def _answer_failure(self, error: StreamserveError, send: Send) -> None:
        with anyio.move_on_after(LAST_WORDS_S):
            await send({"type": "http.response.body", "body": self._frames.failure(error), "more_body": False})

    async def _watch(self, receive: Receive, send: Send) -> None:
        limits = self._limits
        kept_alive_at = 0.0
        while True:
            due = max(self._last_event_at, kept_alive_at) + limits.keepalive_s
            with anyio.move_on_after(max(due - monotonic(), 0.0)):
                if (await receive())["type"] == "http.disconnect":
                    self._leave(self._phase())
                    return
            now = monotonic()
            if now < max(self._last_event_at, kept_alive_at) + limits.keepalive_s:
                continue
            kept_alive_at = now
            if not self._is_sending:
                await send({"type": "http.response.body", "body": KEEPALIVE, "more_body": True})
            elif now - self._last_event_at >= limits.send_timeout_s:
                self._metrics.slow_client_closes.add()
                self._leave("blocked")
                return

    def _phase(self) -> str:
        if self._is_sending:
            return "blocked"
        return "queued" if self._first_event_at is None else "streaming"
