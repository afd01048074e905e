"""An answer through a log: a task that reads a run, and keeps the events that a script makes of it for whoever reads them.

It may outlive the connection that requested it: without a reader it goes on for as long as its request allows, then the
sequences are aborted, within one step. Whatever ends it, the log gets exactly one ending. Runs on one API worker's event loop,
in the task group of `Delivery`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import anyio
from anyio.abc import TaskStatus

from streamserve.errors import StreamserveError
from streamserve.server.delivery.event_log import EventLog, LogLimits, ResumeGap
from streamserve.server.delivery.events import LoggedEvent, Script
from streamserve.server.delivery.run import Run

FOR_EVER = math.inf

E_co = TypeVar("E_co", bound=LoggedEvent, covariant=True)


class LoggedRun(Generic[E_co]):
    """One run on its way into `log`.

    gap_event    makes the last event of a reader that has fallen out of the log, whose run goes on
    unread_s     how long it goes on without a reader, once it has had one
    on_admitted  called once the sequences have been admitted
    limits       of the log
    ended_at     when it ended, by `time.monotonic`; None until then
    """

    def __init__(
        self,
        run: Run,
        script: Script[E_co],
        *,
        gap_event: Callable[[ResumeGap], E_co],
        unread_s: float = 0.0,
        on_admitted: Callable[[], None] | None = None,
        limits: LogLimits | None = None,
    ) -> None:
        self.run = run
        self.gap_event = gap_event
        self.log: EventLog[E_co] = EventLog(limits, on_read=self._keep_on, on_unread=self._abandon)
        self.is_resumable = unread_s > 0
        self.ended_at: float | None = None
        self._ended = anyio.Event()
        self._script = script
        self._unread_s = unread_s
        self._on_admitted = on_admitted
        self._leaving: asyncio.TimerHandle | None = None

    @property
    def id(self) -> str:
        """The answer's id."""
        return self.run.id

    @property
    def is_ended(self) -> bool:
        """Whether the log is complete and the sequences are gone."""
        return self._ended.is_set()

    @property
    def num_bytes(self) -> int:
        """Roughly the memory that the events take."""
        return self.log.num_bytes

    async def write(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Admit the request and log its events until the end.

        Reports as started once admitted; raises before that what keeps the request from being admitted.
        """
        try:
            async with self.run:
                if self._on_admitted is not None:
                    self._on_admitted()
                self.log.append(self._script.opening())
                task_status.started()
                try:
                    await self.run.answer(self._log_events, self._log_failure)
                finally:
                    self.log.end()
        finally:
            self.ended_at = time.monotonic()
            self._ended.set()

    async def wait_ended(self) -> None:
        """Return once the log is complete and the sequences are gone."""
        await self._ended.wait()

    def stop_waiting(self) -> None:
        """Abort a run that goes on only for a reader who may come back."""
        if self._leaving is not None:
            self.run.abort()

    async def _log_events(self) -> None:
        async for delta in self.run:
            self.log.append(self._script.delta(delta))
            if not self.run.is_finished:
                await self.log.wait_for_room()
        ending = self._script.end()
        self.run.has_ending = True
        self.log.append(ending)

    async def _log_failure(self, error: StreamserveError) -> None:
        self.log.append(self._script.failure(error))

    def _abandon(self) -> None:
        """The last reader has left."""
        if self._unread_s <= 0:
            self.run.abort()
        elif self._unread_s < FOR_EVER:
            self._leaving = asyncio.get_running_loop().call_later(self._unread_s, self.run.abort)

    def _keep_on(self) -> None:
        """There is a reader again."""
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None
