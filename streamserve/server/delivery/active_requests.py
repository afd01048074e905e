"""The requests that are being answered: to cancel one by its id, to drain, to end all of them.

Lives on one API worker's event loop; every method is synchronous.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

import anyio

from streamserve.errors import InvalidParameter, StreamserveError
from streamserve.server.http.access.owned_id import OwnedId


class ActiveRequest(Protocol):
    """A request on its way to its client."""

    def abort(self) -> None:
        """Finish with reason "abort"; what was generated still goes out."""
        ...

    def answer_now(self) -> None:
        """End its reasoning; the answer goes on."""
        ...

    def fail(self, error: Exception) -> None:
        """Finish with an error."""
        ...


class ActiveRequests:
    """Requests by id, from before admission until their last byte.

    on_count  called with how many there are, whenever that changes
    """

    def __init__(self, on_count: Callable[[int], None]) -> None:
        self._on_count = on_count
        self._requests: dict[OwnedId, ActiveRequest] = {}
        self._idle = anyio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, id: object) -> bool:
        return id in self._requests

    @contextmanager
    def registered(self, id: OwnedId, request: ActiveRequest) -> Iterator[None]:
        """Keep `request` findable while the block runs; raises `InvalidParameter` when its owner has one with this id."""
        if id in self._requests:
            raise InvalidParameter("request_id", "another request with this id is running")
        self._requests[id] = request
        self._on_count(len(self._requests))
        if self._idle.is_set():
            self._idle = anyio.Event()
        try:
            yield
        finally:
            del self._requests[id]
            self._on_count(len(self._requests))
            if not self._requests:
                self._idle.set()

    def find(self, ids: Iterable[OwnedId]) -> ActiveRequest | None:
        """The first request that has one of `ids`; None when none is running here."""
        return next((self._requests[id] for id in ids if id in self._requests), None)

    def fail_all(self, error: StreamserveError) -> None:
        """End every request with `error`."""
        for request in list(self._requests.values()):
            request.fail(error)

    async def wait_idle(self) -> None:
        """Return once nothing is being answered."""
        await self._idle.wait()
