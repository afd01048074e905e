"""The streams of one socket: those with the same id run one after another, different ones side by side.

A lane is a task in the socket's task group; what it relays is made by a run that belongs to `Delivery`, so that a dropped
socket takes the lanes with it and leaves to each run what then becomes of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import anyio
from anyio.abc import TaskGroup

from streamserve.errors import QueueFull, RequestAborted, StreamserveError
from streamserve.server.api import Create, CreateMessage
from streamserve.server.delivery.event_log import ResumeGap
from streamserve.server.delivery.events import SocketEvent
from streamserve.server.delivery.logged_run import LoggedRun
from streamserve.server.delivery.retention import Expiring, TtlStore
from streamserve.server.http.access.owned_id import OwnedId
from streamserve.server.http.bodies.request_body import Body
from streamserve.server.http.errors import NotFound, guarded
from streamserve.server.service import Service
from streamserve.server.siblings.siblings import NotKeptHere
from streamserve.server.ws.messages import error_message, take_resumable
from streamserve.server.ws.sibling_relay import SiblingRelay
from streamserve.server.ws.writer import Relay, SocketWriter
from streamserve.types import Tenant

WAITING_PER_STREAM = 4
"""Creates that may wait behind others, per stream that a socket may have."""


KEPT_ANSWERS = 64
KEPT_BYTES = 4 << 20
"""Of ended answers that one socket keeps for creates that continue them."""


class TooManyStreams(QueueFull):
    """This socket has as many streams as it may."""

    code = "too_many_streams"


class _Controls(NamedTuple):
    """What a message may have done to a stream that runs."""

    abort: Callable[[], object]
    answer_now: Callable[[], object]


class _Lane:
    """What runs under one stream id, and what waits for its turn."""

    def __init__(self, stream_id: str | None) -> None:
        self.stream_id = stream_id
        self.jobs: deque[Callable[[_Lane], Awaitable[None]]] = deque()
        self.running: _Controls | None = None
        self.is_cancelled = False
        self.answers_now = False

    def cancel(self) -> None:
        if self.running is not None:
            self.running.abort()
        else:
            self.is_cancelled = True

    def answer_now(self) -> None:
        if self.running is not None:
            self.running.answer_now()
        else:
            self.answers_now = True


class Streams:
    """The streams of one socket.

    tenant         whose socket it is
    authorization  shows the tenant's key to other API workers
    on_idle        called when the last stream has ended
    """

    def __init__(
        self,
        service: Service,
        writer: SocketWriter,
        tasks: TaskGroup,
        *,
        tenant: Tenant,
        authorization: Mapping[str, str],
        max_streams: int,
        on_idle: Callable[[], None],
    ) -> None:
        self._service = service
        self._writer = writer
        self._tasks = tasks
        self._tenant = tenant
        self._authorization = authorization
        self._max_streams = max_streams
        self._on_idle = on_idle
        self._lanes: dict[str | None, _Lane] = {}
        self._kept: TtlStore[str, Expiring] = TtlStore(
            ttl_s=service.config.response_ttl_s, max_items=KEPT_ANSWERS, max_bytes=KEPT_BYTES
        )

    @property
    def has_no_streams(self) -> bool:
        return not self._lanes

    @property
    def is_overfull(self) -> bool:
        """Whether more creates wait than any sensible client sends."""
        return sum(len(lane.jobs) for lane in self._lanes.values()) > WAITING_PER_STREAM * self._max_streams

    def create(self, stream_id: str | None, create: Create, kind: str, body: Body) -> None:
        """Start a stream, after those before it with the same id. Raises `TooManyStreams`.

        create, kind  what makes its run, and the type of message that asks for it
        body          of the request
        """
        self._enqueue(stream_id, partial(self._create, create=create, kind=kind, body=body))

    def resume(self, stream_id: str | None, response_id: str, starting_after: int) -> None:
        """Go on with a stream that another socket began; as `create`."""
        self._enqueue(stream_id, partial(self._resume, response_id=response_id, number=starting_after + 1))

    def cancel(self, stream_id: str | None) -> None:
        """Cancel what runs under this id. Raises `NotFound` when nothing does."""
        lane = self._lanes.get(stream_id)
        if lane is None:
            raise NotFound("no such stream is running")
        lane.cancel()

    def answer_now(self, stream_id: str | None) -> None:
        """End the reasoning of what runs under this id. Raises `NotFound` when nothing does."""
        lane = self._lanes.get(stream_id)
        if lane is None:
            raise NotFound("no such stream is running")
        lane.answer_now()

    def cancel_response(self, response_id: str) -> None:
        """Cancel a response wherever it is made, whichever socket created it."""
        self._tasks.start_soon(self._command, self._service.cancel, response_id)

    def answer_response_now(self, response_id: str) -> None:
        """End the reasoning of a response wherever it is made."""
        self._tasks.start_soon(self._command, self._service.answer_now, response_id)

    def _enqueue(self, stream_id: str | None, job: Callable[[_Lane], Awaitable[None]]) -> None:
        lane = self._lanes.get(stream_id)
        if lane is None:
            if len(self._lanes) >= self._max_streams:
                raise TooManyStreams(f"a socket may have {self._max_streams} streams at a time; wait for one to end")
            lane = self._lanes[stream_id] = _Lane(stream_id)
            self._tasks.start_soon(self._serve, lane)
        lane.jobs.append(job)

    async def _serve(self, lane: _Lane) -> None:
        while lane.jobs:
            try:
                await lane.jobs.popleft()(lane)
            except Exception as error:
                refusal = guarded(error, lane.stream_id or "-")
                self._service.metrics.reject(refusal)
                self._writer.reply(error_message(refusal, lane.stream_id))
            # Not before: a cancel that comes on the heels of its create is there before the job has begun.
            lane.is_cancelled = lane.answers_now = False
        del self._lanes[lane.stream_id]
        if not self._lanes:
            self._on_idle()

    async def _create(self, lane: _Lane, create: Create, kind: str, body: Body) -> None:
        request = dict(body.fields)
        is_resumable = take_resumable(request)
        try:
            # Sockets live for long: the key may have gone since, or have other limits.
            tenant = self._service.api_keys.tenant(self._tenant.name)
            self._service.require_room(tenant)
            message = CreateMessage(tenant=tenant, body=Body(request, body.run), is_resumable=is_resumable, kept=self._kept)
            logged = await create(self._service, message)
        except NotKeptHere as missing:
            await self._relay_from_sibling(lane, missing.response_id, {"type": kind, **body.fields}, missing)
            return
        if lane.is_cancelled:
            raise RequestAborted("the request was cancelled")
        with self._running(lane, logged), Relay(self._writer, logged.log, 0, lane.stream_id) as relay:
            await self._service.delivery.start(logged)
            await relay.wait_sent()

    async def _resume(self, lane: _Lane, response_id: str, number: int) -> None:
        logged = self._service.find(self._owned(response_id))
        if logged is None:
            message = {"type": "response.resume", "response_id": response_id, "starting_after": number - 1}
            await self._relay_from_sibling(lane, response_id, message, ResumeGap("no events of this response are kept"))
            return
        with self._running(lane, logged), Relay(self._writer, logged.log, number, lane.stream_id) as relay:
            await relay.wait_sent()

    async def _relay_from_sibling(
        self, lane: _Lane, response_id: str, message: Mapping[str, Any], missing: StreamserveError
    ) -> None:
        """Have the API worker that keeps a response make this stream. Raises `missing` when none does."""
        internal_socket = await self._service.find_sibling(self._owned(response_id))
        if internal_socket is None:
            raise missing
        if lane.is_cancelled:
            raise RequestAborted("the request was cancelled")
        relay = SiblingRelay(self._writer, lane.stream_id, internal_socket, self._authorization)

        lane.running = _Controls(
            partial(self._tasks.start_soon, relay.cancel), partial(self._tasks.start_soon, relay.answer_now)
        )
        if lane.answers_now:
            lane.answer_now()
        try:
            await relay.run(message)
        finally:
            lane.running = None

    @contextmanager
    def _running(self, lane: _Lane, logged: LoggedRun[SocketEvent]) -> Iterator[None]:
        lane.running = _Controls(logged.run.abort, logged.run.answer_now)
        if lane.is_cancelled:
            logged.run.abort()
        if lane.answers_now:
            logged.run.answer_now()
        self._service.metrics.ws_streams.add(1)
        try:
            yield
        except anyio.get_cancelled_exc_class():
            if not logged.log.is_complete:
                logged.run.count_disconnect(is_blocked=self._writer.sending_since is not None)
            raise
        finally:
            lane.running = None
            self._service.metrics.ws_streams.add(-1)

    def _owned(self, response_id: str) -> OwnedId:
        return OwnedId(self._tenant.name, response_id)

    async def _command(self, command: Callable[[OwnedId], Awaitable[bool]], response_id: str) -> None:
        if not await command(self._owned(response_id)):
            self._writer.reply(error_message(NotFound("no such response is running")))
