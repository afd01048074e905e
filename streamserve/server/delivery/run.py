"""A run: one generation with its account and its id, from admission to its end.

The writer of an answer enters the run and reads it; leaving the `async with` block, for whatever reason, aborts the
sequences that still run. Meanwhile the run can be cancelled, failed and left from outside by its id, each of which takes
effect within one step. Lives on one API worker's event loop; all but admission and iteration is synchronous. Knows neither
APIs nor transports.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Protocol, Self

import anyio
import msgspec

from streamserve.engine.error_info import restore
from streamserve.errors import RequestAborted, StreamFailed, StreamserveError
from streamserve.server.delivery.active_requests import ActiveRequests
from streamserve.server.delivery.asgi import Headers
from streamserve.server.delivery.identity import Identity
from streamserve.server.http.errors import guarded
from streamserve.server.telemetry.accounting import Account
from streamserve.server.telemetry.metrics import Metrics
from streamserve.types import TextDelta


class DeltaSource(Protocol):
    """The text of all choices of one request, as it comes; leaving its block aborts what still runs."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> TextDelta:
        """The next delta; StopAsyncIteration after the last choice's end."""
        ...

    def take_nowait(self) -> TextDelta | None:
        """The next delta, or None when that would have to be waited for."""
        ...

    def listen(self, ready: Callable[[], None]) -> None:
        """Call `ready` whenever `take_nowait` may have a delta, and now if it may."""
        ...

    def abort(self) -> None:
        """Finish every choice with reason "abort"; unread deltas stay."""
        ...

    def end_reasoning(self) -> None:
        """Have every choice end its reasoning and go on with the answer."""
        ...


Admit = Callable[[], Awaitable[DeltaSource]]
"""Admits the sequences of a request. Raises what keeps them from being admitted."""


class Run:
    """One request on its way to its client; enter it once, to admit it.

    identity    unique among active requests
    id          of the answer
    admit       called on entering; its errors are raised from there, before anything has been written
    admitted_headers  makes the headers of the answer that are known once its request is admitted
    account     records every delta, and is closed at the end
    headers     of the answer, those of `admitted_headers`; none before
    error       why the answer can't be finished; None while it can
    has_ending  set by the writer when the answer's ending is on its way, after which nothing may follow
    is_stopped  whether the run has failed, was left, or is over: a writer reads no more of it
    """

    def __init__(
        self,
        identity: Identity,
        admit: Admit,
        account: Account,
        *,
        active_requests: ActiveRequests,
        metrics: Metrics,
        admitted_headers: Callable[[], Headers] = list,
    ) -> None:
        self.identity = identity
        self.id = identity.answer_id
        self.account = account
        self.metrics = metrics
        self.headers: Headers = []
        self.error: StreamserveError | None = None
        self.has_ending = False
        self.is_stopped = False
        self._answers_now = False
        self._admit: Admit | None = admit
        self._admitted_headers = admitted_headers
        self._record = account.record
        self._active_requests = active_requests
        self._generation: DeltaSource | None = None
        self._take_nowait: Callable[[], TextDelta | None] = _nothing
        self._scope = anyio.CancelScope()
        self._leaving = ExitStack()

    @property
    def is_finished(self) -> bool:
        """Whether every choice has finished."""
        return self.account.unfinished == 0

    async def __aenter__(self) -> Self:
        assert self._admit is not None, "a run is entered once"
        # It holds the whole request, and the run may be kept for long with its log.
        admit, self._admit = self._admit, None
        with ExitStack() as leaving:
            leaving.callback(self._stop)
            leaving.enter_context(self._active_requests.registered(self.identity.owned_id, self))
            generation = leaving.enter_context(await admit())
            self.headers = self._admitted_headers()
            if self.error is not None:
                raise self.error
            self._generation, self._take_nowait = generation, generation.take_nowait
            if self._answers_now:
                self.answer_now()
            self._leaving = leaving.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._leaving:
            is_failed = self.error is not None or isinstance(error, Exception)
            self.account.close("error" if is_failed else "abort")

    async def answer(
        self, write: Callable[[], Awaitable[None]], write_failure: Callable[[StreamserveError], Awaitable[None]]
    ) -> None:
        """Have the answer written; when the run fails before the ending is on its way, have that failure written instead.

        `write` is cancelled when the run is failed or left; after a client has left nothing is written.
        """
        try:
            with self._scope:
                await write()
        except Exception as error:
            self.fail(error)
        if self.error is not None and not self.has_ending:
            await write_failure(self.error)

    def listen(self, ready: Callable[[], None]) -> None:
        """Call `ready` whenever `encode_ready` may have a delta, and now if it may."""
        assert self._generation is not None
        self._generation.listen(ready)

    def encode_ready(self, encode: Callable[[TextDelta], bytes]) -> bytes:
        """Encode every delta that can be had without waiting, and record it in the account; the bytes, one after another.

        The last text of a choice that failed is still encoded; `error` is set then, and no further delta comes.
        """
        take_nowait, record = self._take_nowait, self._record
        body = b""
        while (delta := take_nowait()) is not None:
            if delta.error is not None:
                return body + encode(self._break_off(delta))
            record(delta)
            body += encode(delta)
        return body

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TextDelta:
        """The next delta, recorded in the account; StopAsyncIteration once every choice has finished.

        The last text of a choice that failed still comes; the next call raises its error.
        """
        if self.error is not None:
            raise self.error
        if self.is_finished:
            raise StopAsyncIteration
        assert self._generation is not None
        try:
            delta = await self._generation.__anext__()
        except StopAsyncIteration:
            raise StreamFailed("the engine's stream ended without a finish") from None
        if delta.error is not None:
            return self._break_off(delta)
        self._record(delta)
        return delta

    def abort(self) -> None:
        """Finish every choice with reason "abort", keeping its text. Never blocks."""
        if self._generation is not None:
            self._generation.abort()
        else:
            self.fail(RequestAborted("the request was cancelled"))

    def answer_now(self) -> None:
        """End the reasoning of every choice within one step; the answer goes on. Never blocks."""
        self._answers_now = True
        if self._generation is not None:
            self._generation.end_reasoning()

    def fail(self, error: Exception) -> None:
        """End the answer with an error; an unexpected one is logged. Only the first ending counts. Never blocks."""
        if not self.is_stopped:
            self.error = guarded(error, self.id)
            self.is_stopped = True
            self._scope.cancel()

    def leave(self, *, is_blocked: bool = False) -> None:
        """The client has gone: end without another word. Never blocks.

        is_blocked  whether the client has left something unread
        """
        # The end of an answer, a failed one too, looks the same to whoever listens as a client that leaves.
        if self.error is None and (is_blocked or not self.has_ending):
            self.count_disconnect(is_blocked=is_blocked)
        self.is_stopped = True
        self._scope.cancel()

    def count_disconnect(self, *, is_blocked: bool) -> None:
        """Count a reader that left before the end, by the phase in which it did."""
        phase = "blocked" if is_blocked else "streaming" if self.account.has_begun else "queued"
        self.metrics.disconnects.add(1, phase)

    def _break_off(self, delta: TextDelta) -> TextDelta:
        """Take the error out of a choice's last delta."""
        assert delta.error is not None
        self.error = restore(delta.error)
        self.is_stopped = True
        self._take_nowait = _nothing
        return msgspec.structs.replace(delta, finish_reason=None, error=None)

    def _stop(self) -> None:
        self.is_stopped = True
        self._generation, self._take_nowait = None, _nothing


def _nothing() -> None:
    return None
