"""Keeps the further API workers running: starts one again that ends by itself, and kills one that hangs, so that it ends.

Lives on the first worker's event loop. The streams of a worker that ends are lost with their connections; nobody else's are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic

import anyio
import anyio.to_thread
import msgspec

from streamserve.server.http.owned_id import OwnedId
from streamserve.server.process.worker_launch import WorkerLaunch
from streamserve.server.process.workers import WorkerProcess, call_each
from streamserve.server.siblings.control import BEAT_INTERVAL_S, Method

HANG_TIMEOUT_S = 15.0
"""Seconds without a sign of life after which a worker is taken to hang."""

MAX_FAILED_STARTS = 3
"""Starts in a row of one worker that may fail within `STEADY_S`."""

STEADY_S = 10.0
"""Seconds after which a worker that ends has not failed to start."""


class WorkerSupervision:
    """All API workers but the first.

    on_call     executes a worker's call on the first worker; True when that has the request
    on_restart  called with a worker's number and its exit status before it is started again
    """

    def __init__(
        self,
        launches: Sequence[WorkerLaunch],
        *,
        on_call: Callable[[Method, OwnedId], bool],
        on_restart: Callable[[int, int], None],
    ) -> None:
        self._launches = {launch.worker: launch for launch in launches}
        self._on_call = on_call
        self._on_restart = on_restart
        self._workers = {number: self._start(number) for number in self._launches}
        self._ready = {number: anyio.Event() for number in self._launches}
        self._is_ending = False

    async def run(self) -> int | None:
        """Keep all of them running; returns the number of one that can't be started, None once all have ended."""
        failed: list[int] = []
        async with anyio.create_task_group() as tasks:

            async def keep(number: int) -> None:
                if not await self._keep_running(number):
                    failed.append(number)
                    tasks.cancel_scope.cancel()

            for number in self._launches:
                tasks.start_soon(keep, number)
        return failed[0] if failed else None

    async def wait_ready(self) -> None:
        """Return once each of them has taken requests."""
        for ready in self._ready.values():
            await ready.wait()

    async def call(self, method: Method, id: OwnedId, *, caller: int = 0) -> int | None:
        """Call a method on all of them but the caller; returns and raises as `call_each`."""
        return await call_each([worker for number, worker in self._workers.items() if number != caller], method, id)

    def drain(self) -> None:
        """Have them finish what runs and end."""
        self._is_ending = True
        for worker in self._workers.values():
            worker.drain()

    async def wait_ended(self) -> None:
        """Return once each of them has ended."""
        for worker in self._workers.values():
            await worker.ended.wait()

    def kill(self) -> None:
        """End them at once. Blocks for as long as the kernel takes."""
        self._is_ending = True
        for worker in self._workers.values():
            worker.kill()

    async def _keep_running(self, number: int) -> bool:
        """Whether the worker has ended as it should: drained, or after the engine; False when it can't be started."""
        failed_starts = 0
        while True:
            started_at = monotonic()
            status = await self._run(number)
            if self._is_ending or status == 0:
                return True
            failed_starts = failed_starts + 1 if monotonic() - started_at < STEADY_S else 0
            if failed_starts == MAX_FAILED_STARTS:
                return False
            self._on_restart(number, status)
            self._workers[number] = self._start(number)

    async def _run(self, number: int) -> int:
        """Run the worker until it ends, or is killed since it hangs; returns its exit status."""
        worker = self._workers[number]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._report_ready, number, worker)
            tasks.start_soon(_kill_when_hung, worker)
            status = await worker.run()
            tasks.cancel_scope.cancel()
        return status

    async def _report_ready(self, number: int, worker: WorkerProcess) -> None:
        await worker.ready.wait()
        self._ready[number].set()

    def _start(self, number: int) -> WorkerProcess:
        return WorkerProcess(self._launches[number], on_call=partial(self._answer, number))

    async def _answer(self, caller: int, method: Method, id: OwnedId) -> int | None:
        return 0 if self._on_call(method, id) else await self.call(method, id, caller=caller)


async def _kill_when_hung(worker: WorkerProcess) -> None:
    """Kill the worker when it has sent nothing for `HANG_TIMEOUT_S`, beginning with its first message."""
    heard, silent_ticks = 0, 0
    # Ticks of this loop, not of the clock: whoever stops and continues all processes must not find the workers killed.
    while silent_ticks < HANG_TIMEOUT_S / BEAT_INTERVAL_S:
        await anyio.sleep(BEAT_INTERVAL_S)
        silent_ticks = silent_ticks + 1 if heard and worker.control.num_received == heard else 0
        heard = worker.control.num_received
    await anyio.to_thread.run_sync(worker.kill)


def launches_of(launch: WorkerLaunch) -> list[WorkerLaunch]:
    """The launch parameters of each further worker, from those that they share."""
    return [msgspec.structs.replace(launch, worker=number) for number in range(1, launch.workers)]
