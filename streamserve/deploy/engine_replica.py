"""One replica of the model: an engine process, a gateway through which API workers of all hosts reach it, and announcements.

A deployment of Ray Serve, on its replica's event loop. Ray Serve starts, watches and ends it, and sends it no request: tokens
go from the engine to the API workers over connections of their own. It ends with its engine, and another takes its place.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

from streamserve.aio.daemon_thread import run_in_daemon_thread
from streamserve.checkpoint.names import checkpoint_of
from streamserve.config import replace
from streamserve.deploy.directory import ANNOUNCE_INTERVAL_S, Member
from streamserve.deploy.options import AppOptions
from streamserve.engine.ipc.tcp import Gateway
from streamserve.engine.process.launch import EngineProcess
from streamserve.engine.process.start import GRAMMARS
from streamserve.engine.remote import RemoteEngine
from streamserve.engine.watchdog import kill_when_hung
from streamserve.errors import EngineDead, StreamserveError
from streamserve.types import EngineStats

HANDOVER_S = 15.0
"""Seconds within which API workers learn that an engine is leaving and have continued its streams elsewhere."""

POLL_INTERVAL_S = 0.5
"""Seconds between two looks at what still runs on an engine that is leaving."""

logger = logging.getLogger(__name__)


class EngineReplica:
    """Loads the model at its `start`.

    directory  Ray Serve's handle of the `Directory`
    """

    def __init__(self, options: AppOptions, directory: Any) -> None:
        self._options = options
        self._directory = directory
        self._tasks: list[asyncio.Task[Any]] = []
        self._engine: RemoteEngine | None = None
        self._gateway: Gateway | None = None
        self._member: Member | None = None

    async def start(self, id: str, host: str) -> None:
        """Load the model, accept API workers at an address of this host, and announce that.

        Raises `ConfigError` when the model can't be loaded with these settings.
        """
        options = self._options
        checkpoint = await run_in_daemon_thread(lambda: checkpoint_of(options.engine))
        process = EngineProcess(replace(options.engine, model=str(checkpoint.path)), checkpoint, compile_constraint=GRAMMARS)
        self._engine = RemoteEngine(process)
        await self._engine.start()
        self._gateway = Gateway(process.address)
        self._member = Member(id=id, kind="engine", address=await self._gateway.listen(host))
        hang_s = options.server.engine_hang_timeout_s
        self._tasks = [
            asyncio.create_task(self._announce()),
            asyncio.create_task(kill_when_hung(self._engine, process, step_timeout_s=hang_s, on_kill=logger.error)),
        ]

    async def stop(self) -> None:
        """Take no more requests, wait until API workers have continued elsewhere what runs here, and end the engine."""
        engine, member = self._engine, self._member
        if engine is None or member is None:
            return
        self._member = Member(id=member.id, kind="engine", address=member.address, is_leaving=True)
        # Announced at least once more, for API workers that look every so often.
        await asyncio.sleep(2 * ANNOUNCE_INTERVAL_S)
        with suppress(StreamserveError):
            for _ in range(round((self._options.drain_s + HANDOVER_S) / POLL_INTERVAL_S)):
                if not _num_sequences(await engine.stats()):
                    break
                await asyncio.sleep(POLL_INTERVAL_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        await self._call(self._directory.leave, member.id)
        assert self._gateway is not None
        await self._gateway.close()
        await engine.stop()

    def require_alive(self) -> None:
        """Raises `EngineDead` once the engine has ended."""
        if self._engine is not None and self._engine.has_ended:
            raise EngineDead("the engine process has ended; its log says why")

    async def load(self) -> dict[str, float]:
        """What autoscaling goes by: sequences that run or wait, and those that wait."""
        assert self._engine is not None
        stats = await self._engine.stats()
        return {"sequences": float(_num_sequences(stats)), "waiting": float(stats.num_requests_waiting)}

    async def _announce(self) -> None:
        while True:
            await self._call(self._directory.announce, self._member)
            await asyncio.sleep(ANNOUNCE_INTERVAL_S)

    async def _call(self, method: Any, argument: Any) -> None:
        """Call the directory. It may be being replaced: API workers keep the connections that they have, and calls follow."""
        try:
            await method.remote(argument)
        except Exception:
            logger.warning("the directory can't be reached", exc_info=True)


def _num_sequences(stats: EngineStats) -> int:
    return stats.num_requests_running + stats.num_requests_waiting + stats.num_requests_paused
