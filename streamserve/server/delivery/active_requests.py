"""The requests that are being answered: to cancel one by its id, to drain, to end all of them.

Lives on one API worker's event loop; every method is synchronous.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import anyio

from streamserve.errors import InvalidParameter, StreamserveError

PREFIXES = ("", "cmpl-", "chatcmpl-", "resp_")
"""What an answer's id begins with; after it comes the request's own id, when it has one."""


def answer_ids(request_id: str) -> list[str]:
    """What the answer may be called that a client means by its id, or by that without its prefix."""
    return [prefix + request_id for prefix in PREFIXES]


class Answer(Protocol):
    """A request on its way to its client."""

    def abort(self) -> None:
        """Finish with reason "abort"; what was generated still goes out."""
        ...

    def fail(self, error: StreamserveError) -> None:
        """Finish with an error event."""
        ...


class ActiveRequests:
    """Requests by id, from before admission until their last byte.

    on_count  told how many there are, whenever that changes
    """

    def __init__(self, on_count: Callable[[int], None]) -> None:
        self._on_count = on_count
        self._answers: dict[str, Answer] = {}
        self._idle = anyio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._answers)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._answers

    @contextmanager
    def registered(self, request_id: str, answer: Answer) -> Iterator[None]:
        """Keep `answer` findable while the block runs; raises `InvalidParameter` when its id is taken."""
        if request_id in self._answers:
            raise InvalidParameter("request_id", "another request with this id is running")
        self._answers[request_id] = answer
        self._on_count(len(self._answers))
        if self._idle.is_set():
            self._idle = anyio.Event()
        try:
            yield
        finally:
            del self._answers[request_id]
            self._on_count(len(self._answers))
            if not self._answers:
                self._idle.set()

    def abort(self, request_id: str) -> bool:
        """Cancel one request, by its answer's id or that without its prefix; False when it is not running here."""
        for answer_id in answer_ids(request_id):
            answer = self._answers.get(answer_id)
            if answer is not None:
                answer.abort()
                return True
        return False

    def fail_all(self, error: StreamserveError) -> None:
        for answer in list(self._answers.values()):
            answer.fail(error)

    async def wait_idle(self) -> None:
        """Returns once nothing is being answered."""
        await self._idle.wait()
