"""The task that owns one generation and turns it into the events of a log.

It may outlive the connection that asked for it: without a reader it goes on for as long as its request allows, then the
sequences are aborted, within one step. Whatever ends it, the log gets exactly one ending. Runs on one API worker's event loop,
in the task group of the service.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import anyio
import msgspec
from anyio.abc import TaskStatus

from streamserve.engine.error_info import restore
from streamserve.errors import RequestAborted, StreamFailed, StreamserveError
from streamserve.server.delivery.active_requests import ActiveRequests
from streamserve.server.delivery.answer import Generation
from streamserve.server.delivery.event_log import Entry, EventLog, LogLimits
from streamserve.server.http.errors import guarded
from streamserve.server.telemetry.accounting import Account
from streamserve.types import TextDelta

FOR_EVER = math.inf


class Script(Protocol):
    """Says which events a generation makes."""

    def opening(self) -> list[Entry]:
        """What is told once the request has been admitted."""
        ...

    def delta(self, delta: TextDelta) -> list[Entry]:
        """What `delta` adds, to be called in order; a delta that completes no character adds nothing."""
        ...

    def end(self) -> list[Entry]:
        """The ending of a generation in which every choice has finished, cancelled ones included."""
        ...

    def failure(self, error: StreamserveError) -> list[Entry]:
        """The ending of a generation that could not be finished."""
        ...


class Producer:
    """One generation on its way into `log`. Also a `active_requests.Answer`: it can be cancelled and failed by its id.

    open      admits the sequences
    unread_s  how long it goes on while nobody reads the log, once somebody has
    on_admitted  called once the sequences have been admitted
    """

    def __init__(
        self,
        request_id: str,
        open: Callable[[], Awaitable[Generation]],
        script: Script,
        account: Account,
        *,
        active_requests: ActiveRequests,
        unread_s: float = 0.0,
        on_admitted: Callable[[], None] | None = None,
        limits: LogLimits | None = None,
    ) -> None:
        self.request_id = request_id
        self.log = EventLog(limits, on_read=self._keep_on, on_unread=self._abandon)
        self.is_resumable = unread_s > 0
        self.ended_at: float | None = None
        self._ended = anyio.Event()
        self._open: Callable[[], Awaitable[Generation]] | None = open
        self._script = script
        self._account = account
        self._active_requests = active_requests
        self._unread_s = unread_s
        self._on_admitted = on_admitted
        self._leaving: asyncio.TimerHandle | None = None
        self._generation: Generation | None = None
        self._scope = anyio.CancelScope()
        self._error: StreamserveError | None = None

    @property
    def is_ended(self) -> bool:
        return self._ended.is_set()

    @property
    def num_bytes(self) -> int:
        return self.log.num_bytes

    @property
    def has_begun(self) -> bool:
        """Whether there has been a first token."""
        return self._account.has_begun

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Generate until the end; starts once admitted, and raises before that what keeps it from being admitted."""
        assert self._open is not None, "runs once"
        # It holds the whole request, and the log may be kept for long.
        open, self._open = self._open, None
        try:
            with self._active_requests.registered(self.request_id, self), await open() as generation:
                self._generation = generation
                if self._error is not None:
                    raise self._error
                if self._on_admitted is not None:
                    self._on_admitted()
                self.log.append(self._script.opening())
                task_status.started()
                await self._produce(generation)
        finally:
            self._keep_on()
            self._generation = None
            self.ended_at = time.monotonic()
            self._ended.set()

    async def wait_ended(self) -> None:
        """Return once the log is complete and the sequences are gone."""
        await self._ended.wait()

    def abort(self) -> None:
        """End it as cancelled, keeping what was generated. Never blocks."""
        if self._generation is None:
            self.fail(RequestAborted("the request was cancelled"))
        else:
            self._generation.abort()

    def fail(self, error: StreamserveError) -> None:
        """End it with an error. Never blocks."""
        if self._error is None:
            self._error = error
            self._scope.cancel()

    def stop_waiting(self) -> None:
        """If it goes on only for a reader who may come back, end it: none can."""
        if self._leaving is not None:
            self.abort()

    async def _produce(self, generation: Generation) -> None:
        try:
            with self._scope:
                try:
                    await self._relay(generation)
                except Exception as error:
                    self._error = guarded(error, self.request_id)
            if self._error is not None:
                self.log.append(self._script.failure(self._error))
        finally:
            self.log.end()
            self._account.close("abort" if self._error is None else "error")

    async def _relay(self, generation: Generation) -> None:
        async for delta in generation:
            if delta.finish_reason == "error":
                self.log.append(self._script.delta(msgspec.structs.replace(delta, finish_reason=None, error=None)))
                raise StreamFailed("unknown error") if delta.error is None else restore(delta.error)
            self._account.record(delta)
            self.log.append(self._script.delta(delta))
            if self._account.unfinished == 0:
                self.log.append(self._script.end())
                return
            await self.log.wait_for_room()
        raise StreamFailed("the engine's stream ended without a finish")

    def _abandon(self) -> None:
        """Nobody reads any more."""
        if self._unread_s <= 0:
            self.abort()
        elif self._unread_s < FOR_EVER:
            self._leaving = asyncio.get_running_loop().call_later(self._unread_s, self.abort)

    def _keep_on(self) -> None:
        """Somebody reads again, or it is over."""
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None
