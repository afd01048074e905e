"""The events of a log as server-sent events, from any of them on: for clients that may come back.

An ASGI app on one API worker's event loop. A client that leaves stops reading, and the logged run decides what becomes of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import anyio
from anyio.abc import TaskGroup
from litestar.types import Receive, Scope, Send

from streamserve.aio.wakeup import Wakeup
from streamserve.server.delivery.asgi import KEEPALIVE, Headers, Timeouts, body_part, start_events, wait_disconnected
from streamserve.server.delivery.event_ids import event_id
from streamserve.server.delivery.event_log import Cursor, ResumeGap
from streamserve.server.delivery.events import NumberedEvent
from streamserve.server.delivery.logged_run import LoggedRun

MAX_WRITE = 64 << 10
"""Bytes of events that go into one write while a client catches up."""

E = TypeVar("E", bound=NumberedEvent)


class LogStream(Generic[E]):
    """An ASGI app that sends the events of a run from `number` on, as they come, until its end.

    has_ids  whether each event carries its id, by which a client goes on after it
    start    starts the run, when it does not run yet
    """

    def __init__(
        self,
        logged: LoggedRun[E],
        *,
        timeouts: Timeouts,
        headers: Headers,
        number: int = 0,
        has_ids: bool = False,
        start: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._logged = logged
        self._timeouts = timeouts
        self._headers = headers
        self._number = number
        self._has_ids = has_ids
        self._start = start
        self._wakeup = Wakeup()
        self._is_sending = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Read before it starts, so that the run notices a client that leaves in between.
        with self._logged.log.read(self._number, self._wakeup.set) as cursor:
            headers = self._headers
            if self._start is not None:
                await self._start()
                headers = [*headers, *self._logged.run.headers]
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch, receive, tasks)
                await send(start_events(headers))
                await self._relay(cursor, send)
                tasks.cancel_scope.cancel()

    async def _relay(self, cursor: Cursor[E], send: Send) -> None:
        is_over = False
        while not is_over:
            body, is_over = self._take(cursor)
            if not body and not is_over:
                with anyio.move_on_after(self._timeouts.keepalive_s) as silence:
                    await self._wakeup.wait()
                if not silence.cancelled_caught:
                    continue
                body = KEEPALIVE
            if not await self._send(send, body, more_body=not is_over):
                return

    def _take(self, cursor: Cursor[E]) -> tuple[bytes, bool]:
        """What can be sent without waiting, and whether that is the end."""
        body = b""
        try:
            while len(body) < MAX_WRITE and (taken := cursor.take()) is not None:
                number, event = taken
                if self._has_ids:
                    body += event_id(self._logged.id, number)
                body += event.server_sent(number)
        except ResumeGap as gap:
            return body + self._logged.gap_event(gap).server_sent(cursor.number), True
        return body, cursor.is_at_end

    async def _send(self, send: Send, body: bytes, *, more_body: bool) -> bool:
        """Write; False when the client has taken nothing for too long."""
        self._is_sending = True
        with anyio.move_on_after(self._timeouts.send_timeout_s) as waiting:
            await send(body_part(body, more_body=more_body))
        self._is_sending = False
        if waiting.cancelled_caught:
            run = self._logged.run
            run.metrics.slow_client_closes.add()
            run.count_disconnect(is_blocked=True)
        return not waiting.cancelled_caught

    async def _watch(self, receive: Receive, tasks: TaskGroup) -> None:
        await wait_disconnected(receive)
        self._logged.run.count_disconnect(is_blocked=self._is_sending)
        tasks.cancel_scope.cancel()
