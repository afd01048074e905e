"""Keeps the further API workers running: starts one again that ends by itself, kills one that hangs, replaces all on request.

Lives on the first worker's event loop. The streams of a worker that ends by itself are lost with their connections; nobody
else's are, and none of one that is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import anyio
import msgspec
from anyio.abc import TaskGroup

from streamserve.server.config import ServerConfig
from streamserve.server.http.access.owned_id import OwnedId
from streamserve.server.http.connections.listen import join
from streamserve.server.process.worker_launch import WorkerLaunch
from streamserve.server.process.worker_place import AcceptingFrom, WorkerPlace
from streamserve.server.process.workers import call_each
from streamserve.server.siblings.control import Method


class WorkerSupervision:
    """All API workers but the first.

    launches        of each worker: two, as in `WorkerPlace`
    on_call         executes a worker's call on the first worker; True when that has the request
    on_restart      called with a worker's number and its exit status before it is started again
    accepting_from  as in `WorkerPlace`
    """

    def __init__(
        self,
        launches: Sequence[tuple[WorkerLaunch, WorkerLaunch]],
        *,
        on_call: Callable[[Method, OwnedId], bool],
        on_restart: Callable[[int, int], None],
        accepting_from: AcceptingFrom,
    ) -> None:
        self._on_call = on_call
        self._tasks: TaskGroup | None = None
        self._places = [
            WorkerPlace(
                pair,
                join(pair[0].listen),
                on_call=lambda number: partial(self._answer, number),
                on_restart=on_restart,
                accepting_from=accepting_from,
            )
            for pair in launches
        ]

    async def run(self) -> int | None:
        """Keep all of them running; returns the number of one that can't be started, None once all have ended."""
        failed: list[int] = []
        async with anyio.create_task_group() as self._tasks:

            async def keep(number: int, place: WorkerPlace, tasks: TaskGroup) -> None:
                if not await place.keep_running(tasks):
                    failed.append(number)
                    tasks.cancel_scope.cancel()

            for number, place in enumerate(self._places, start=1):
                self._tasks.start_soon(keep, number, place, self._tasks)
        return failed[0] if failed else None

    async def wait_ready(self) -> None:
        """Return once each of them has taken requests."""
        for place in self._places:
            await place.ready.wait()

    def reconfigure(self, config: ServerConfig) -> None:
        """Have those that run read the keys again, and those that are started from now on take this configuration."""
        for place in self._places:
            place.reconfigure(config)

    async def replace_all(self) -> bool:
        """Replace one after another, each once its successor takes requests; False when one did not start.

        Those that are replaced go on until they have finished what they answer.
        """
        assert self._tasks is not None, "workers are replaced while `run` keeps them running"
        for place in self._places:
            if not await place.replace(self._tasks):
                return False
        return True

    async def call(self, method: Method, id: OwnedId, *, caller: int = 0) -> int | None:
        """Call a method on all of them but the caller; returns and raises as `call_each`."""
        workers = [worker for place in self._places for worker in place.processes if worker.number != caller]
        return await call_each(workers, method, id)

    def drain(self) -> None:
        """Have them finish what runs and end."""
        for place in self._places:
            place.drain()

    async def wait_ended(self) -> None:
        """Return once each of them has ended."""
        for place in self._places:
            for worker in place.processes:
                await worker.wait_ended()

    def kill(self) -> None:
        """End them at once. Blocks for as long as the kernel takes."""
        for place in self._places:
            place.kill()

    async def _answer(self, caller: int, method: Method, id: OwnedId) -> int | None:
        return 0 if self._on_call(method, id) else await self.call(method, id, caller=caller)


def processes_of(workers: int) -> int:
    """How many processes may be API workers at a time, the first and those that are being replaced among them."""
    return 2 * workers - 1


def launches_of(launch: WorkerLaunch, workers: int) -> list[tuple[WorkerLaunch, WorkerLaunch]]:
    """The launch parameters of each further worker, and of its successor, from those that they share."""

    def numbered(number: int) -> WorkerLaunch:
        return msgspec.structs.replace(launch, worker=number)

    return [(numbered(number), numbered(number + workers - 1)) for number in range(1, workers)]
