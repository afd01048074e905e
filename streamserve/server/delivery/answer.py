"""One request from admission to its last byte, whatever form the answer takes.

Owns the tie between client and sequences: leaving the `with` of a generation aborts its sequences, and whatever ends the answer
(the last token, a client that left, a drain, a failure) leaves it. Lives on one API worker's event loop; subclasses write the
bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Protocol, Self

import anyio
import msgspec
from litestar.types import Receive, Scope, Send

from streamserve.errors import RequestAborted, StreamserveError
from streamserve.server.delivery.active_requests import ActiveRequests
from streamserve.server.telemetry.accounting import Account, Trace
from streamserve.server.telemetry.metrics import Metrics
from streamserve.server.telemetry.request_cost import Usage
from streamserve.types import TextDelta


class Generation(Protocol):
    """The text of all choices of one request, as it comes; leaving its block aborts what still runs."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> TextDelta:
        """The next delta; after the last choice's end, StopAsyncIteration."""
        ...

    def take_nowait(self) -> TextDelta | None:
        """A delta that can be had without waiting."""
        ...

    def listen(self, ready: Callable[[], None]) -> None:
        """Call `ready` whenever a delta may be had, and now if one may; for a reader that does not iterate."""
        ...

    def abort(self) -> None:
        """Finish every choice with reason "abort", keeping what is not read yet."""
        ...


class AnswerLimits(msgspec.Struct, frozen=True):
    """keepalive_s: silence after which a stream gets a blank line; send_timeout_s: how long a client may take nothing."""

    keepalive_s: float
    send_timeout_s: float


class Answer(ABC):
    """An ASGI app that answers one request.

    open        admits the sequences; what it raises is answered as an error, before any 200
    usage       kept up to date with every delta
    num_prompts, n  the request's shape: choice = output index + prompt index * n
    trace       told what it has cost when it is over
    """

    def __init__(
        self,
        request_id: str,
        open: Callable[[], Awaitable[Generation]],
        usage: Usage,
        *,
        num_prompts: int,
        n: int,
        active_requests: ActiveRequests,
        metrics: Metrics,
        limits: AnswerLimits,
        headers: list[tuple[bytes, bytes]],
        trace: Trace | None = None,
    ) -> None:
        self.request_id = request_id
        self._open = open
        self._account = Account(usage, metrics, num_prompts=num_prompts, n=n, trace=trace)
        self._active_requests = active_requests
        self._metrics = metrics
        self._limits = limits
        self._headers = headers
        self._generation: Generation | None = None
        self._scope = anyio.CancelScope()
        self._error: StreamserveError | None = None
        self._client_left = False
        self._has_ended = False
        self._is_sending = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._active_requests.registered(self.request_id, self), await self._open() as generation:
            self._generation = generation
            if self._error is not None:
                raise self._error
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._watch, receive, send)
                    with self._scope:
                        await self._answer(generation, send)
                    if self._error is not None and not (self._client_left or self._has_ended):
                        await self._answer_failure(self._error, send)
                    tasks.cancel_scope.cancel()
            finally:
                self._account.close("abort" if self._client_left else "error")

    def abort(self) -> None:
        if self._generation is None:
            self.fail(RequestAborted("the request was cancelled"))
        else:
            self._generation.abort()

    def fail(self, error: StreamserveError) -> None:
        if self._error is None:
            self._error = error
            self._scope.cancel()

    @abstractmethod
    async def _answer(self, generation: Generation, send: Send) -> None:
        """Write the whole answer; cancelled when the client leaves or the answer fails."""

    @abstractmethod
    async def _answer_failure(self, error: StreamserveError, send: Send) -> None:
        """Write the ending of an answer that can't be finished."""

    @abstractmethod
    async def _watch(self, receive: Receive, send: Send) -> None:
        """Notice when the client leaves; runs beside `_answer` and is cancelled after it."""

    def _leave(self, phase: str) -> None:
        """The client is gone: stop without another word."""
        # The end of an answer, a failed one too, looks the same from here as a client that leaves.
        if self._error is None and (self._is_sending or not self._has_ended):
            self._client_left = True
            self._metrics.disconnects.add(1, phase)
        self._scope.cancel()
