"""Keeps the engine processes of a server running: restarts one that ends, and kills one that hangs, so that it ends.

Lives on the first worker's event loop. Of several replicas, one that can't be kept running is left out, as long as another is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import anyio

from streamserve.engine.process.launch import EngineProcess
from streamserve.engine.process.supervision import keep_running
from streamserve.engine.remote import RemoteEngine
from streamserve.engine.watchdog import kill_when_hung
from streamserve.server.config import ServerConfig
from streamserve.server.process.startup_log import StartupLog
from streamserve.server.telemetry.metrics import Metrics


class EngineSupervision:
    """All engine processes of a server, by replica, and the first worker's side of each."""

    def __init__(
        self,
        processes: Sequence[EngineProcess],
        engines: Sequence[RemoteEngine],
        *,
        config: ServerConfig,
        metrics: Metrics,
        log: StartupLog,
    ) -> None:
        self._processes = processes
        self._engines = engines
        self._config = config
        self._metrics = metrics
        self._log = log

    async def run(self) -> str:
        """Keep them running until the last has ended for good; returns what to report."""
        failures: list[str] = []

        async def keep(number: int) -> None:
            status = await self._keep_running(number)
            failures.append(f"{self._name(number)} ended with status {status}; its log says why")
            if len(failures) < len(self._processes):
                self._log.note(f"error: {failures[-1]}. It is not started again: the server goes on without it")

        async with anyio.create_task_group() as tasks:
            for number in range(len(self._processes)):
                tasks.start_soon(keep, number)
        return f"{failures[-1]}, and the server must be started again"

    async def _keep_running(self, number: int) -> int:
        """Return the exit status of a replica's process once it is not restarted, and its streams have their endings."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._kill_when_hung, number)
            status = await keep_running(
                self._processes[number],
                max_restarts=self._config.max_engine_restarts,
                on_restart=partial(self._log_restart, number),
                num_explained=partial(self._metrics.num_engine_ends_explained, number),
            )
            await self._engines[number].wait_ended()
            tasks.cancel_scope.cancel()
        return status

    async def _kill_when_hung(self, number: int) -> None:
        await kill_when_hung(
            self._engines[number],
            self._processes[number],
            step_timeout_s=self._config.engine_hang_timeout_s,
            on_kill=partial(self._log_hang, number),
        )

    def _log_hang(self, number: int, reason: str) -> None:
        self._log.note(f"T{self._name(number)[1:]} hangs: {reason}; killing it")

    def _log_restart(self, number: int, status: int, restarts: int) -> None:
        self._metrics.engine_restarts.add()
        streams = "open streams wait for it" if len(self._processes) == 1 else "its streams go on with another"
        self._log.note(
            f"T{self._name(number)[1:]} ended with status {status}; starting it again "
            f"({restarts} of {self._config.max_engine_restarts} times in ten minutes): {streams}"
        )

    def _name(self, number: int) -> str:
        return "the engine process" if len(self._processes) == 1 else f"the process of engine {number}"
