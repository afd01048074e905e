"""Continuing a stream after its connection was lost: which request continues it, how often, and after what wait.

Sans-IO; shared by the sync and async clients. A server that can continue a stream names it in `X-Stream-Id`, and gives its
events ids.
"""

from __future__ import annotations

from uuid import uuid4

import httpx

from streamserve_client.calls import Call, T
from streamserve_client.retries import RetryPolicy

NOT_KEPT = (404, 410)
"""Statuses that a server which knows no such stream, or keeps its events no longer, answers with."""

CANCEL_TIMEOUT_S = 2.0
"""How long a client that leaves a stream waits for the server to hear of it."""


def continuable(call: Call[T]) -> Call[T]:
    """The call of a stream, asking for one that can be continued; named, since its answer may be lost with its name."""
    return call.with_headers({"X-Stream-Resume": "1", "X-Request-Id": uuid4().hex})


def after_lost_answer(call: Call[T], error: httpx.TransportError) -> Call[T]:
    """What to send after a call got no answer: itself, or what continues its stream, where the server may have begun one."""
    name = call.headers.get("X-Request-Id")
    if name is None or isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return call
    return Call(f"/v1/streams/{name}", call.response_type)


def cancel_path(stream_id: str) -> str:
    """Where to post that a stream is to end."""
    return f"/v1/requests/{stream_id}/cancel"


class Resumption:
    """How far a stream has come.

    stream_id  by which its server continues it; None when it does not
    """

    def __init__(self, retry: RetryPolicy) -> None:
        self.stream_id: str | None = None
        self._retry = retry
        self._last_event_id = ""
        self._num_failures = 0

    def answered(self, headers: httpx.Headers) -> None:
        """The server has begun to send the stream, or to continue it."""
        self.stream_id = headers.get("x-stream-id", self.stream_id)

    def arrived(self, event_id: str) -> None:
        """An event is with the reader."""
        if event_id:
            self._last_event_id = event_id
            self._num_failures = 0

    def wait_s(self) -> float | None:
        """Seconds to wait before the stream is continued; None when it can't be, or has been too often without an event."""
        if self.stream_id is None:
            return None
        wait_s = self._retry.after_failure(self._num_failures)
        self._num_failures += 1
        return wait_s

    def call(self, first: Call[T]) -> Call[T]:
        """The call that continues a stream that `first` began."""
        headers = {"Last-Event-ID": self._last_event_id} if self._last_event_id else {}
        return Call(f"/v1/streams/{self.stream_id}", first.response_type, headers=headers)
