"""Keeps API workers running: starts one again that ends by itself, kills one that hangs, replaces all on request.

Lives on the first worker's event loop, and goes on there once that has been replaced. The streams of a worker that ends by
itself are lost with their connections; nobody else's are, and none of one that is replaced.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from functools import partial

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskGroup

from streamserve.server.config import ServerConfig
from streamserve.server.http.access.owned_id import OwnedId
from streamserve.server.http.connections.listen import join
from streamserve.server.process.worker_launch import WorkerLaunch
from streamserve.server.process.worker_place import AcceptingFrom, WorkerPlace, reconfigured
from streamserve.server.process.workers import call_each
from streamserve.server.siblings.control import Method


class WorkerSupervision:
    """All API workers that are processes of their own: all but the first, and its successors.

    launches           of each place, two, as in `WorkerPlace`; the first place is that of the first worker
    listening          the first worker's socket, which its successors accept from
    on_call            executes a worker's call on the first worker; True when that has the request
    on_restart         called with a worker's number and its exit status before it is started again
    accepting_from     as in `WorkerPlace`
    on_first_replaced  called once a process has taken the first worker's place
    """

    def __init__(
        self,
        launches: Sequence[tuple[WorkerLaunch, WorkerLaunch]],
        listening: socket.socket,
        *,
        on_call: Callable[[Method, OwnedId], bool],
        on_restart: Callable[[int, int], None],
        accepting_from: AcceptingFrom,
        on_first_replaced: Callable[[], None],
    ) -> None:
        self._first_launches = launches[0]
        self._first_listening: socket.socket | None = listening
        self._on_call = on_call
        self._on_restart = on_restart
        self._accepting_from = accepting_from
        self._on_first_replaced = on_first_replaced
        self._tasks: TaskGroup | None = None
        self._is_ending = False
        self._failed: int | None = None
        self._places = [self._place(pair, join(pair[0].listen)) for pair in launches[1:]]

    async def run(self) -> int | None:
        """Keep all of them running; returns the number of one that can't be started, None once all have ended."""
        async with anyio.create_task_group() as self._tasks:
            for number, place in enumerate(self._places, start=1):
                self._tasks.start_soon(self._begin_and_keep, number, place, self._tasks)
        return self._failed

    async def wait_ready(self) -> None:
        """Return once each of them has taken requests."""
        for place in self._places:
            await place.ready.wait()

    def reconfigure(self, config: ServerConfig) -> None:
        """Have those that run read the keys again, and those that are started from now on take this configuration."""
        self._first_launches = reconfigured(self._first_launches, config)
        for place in self._places:
            place.reconfigure(config)

    async def replace_all(self) -> bool:
        """Replace one after another, each once its successor takes requests; False when one did not start.

        The first worker is the last, and replaced once. Whoever is replaced goes on until it has finished what it answers.
        """
        assert self._tasks is not None, "workers are replaced while `run` keeps them running"
        for place in self._places:
            if not await place.replace(self._tasks):
                return False
        if self._first_listening is None or self._is_ending:
            return True
        return await self._replace_first(self._first_listening, self._tasks)

    async def call(self, method: Method, id: OwnedId, *, caller: int = 0) -> int | None:
        """Call a method on all of them but the caller; returns and raises as `call_each`."""
        workers = [worker for place in self._places for worker in place.processes if worker.number != caller]
        return await call_each(workers, method, id)

    def drain(self) -> None:
        """Have them finish what runs and end."""
        self._is_ending = True
        for place in self._places:
            place.drain()

    async def wait_ended(self) -> None:
        """Return once each of them has ended."""
        for place in self._places:
            for worker in place.processes:
                await worker.wait_ended()

    def kill(self) -> None:
        """End them at once. Blocks for as long as the kernel takes."""
        self._is_ending = True
        for place in self._places:
            place.kill()

    async def _replace_first(self, listening: socket.socket, tasks: TaskGroup) -> bool:
        try:
            accepting = listening.dup()
        except OSError:
            return False
        try:
            place = self._place(self._first_launches, accepting)
        except OSError:
            accepting.close()
            return False
        self._places.append(place)
        if not await place.begin(tasks):
            self._places.remove(place)
            await anyio.to_thread.run_sync(place.kill)
            return False
        self._first_listening = None
        tasks.start_soon(self._keep, 0, place, tasks)
        self._on_first_replaced()
        return True

    async def _begin_and_keep(self, number: int, place: WorkerPlace, tasks: TaskGroup) -> None:
        await place.begin(tasks)
        await self._keep(number, place, tasks)

    async def _keep(self, number: int, place: WorkerPlace, tasks: TaskGroup) -> None:
        if not await place.keep_running(tasks):
            self._failed = number
            tasks.cancel_scope.cancel()

    def _place(self, launches: tuple[WorkerLaunch, WorkerLaunch], listening: socket.socket) -> WorkerPlace:
        return WorkerPlace(
            launches,
            listening,
            on_call=lambda number: partial(self._answer, number),
            on_restart=self._on_restart,
            accepting_from=self._accepting_from,
        )

    async def _answer(self, caller: int, method: Method, id: OwnedId) -> int | None:
        return 0 if self._on_call(method, id) else await self.call(method, id, caller=caller)


def processes_of(workers: int) -> int:
    """How many processes may be API workers at a time: the first, and two in each place."""
    return 1 if workers == 1 else 1 + 2 * workers


def launches_of(launch: WorkerLaunch, workers: int) -> list[tuple[WorkerLaunch, WorkerLaunch]]:
    """The launch parameters of the two processes in each place, the first worker's first, from those that they share."""

    def numbered(number: int) -> WorkerLaunch:
        return msgspec.structs.replace(launch, worker=number)

    first = (numbered(workers), numbered(2 * workers))
    return [first, *((numbered(number), numbered(number + workers)) for number in range(1, workers))]
