"""The other API workers of a server, as one of them sees them: who has a request, and where to reach them.

A response, its events and a stream to be resumed live in the worker that made them, and clients come back to any. Each worker
therefore has a door of its own, an AF_UNIX socket on which it serves what it serves on the port. Lives on one worker's event
loop; knows nothing of what goes through the doors.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from streamserve.errors import InvalidRequest
from streamserve.server.siblings.control import Asked


class NotKeptHere(InvalidRequest):
    """A request refers to a response that this worker does not keep; another one may."""

    def __init__(self, response_id: str, message: str, *, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.response_id = response_id


def door_of(engine_address: str, worker: int) -> str:
    """The path of a worker's door: beside the engine's socket, in a folder that only this user can enter."""
    return str(Path(engine_address).with_name(f"api-{worker}.sock"))


class Neighbours:
    """See the module.

    ask   asks all other workers
    door  the path of a worker's door
    """

    def __init__(self, ask: Asked, door: Callable[[int], str]) -> None:
        self._ask = ask
        self._door = door

    async def cancel(self, request_id: str) -> bool:
        """Cancel a request wherever it is answered; False when it is nowhere."""
        return await self._ask("cancel", request_id) is not None

    async def door_to(self, response_id: str) -> str | None:
        """The door of the worker that keeps a response, or the events of a stream; None when none does."""
        worker = await self._ask("find", response_id)
        return None if worker is None else self._door(worker)
