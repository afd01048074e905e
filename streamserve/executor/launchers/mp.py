"""Ranks as processes of this machine, each with a GPU of its own or a share of the cores.

Used on the engine's event loop; starting a process takes it a millisecond. A rank's plans and results cross a socket pair,
which has no address that anyone else could connect to.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from contextlib import suppress

import anyio

from streamserve.aio.daemon_thread import run_in_daemon_thread
from streamserve.checkpoint.files import Checkpoint
from streamserve.config import EngineConfig
from streamserve.executor.messages import RankLaunch
from streamserve.process.child import encode_with_paths, start_module
from streamserve.process.limits import share_of_cores
from streamserve.process.owned_folder import OwnedFolder

STOP_TIMEOUT_S = 2.0
"""Seconds that ranks get to exit once their connections are closed."""


class ProcessLauncher:
    """Starts `python -m streamserve.executor.rank` once for each rank; satisfies `Launcher`."""

    def __init__(self, config: EngineConfig, checkpoint: Checkpoint) -> None:
        self._config = config
        self._checkpoint = checkpoint
        self._folder: OwnedFolder | None = None
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def pids(self) -> list[int]:
        """Of the ranks that were started, by rank."""
        return [process.pid for process in self._processes]

    async def launch(self) -> list[socket.socket]:
        self._folder = folder = OwnedFolder()
        return [self._start(rank, folder) for rank in range(self._config.tensor_parallel_size)]

    def fate(self, rank: int) -> str:
        process = self._processes[rank]
        try:
            # Its connection is closed a moment before it can be waited for.
            status = process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"

    async def stop(self) -> None:
        processes, self._processes = self._processes, []
        with anyio.move_on_after(STOP_TIMEOUT_S):
            for process in processes:
                await run_in_daemon_thread(process.wait)
        for process in processes:
            process.kill()
            process.wait()
        folder, self._folder = self._folder, None
        if folder is not None:
            folder.remove()

    def _start(self, rank: int, folder: OwnedFolder) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            process = start_module("streamserve.executor.rank", pass_fds=[theirs.fileno()], variables=self._variables())
            launch = RankLaunch(
                config=self._config,
                checkpoint=self._checkpoint,
                rank=rank,
                device_index=self._config.device_index(rank) or 0,
                connection_fd=theirs.fileno(),
                store=str(folder.path / "store"),
            )
        self._processes.append(process)
        folder.name_process(process.pid)
        assert process.stdin is not None
        # One that has exited already is found out by its connection.
        with suppress(BrokenPipeError), process.stdin:
            process.stdin.write(encode_with_paths(launch) + b"\n")
        return ours

    def _variables(self) -> dict[str, str]:
        """Cores divided among the ranks, and gloo kept on this machine, unless the environment says otherwise."""
        ours = {"OMP_NUM_THREADS": str(share_of_cores(self._config.num_ranks)), "GLOO_SOCKET_IFNAME": "lo"}
        return {name: value for name, value in ours.items() if name not in os.environ}
