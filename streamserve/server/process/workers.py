"""The further API workers of a server, as its first one sees them: their processes and control connections.

Lives on the first worker's event loop.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress

import anyio
import msgspec

from streamserve.process.child import encode_with_paths, start_module
from streamserve.server.config import ServerConfig
from streamserve.server.http.access.owned_id import OwnedId
from streamserve.server.process.worker_launch import WorkerLaunch
from streamserve.server.siblings.control import CallSiblings, Control, Drain, Method, ReloadKeys, Retire

END_TIMEOUT_S = 5.0


class WorkerProcess:
    """One further API worker.

    launch     with any `control_fd` and `listening_fd`: they are filled in here
    listening  bound to the server's port; the worker accepts from it, and others may
    on_call    executes the worker's calls on all other workers
    """

    def __init__(self, launch: WorkerLaunch, listening: socket.socket, *, on_call: CallSiblings) -> None:
        self.launch = launch
        self.number = launch.worker
        self._status = 0
        self.ready = anyio.Event()
        self.ended = anyio.Event()
        self.control = Control(on_call=on_call, on_ready=self.ready.set)
        self._end, theirs = socket.socketpair()
        with theirs:
            launch = msgspec.structs.replace(launch, control_fd=theirs.fileno(), listening_fd=listening.fileno())
            passed = [theirs.fileno(), listening.fileno(), launch.metrics_fd, launch.routing_fd]
            try:
                self._child = start_module("streamserve.server.process.worker_process", pass_fds=passed)
            except OSError:
                self._end.close()
                raise
        assert self._child.stdin is not None
        # One that has ended already is noticed by its connection's end.
        with suppress(BrokenPipeError), self._child.stdin as stdin:
            stdin.write(encode_with_paths(launch) + b"\n")

    async def run(self) -> None:
        """Handle its control messages until it has ended."""
        await self.control.run(self._end)
        self._status = await anyio.to_thread.run_sync(self._child.wait)
        self.ended.set()

    async def wait_ended(self) -> int:
        """Return its exit status once it has ended; something must `run` it."""
        await self.ended.wait()
        return self._status

    async def wait_ready_or_ended(self) -> None:
        """Return once it takes requests, or has ended."""
        async with anyio.create_task_group() as tasks:

            async def wait(event: anyio.Event) -> None:
                await event.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(wait, self.ready)
            tasks.start_soon(wait, self.ended)

    def reconfigure(self, config: ServerConfig) -> None:
        """Have it read the keys again, and take this configuration if it is started again."""
        self.launch = msgspec.structs.replace(self.launch, server_config=config)
        self.control.send(ReloadKeys())

    def retire(self) -> None:
        """Have it accept nothing more, finish all it answers, however long that takes, and end."""
        self.control.send(Retire())

    def drain(self) -> None:
        """Have it finish what runs and end."""
        self.control.send(Drain())

    def kill(self) -> None:
        """End it at once. Blocks for as long as the kernel takes."""
        self._child.kill()
        self._child.wait()


async def call_each(workers: Sequence[WorkerProcess], method: Method, id: OwnedId) -> int | None:
    """Call a method on all workers at once; returns the one that has the request, None when none has.

    Raises `TimeoutError` when none has and one does not answer.
    """
    found: list[int] = []
    silent: list[WorkerProcess] = []
    async with anyio.create_task_group() as tasks:

        async def call(worker: WorkerProcess) -> None:
            try:
                number = await worker.control.call(method, id)
            except TimeoutError:
                silent.append(worker)
                return
            if number is not None:
                found.append(number)
                tasks.cancel_scope.cancel()

        for worker in workers:
            tasks.start_soon(call, worker)
    if silent and not found:
        raise TimeoutError
    return found[0] if found else None
