"""The other API workers of a server, as one of them sees them: which has a request, and how to reach it.

A response, its events and a resumable stream live in the worker that made them, and clients come back to any. Each worker
therefore serves on an internal socket, too: an AF_UNIX socket for its siblings only. Lives on one worker's event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from streamserve.errors import InvalidRequest, Unavailable
from streamserve.server.http.access.owned_id import OwnedId
from streamserve.server.siblings.control import CallSiblings, Method

MAX_ID = 256
"""Characters of an id, prefix included, that a request can have; no worker has a longer one."""


class NotKeptHere(InvalidRequest):
    """A request refers to a response that this worker does not keep; another one may."""

    def __init__(self, response_id: str, message: str, *, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.response_id = response_id


def internal_socket_path(engine_address: str, worker: int) -> str:
    """The path of a worker's internal socket: beside the engine's, in a folder that only this user can enter."""
    return str(Path(engine_address).with_name(f"api-{worker}.sock"))


class Siblings:
    """Calls the other workers. Raises `Unavailable` when one of them does not answer and no other has the request.

    call             calls a method on all of them
    internal_socket  the path of a worker's internal socket, by its number
    """

    def __init__(self, call: CallSiblings, internal_socket: Callable[[int], str]) -> None:
        self._call = call
        self._internal_socket = internal_socket

    async def command(self, method: Literal["answer", "cancel"], request_id: OwnedId) -> bool:
        """Have the worker that answers a request end its reasoning, or cancel it; False when none does."""
        return await self._find(method, request_id) is not None

    async def find(self, response_id: OwnedId) -> str | None:
        """The internal socket of the worker that keeps a response, or the events of a stream; None when none does."""
        worker = await self._find("find", response_id)
        return None if worker is None else self._internal_socket(worker)

    async def _find(self, method: Method, id: OwnedId) -> int | None:
        if len(id.id) > MAX_ID:
            return None
        try:
            return await self._call(method, id)
        except TimeoutError:
            raise Unavailable("an API worker that may have this request does not answer") from None
