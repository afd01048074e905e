"""An answer as server-sent events, written while they are made.

An ASGI response of our own: a framework's would cost a coroutine or two per event and forgets its iterator when the client
leaves. Every write holds whole events; after a 200 there is exactly one ending, whatever happens; after a disconnect nothing
more is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import monotonic

import anyio
import orjson
from litestar.types import Receive, Scope, Send

from streamserve.errors import StreamserveError
from streamserve.server.delivery.asgi import KEEPALIVE, Headers, Timeouts, body_part, start_events, wait_disconnected
from streamserve.server.delivery.events import StreamedEvent, StreamScript, TextFrame
from streamserve.server.delivery.flusher import Flusher
from streamserve.server.delivery.run import Run
from streamserve.server.delivery.run_until_blocked import Rest, run_until_blocked
from streamserve.server.http.connections.protocol import direct_write
from streamserve.types import TextDelta

FAILURE_TIMEOUT_S = 1.0
"""How long the ending of a failed stream may wait for a client that does not read."""


class EventEncoder:
    """The server-sent bytes of a script's events; an event with nothing but text costs one concatenation."""

    def __init__(self, script: StreamScript, num_choices: int) -> None:
        self._script = script
        self._frames: list[TextFrame | None] = [None] * num_choices

    def delta(self, delta: TextDelta) -> bytes:
        """Every event for a delta; nothing when the delta completes no character."""
        frame = self._frames[delta.index]
        if frame is not None and delta.finish_reason is None:
            text, (before, after) = delta.text, frame
            return before + orjson.dumps(text) + after if text else b""
        events = server_sent(self._script.delta(delta))
        self._frames[delta.index] = self._script.text_frame(delta.index)
        return events


def server_sent(events: Iterable[StreamedEvent]) -> bytes:
    """The events, one after another."""
    return b"".join([event.server_sent() for event in events])


class EventStream:
    """An ASGI app that streams a run.

    Events are written from callbacks, without a turn of this answer's task; it only takes over while the client does not read.
    """

    def __init__(self, run: Run, script: StreamScript, *, flusher: Flusher, timeouts: Timeouts, headers: Headers) -> None:
        self._run = run
        self._script = script
        self._encode = EventEncoder(script, run.account.unfinished).delta
        self._flusher = flusher
        self._timeouts = timeouts
        self._headers = headers
        self._send: Send | None = None
        self._write: Callable[[bytes], bool] | None = None
        self._rest: Rest | None = None
        self._is_due = False
        self._is_sending = False
        self._is_over = False
        self._wanted = anyio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._write, self._send = direct_write(scope), send
        async with self._run as run, anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch, receive, send)
            await run.answer(self._stream, self._write_failure)
            tasks.cancel_scope.cancel()

    async def _stream(self) -> None:
        assert self._send is not None
        await self._send(start_events([*self._headers, *self._run.headers]))
        if opening := server_sent(self._script.opening()):
            await self._send(body_part(opening, more_body=True))
        self._run.account.last_event_at = monotonic()
        self._run.listen(self._become_due)
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
        if self._is_over or self._run.is_stopped:
            return
        try:
            self._write_ready()
        except Exception as error:
            self._run.fail(error)

    def _write_ready(self) -> None:
        """Write everything that can be had without waiting; a connection that lags finds several deltas."""
        run = self._run
        body = run.encode_ready(self._encode)
        if run.error is not None:
            self._is_over = True
        elif run.account.unfinished == 0:
            body += server_sent(self._script.end())
            self._is_over = run.has_ending = True
        if body and (self._write is None or self._is_over or not self._write(body)):
            assert self._send is not None
            self._rest = run_until_blocked(self._send(body_part(body, more_body=not run.has_ending)))
            self._is_sending = self._rest is not None
        if self._is_over or self._rest is not None:
            self._wanted.set()

    async def _finish_sending(self) -> None:
        """Wait until the client has read enough of what it was sent, then go on."""
        rest, self._rest = self._rest, None
        if rest is not None:
            await rest
            self._is_sending = False
            self._become_due()

    async def _write_failure(self, error: StreamserveError) -> None:
        assert self._send is not None
        with anyio.move_on_after(FAILURE_TIMEOUT_S):
            await self._send(body_part(server_sent(self._script.failure(error)), more_body=False))

    async def _watch(self, receive: Receive, send: Send) -> None:
        """Notice when the client leaves or takes nothing, and break a silence."""
        timeouts, account = self._timeouts, self._run.account
        kept_alive_at = 0.0
        while True:
            due = max(account.last_event_at, kept_alive_at) + timeouts.keepalive_s
            with anyio.move_on_after(max(due - monotonic(), 0.0)):
                await wait_disconnected(receive)
                self._run.leave(is_blocked=self._is_sending)
                return
            now = monotonic()
            if now < max(account.last_event_at, kept_alive_at) + timeouts.keepalive_s:
                continue
            kept_alive_at = now
            if not self._is_sending:
                await send(body_part(KEEPALIVE, more_body=True))
            elif now - account.last_event_at >= timeouts.send_timeout_s:
                self._run.metrics.slow_client_closes.add()
                self._run.leave(is_blocked=True)
                return
