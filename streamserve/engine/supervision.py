"""Keeps an engine process running: one that ends by itself is started again, so that streams need not end with it.

Runs on the event loop of the process that started the engine. Knows nothing of streams: API sides find the engine again by its
address, and learn from the end of that address that it will not come back.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from time import monotonic

import anyio
import anyio.to_thread

from streamserve.engine.launch import EngineProcess

STEADY_S = 600.0
"""An engine that ran for this long is no part of a series of failures."""


async def keep_running(process: EngineProcess, *, max_restarts: int, on_restart: Callable[[int, int], None]) -> int:
    """Start the process again whenever it ends; returns its exit status when it has ended once too often, its address removed.

    max_restarts  in a row
    on_restart    told the exit status, and how many restarts in a row this one makes
    """
    restarts = 0
    while True:
        started_at = monotonic()
        status = await wait_ended(process)
        if monotonic() - started_at >= STEADY_S:
            restarts = 0
        if restarts == max_restarts:
            await anyio.to_thread.run_sync(process.stop)
            return status
        restarts += 1
        on_restart(status, restarts)
        await anyio.to_thread.run_sync(process.restart)


async def wait_ended(process: EngineProcess) -> int:
    """Returns the exit status once the process has ended."""
    assert process.pid is not None
    watched = os.pidfd_open(process.pid)
    try:
        await anyio.wait_readable(watched)
    finally:
        os.close(watched)
    status = process.poll()
    assert status is not None
    return status
