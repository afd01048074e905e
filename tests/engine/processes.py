"""Engine processes with a scripted executor, watched and ended by tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import anyio
import anyio.to_thread
import pytest

from streamserve.config import EngineConfig
from streamserve.engine.base import Engine
from streamserve.engine.process.launch import EngineProcess
from streamserve.engine.process.supervision import wait_ended
from streamserve.engine.remote import RemoteEngine
from streamserve.engine.replicas.replica_set import ReplicaSet
from streamserve.engine.stream import StreamLimits
from streamserve.errors import Unavailable
from streamserve.types import EngineStats
from tests.support.checkpoints import no_weights

Pair = list[EngineProcess]

PAUSING_SOON = StreamLimits(high_water_tokens=20, low_water_tokens=5)


def scripted_process(executor: str = "instant") -> EngineProcess:
    config = EngineConfig(model="scripted", max_num_seqs=8, max_queue=10)
    return EngineProcess(config, no_weights(), executor=f"tests.support.scripted:{executor}")


async def until(engine: Engine, holds: Callable[[EngineStats], bool]) -> EngineStats:
    """Ask until it holds."""
    with anyio.fail_after(10):
        while not holds(stats := await engine.stats()):
            continue
    return stats


def num_alive(stats: EngineStats) -> int:
    return stats.num_requests_running + stats.num_requests_waiting + stats.num_requests_paused


async def kill(process: EngineProcess) -> None:
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    await wait_ended(process)


async def lost(engine: RemoteEngine) -> None:
    """Return once the engine is known to be lost."""
    with anyio.fail_after(10), pytest.raises(Unavailable):
        while True:
            await engine.stats()


async def reconnected(engine: RemoteEngine) -> None:
    """Return once there is an engine again."""
    with anyio.fail_after(60):
        while True:
            try:
                await engine.stats()
                return
            except Unavailable:
                await anyio.sleep(0.01)


async def running_at(replicas: ReplicaSet) -> list[int]:
    """Sequences that each replica has, in whatever state."""
    return [num_alive(each.stats) for each in await replicas.snapshots() if each.stats is not None]
