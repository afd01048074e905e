"""What the answers of one API worker share: who is active, who writes when, what is kept for clients that come back.

Lives on the worker's event loop. Makes runs, and starts those that may outlive their connections. Knows no API.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import anyio
from anyio.abc import TaskGroup

from streamserve.errors import Unavailable
from streamserve.server.delivery.active_requests import ActiveRequests
from streamserve.server.delivery.asgi import Headers, Timeouts
from streamserve.server.delivery.event_ids import STREAM_ID
from streamserve.server.delivery.event_stream import EventStream
from streamserve.server.delivery.events import Collector, SocketEvent, StreamScript
from streamserve.server.delivery.flusher import Flusher
from streamserve.server.delivery.identity import Identity
from streamserve.server.delivery.log_stream import LogStream
from streamserve.server.delivery.logged_run import LoggedRun
from streamserve.server.delivery.retention import TtlStore
from streamserve.server.delivery.run import Admit, Run
from streamserve.server.delivery.whole_answer import WholeAnswer
from streamserve.server.http.access.owned_id import OwnedId
from streamserve.server.http.bodies.large_work import LargeWork
from streamserve.server.http.errors import ErrorBody
from streamserve.server.telemetry.accounting import Account, Trace
from streamserve.server.telemetry.metrics import Metrics
from streamserve.server.telemetry.request_cost import TokenCounts

MAX_RESUMABLE = 4096
MAX_RESUMABLE_BYTES = 256 << 20
"""Memory that ended streams may hold for clients that resume them."""


class Delivery:
    """Makes the runs of one API worker and the ASGI apps that write them.

    timeouts     of every stream
    resume_s     how long a resumable stream goes on unread, and how long its events are kept after its end
    id_prefixes  what ids of answers begin with, in the APIs that are mounted
    """

    def __init__(self, metrics: Metrics, *, timeouts: Timeouts, resume_s: float) -> None:
        self.metrics = metrics
        self.timeouts = timeouts
        self.resume_s = resume_s
        self.id_prefixes: tuple[str, ...] = ()
        self.active_requests = ActiveRequests(metrics.requests.set)
        self.resumable: TtlStore[OwnedId, LoggedRun[SocketEvent]] = TtlStore(
            ttl_s=resume_s, max_items=MAX_RESUMABLE, max_bytes=MAX_RESUMABLE_BYTES
        )
        self._flusher = Flusher()
        self._large_answers = LargeWork()
        self._tasks: TaskGroup | None = None

    def new_run(
        self,
        identity: Identity,
        admit: Admit,
        usage: TokenCounts,
        *,
        num_prompts: int,
        n: int,
        trace: Trace | None = None,
        admitted_headers: Callable[[], Headers] = list,
    ) -> Run:
        """A run that has not been admitted; arguments as of `Run` and `Account`."""
        account = Account(usage, self.metrics, num_prompts=num_prompts, n=n, trace=trace)
        return Run(
            identity,
            admit,
            account,
            active_requests=self.active_requests,
            metrics=self.metrics,
            admitted_headers=admitted_headers,
        )

    def event_stream(self, run: Run, script: StreamScript, headers: Headers) -> EventStream:
        """The ASGI app that admits a run and streams it."""
        return EventStream(run, script, flusher=self._flusher, timeouts=self.timeouts, headers=headers)

    def log_stream(
        self, logged: LoggedRun[SocketEvent], headers: Headers, *, number: int = 0, is_new: bool = False
    ) -> LogStream[SocketEvent]:
        """The ASGI app that streams the events of a log from `number` on, each with its id.

        is_new  whether the run has not been started yet
        """
        return LogStream(
            logged,
            timeouts=self.timeouts,
            headers=[*headers, (STREAM_ID, logged.id.encode())],
            number=number,
            has_ids=True,
            start=partial(self.start, logged) if is_new else None,
        )

    def whole_answer(self, run: Run, collector: Collector, error_body: ErrorBody, headers: Headers) -> WholeAnswer:
        """The ASGI app that admits a run and sends what is collected of it."""
        return WholeAnswer(run, collector, error_body=error_body, headers=headers, large_work=self._large_answers)

    def answer_ids(self, id: OwnedId) -> list[OwnedId]:
        """The ids of answers that a client may mean by an answer's id, or by its request's own."""
        return [id, *(OwnedId(id.owner, prefix + id.id) for prefix in self.id_prefixes)]

    def abort(self, id: OwnedId) -> bool:
        """Cancel a request that is answered here, by its answer's id or its own; False when it is not."""
        request = self.active_requests.find(self.answer_ids(id))
        if request is not None:
            request.abort()
        return request is not None

    def answer_now(self, id: OwnedId) -> bool:
        """End the reasoning of a request that is answered here; ids and result as `abort`."""
        request = self.active_requests.find(self.answer_ids(id))
        if request is not None:
            request.answer_now()
        return request is not None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run what is passed to `start`; cancels it at the end of the block."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            yield
            tasks.cancel_scope.cancel()

    async def start(self, logged: LoggedRun[SocketEvent]) -> None:
        """Start a run in the background. Returns once its request is admitted; raises the refusal."""
        if self._tasks is None:
            raise Unavailable("the server is starting")
        await self._tasks.start(logged.write)
        if logged.is_resumable:
            self.resumable.put(logged.run.identity.owned_id, logged)

    async def drain(self, timeout_s: float) -> None:
        """Let runs finish, and fail the rest after `timeout_s`; a stream without a reader is aborted at once."""
        for logged in self.resumable.running():
            logged.stop_waiting()
        with anyio.move_on_after(timeout_s):
            await self.active_requests.wait_idle()
        self.active_requests.fail_all(Unavailable("the server is shutting down"))
