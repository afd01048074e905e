"""The further API workers of a server, as its first one sees them: started, asked, drained, ended.

Lives on the first worker's event loop.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

import anyio
import msgspec

from streamserve.process.child import encode_with_paths, start_module
from streamserve.server.process.worker_process import WorkerLaunch
from streamserve.server.siblings.control import Asked, Control, Drain, Question

END_TIMEOUT_S = 5.0


class WorkerProcess:
    """One further API worker.

    launch  with any `control_fd`: the pair is made here
    asked   answers for all others when the worker asks
    """

    def __init__(self, launch: WorkerLaunch, *, asked: Asked) -> None:
        self.worker = launch.worker
        self.ready = anyio.Event()
        self.ended = anyio.Event()
        self.control = Control(asked=asked, on_ready=self.ready.set)
        ours, theirs = socket.socketpair()
        self._end = ours
        with theirs:
            self._child = start_module(
                "streamserve.server.process.worker_process", pass_fds=[theirs.fileno(), launch.metrics_fd]
            )
            launch = msgspec.structs.replace(launch, control_fd=theirs.fileno())
        assert self._child.stdin is not None
        with self._child.stdin as stdin:
            stdin.write(encode_with_paths(launch) + b"\n")

    async def run(self) -> int:
        """Serve its questions until it has ended; its exit status."""
        await self.control.run(self._end)
        status = await anyio.to_thread.run_sync(self._child.wait)
        self.ended.set()
        return status

    def drain(self) -> None:
        """Have it finish what runs and end."""
        self.control.tell(Drain())

    def kill(self) -> None:
        """End it at once. Blocks for as long as the kernel takes."""
        self._child.kill()
        self._child.wait()


async def ask_each(workers: Sequence[WorkerProcess], question: Question, id: str) -> int | None:
    """The first of these workers that has what is asked about; None when none of them has it."""
    for worker in workers:
        if (found := await worker.control.ask(question, id)) is not None:
            return found
    return None
