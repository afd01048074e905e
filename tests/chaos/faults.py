"""What can go wrong with a server from outside: its processes, its descriptors, its disk, its device, its connections.

On the test's event loop. Each fault is over when its function returns, or mends itself.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import anyio

from streamserve.engine.ipc.link import LINK_WRITE
from streamserve.fail_points import arm, disarm
from streamserve.process.error_stream import LOG_WRITE
from streamserve.process.owned_folder import DISK_WRITE
from streamserve.worker.step import DEVICE_FAILURE, STEP_STALL
from streamserve.worker.step_memory import OUT_OF_MEMORY
from tests.chaos.losses import Losses
from tests.support.serve_process import ServeProcess

PAUSE_S = 1.5
ENGINE, WORKER = "streamserve.engine.process.main", "worker_process"


class Faults:
    """Faults by name.

    folder  of the server's fail points
    """

    def __init__(self, server: ServeProcess, losses: Losses, folder: Path) -> None:
        self._server = server
        self._losses = losses
        self._folder = folder
        self.by_name: dict[str, Callable[[], Awaitable[None]]] = {
            "the engine is killed": self._kill_engine,
            "the engine stands still": self._stop_engine,
            "an API worker is killed": self._kill_worker,
            "an API worker stands still": self._stop_worker,
            "the clock jumps": self._stop_all,
            "API workers are replaced": self._replace_workers,
            "steps run out of memory": self._run_out_of_memory,
            "the device fails": self._fail_device,
            "a step never ends": self._stall_step,
            "frames are cut": self._cut_frames,
            "the disk is full": self._fill_disk,
            "descriptors run out": self._run_out_of_descriptors,
        }

    async def _kill_engine(self) -> None:
        self._signal(ENGINE, signal.SIGKILL)

    async def _stop_engine(self) -> None:
        await self._pause(self._server.running(ENGINE))

    async def _kill_worker(self) -> None:
        with self._losses.possible():
            self._signal(WORKER, signal.SIGKILL)

    async def _stop_worker(self) -> None:
        await self._pause(self._server.running(WORKER))

    async def _stop_all(self) -> None:
        """As a machine that is suspended: every process finds that time has passed at once."""
        await self._pause([self._server.pid, *self._server.children])

    async def _replace_workers(self) -> None:
        os.kill(self._server.pid, signal.SIGHUP)

    async def _run_out_of_memory(self) -> None:
        arm(self._folder, OUT_OF_MEMORY, times=2, at_least=12)

    async def _fail_device(self) -> None:
        arm(self._folder, DEVICE_FAILURE)

    async def _stall_step(self) -> None:
        # One at a time: an engine that is started again may have it, which takes a minute to be noticed.
        disarm(self._folder, STEP_STALL)
        arm(self._folder, STEP_STALL)

    async def _cut_frames(self) -> None:
        arm(self._folder, LINK_WRITE)

    async def _fill_disk(self) -> None:
        arm(self._folder, LOG_WRITE, times=40)
        arm(self._folder, DISK_WRITE, times=4)

    async def _run_out_of_descriptors(self) -> None:
        pids = [self._server.pid, *self._server.running(WORKER)]
        limits = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in pids}
        # A connection that can't be accepted is closed, and so may others be.
        with self._losses.possible():
            for pid, (_, hard) in limits.items():
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (num_descriptors(pid) + 2, hard))
            await anyio.sleep(PAUSE_S)
            for pid, limit in limits.items():
                with suppress(ProcessLookupError):
                    resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)

    async def _pause(self, pids: list[int]) -> None:
        try:
            for pid in pids:
                self._kill(pid, signal.SIGSTOP)
            await anyio.sleep(PAUSE_S)
        finally:
            for pid in pids:
                self._kill(pid, signal.SIGCONT)

    def _signal(self, module: str, number: signal.Signals) -> None:
        for pid in self._server.running(module)[:1]:
            self._kill(pid, number)

    def _kill(self, pid: int, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def num_descriptors(pid: int) -> int:
    """Those that a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))
