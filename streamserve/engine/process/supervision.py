"""Keeps an engine process running: restarts one that ends by itself, so that streams need not end with it.

Runs on the event loop of the process that started the engine. Knows nothing of streams: API sides reconnect at the same
address, and learn from its removal that the engine will not be restarted.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from time import monotonic

import anyio
import anyio.to_thread

from streamserve.engine.process.launch import EngineProcess

STEADY_S = 600.0
"""An engine that ran for this many seconds begins a new series of restarts."""


async def keep_running(process: EngineProcess, *, max_restarts: int, on_restart: Callable[[int, int], None]) -> int:
    """Restart the process whenever it ends; return its exit status once that is one time too many, its address removed.

    max_restarts  in a row
    on_restart    called with the exit status and the number of this restart in the series
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
    """Wait for the process to end; returns its exit status."""
    assert process.pid is not None
    watched = os.pidfd_open(process.pid)
    try:
        await anyio.wait_readable(watched)
    finally:
        os.close(watched)
    status = process.poll()
    assert status is not None
    return status
