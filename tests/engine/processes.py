"""Engine processes with a scripted executor, watched and ended by tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import anyio
import anyio.to_thread

from streamserve.config import EngineConfig
from streamserve.engine.base import Engine
from streamserve.engine.process.launch import EngineProcess
from streamserve.engine.process.supervision import wait_ended
from streamserve.engine.stream import StreamLimits
from streamserve.types import EngineStats
from tests.support.checkpoints import no_weights

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
