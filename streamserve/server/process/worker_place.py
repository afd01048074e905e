"""The place of one API worker: the socket that it accepts from, the process that does, and one that it has replaced.

Lives on the first worker's event loop. The socket is kept here, so that connections in its queue outlive the process that was
to accept them. A process that ends by itself is started again; one that is replaced finishes what it answers, and ends then.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskGroup

from streamserve.aio.until_possible import until_possible
from streamserve.server.config import ServerConfig
from streamserve.server.process.worker_launch import WorkerLaunch
from streamserve.server.process.workers import WorkerProcess
from streamserve.server.siblings.control import BEAT_INTERVAL_S, CallSiblings

HANG_TIMEOUT_S = 15.0
"""Seconds without a sign of life after which a worker is taken to hang."""

MAX_FAILED_STARTS = 3
"""Starts in a row of one worker that end before it takes requests."""

AcceptingFrom = Callable[[socket.socket], AbstractAsyncContextManager[None]]
"""Has the first worker accept from a further one's socket while the block runs."""


class WorkerPlace:
    """The processes that are one API worker after another.

    launches        of two of them, whose numbers differ: one may replace the other while that still runs
    listening       bound to the server's port
    on_call         executes a worker's call, given its number
    on_restart      called with a worker's number and its exit status before it is started again
    accepting_from  while there is none
    """

    def __init__(
        self,
        launches: tuple[WorkerLaunch, WorkerLaunch],
        listening: socket.socket,
        *,
        on_call: Callable[[int], CallSiblings],
        on_restart: Callable[[int, int], None],
        accepting_from: AcceptingFrom,
    ) -> None:
        self._launches = launches
        self._listening = listening
        self._on_call = on_call
        self._on_restart = on_restart
        self._accepting_from = accepting_from
        self._current = self._start(launches[0])
        self._former: WorkerProcess | None = None
        self._successor: WorkerProcess | None = None
        self._is_ending = False
        self.ready = anyio.Event()

    @property
    def processes(self) -> list[WorkerProcess]:
        """Those that run: the current one, the one that it has replaced, and the one that is to replace it."""
        others = [worker for worker in (self._former, self._successor) if worker is not None and not worker.ended.is_set()]
        return [self._current, *others]

    async def begin(self, tasks: TaskGroup) -> bool:
        """Run the first process; returns whether it takes requests, once that is known."""
        tasks.start_soon(self._run, self._current)
        await self._current.wait_ready_or_ended()
        return not self._current.ended.is_set()

    async def keep_running(self, tasks: TaskGroup) -> bool:
        """Whether the worker has ended as it should: drained, or after the engine; False when it can't be started."""
        failed_starts = 0
        while True:
            worker = self._current
            status = await worker.wait_ended()
            if worker is not self._current:
                continue
            if self._is_ending or status == 0:
                return True
            failed_starts = 0 if worker.ready.is_set() else failed_starts + 1
            if failed_starts == MAX_FAILED_STARTS:
                return False
            self._on_restart(worker.number, status)
            self._current = await until_possible(partial(self._start_again, worker), "start an API worker")
            tasks.start_soon(self._run, self._current)
            async with self._accepting_from(self._listening):
                await self._current.wait_ready_or_ended()

    async def replace(self, tasks: TaskGroup) -> bool:
        """Start another process and have the current one finish what it answers; False when the other one did not start.

        Waits until whatever was replaced before has ended.
        """
        if self._former is not None:
            await self._former.wait_ended()
        former = self._current
        if self._is_ending:
            return True
        try:
            worker = self._successor = self._start(self._launches[self._launches[0].worker == former.number])
        except OSError:
            return False
        tasks.start_soon(self._run, worker)
        await worker.wait_ready_or_ended()
        self._successor = None
        if worker.ended.is_set() or former is not self._current:
            await anyio.to_thread.run_sync(worker.kill)
            return False
        # Both accept until the former one has heard of it: no connection waits or is lost.
        self._former, self._current = former, worker
        former.retire()
        return True

    def reconfigure(self, config: ServerConfig) -> None:
        """Have those that run read the keys again, and those that are started from now on take this configuration."""
        self._launches = reconfigured(self._launches, config)
        for worker in self.processes:
            worker.reconfigure(config)

    def drain(self) -> None:
        """Have them finish what runs and end."""
        self._is_ending = True
        self._listening.close()
        for worker in self.processes:
            worker.drain()

    def kill(self) -> None:
        """End them at once. Blocks for as long as the kernel takes."""
        self._is_ending = True
        self._listening.close()
        for worker in self.processes:
            worker.kill()

    async def _start_again(self, worker: WorkerProcess) -> WorkerProcess:
        return self._start(worker.launch)

    def _start(self, launch: WorkerLaunch) -> WorkerProcess:
        return WorkerProcess(launch, self._listening, on_call=self._on_call(launch.worker))

    async def _run(self, worker: WorkerProcess) -> None:
        """Run a worker until it ends, or is killed since it hangs."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._report_ready, worker)
            tasks.start_soon(_kill_when_hung, worker)
            await worker.run()
            tasks.cancel_scope.cancel()

    async def _report_ready(self, worker: WorkerProcess) -> None:
        await worker.ready.wait()
        self.ready.set()


def reconfigured(launches: tuple[WorkerLaunch, WorkerLaunch], config: ServerConfig) -> tuple[WorkerLaunch, WorkerLaunch]:
    """Launch parameters with another configuration."""
    first, second = (msgspec.structs.replace(launch, server_config=config) for launch in launches)
    return first, second


async def _kill_when_hung(worker: WorkerProcess) -> None:
    """Kill the worker when it has sent nothing for `HANG_TIMEOUT_S`, beginning with its first message."""
    heard, silent_ticks = 0, 0
    # Ticks of this loop, not of the clock: whoever stops and continues all processes must not find the workers killed.
    while silent_ticks < HANG_TIMEOUT_S / BEAT_INTERVAL_S:
        await anyio.sleep(BEAT_INTERVAL_S)
        silent_ticks = silent_ticks + 1 if heard and worker.control.num_received == heard else 0
        heard = worker.control.num_received
    await anyio.to_thread.run_sync(worker.kill)
