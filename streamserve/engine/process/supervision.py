"""Keeps an engine process running: restarts one that ends by itself, so that streams need not end with it.

Runs on the event loop of the process that started the engine. Knows nothing of streams: API sides reconnect at the same
address, and learn from its removal that the engine will not be restarted.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from time import monotonic

import anyio
import anyio.to_thread

from streamserve.aio.until_possible import until_possible
from streamserve.engine.process.launch import EngineProcess

WINDOW_S = 600.0
"""Seconds after which a restart no longer counts."""


async def keep_running(
    process: EngineProcess,
    *,
    max_restarts: int,
    on_restart: Callable[[int, int], None],
    num_explained: Callable[[], int] = lambda: 0,
) -> int:
    """Restart the process whenever it ends; return its exit status once that is one time too many, its address removed.

    An end for want of memory does not count: the next process computes smaller steps, which can't go on for long.

    max_restarts   within `WINDOW_S`
    on_restart     called with the exit status and the number of restarts that count, this one included
    num_explained  how many ends so far had a cause that is removed: a request that was given up; they don't count
    """
    budget = RestartBudget(max_restarts)
    while True:
        status = await wait_ended(process)
        if not process.learn_step_tokens() and not budget.take(monotonic(), num_explained()):
            await anyio.to_thread.run_sync(process.stop)
            return status
        on_restart(status, budget.num_counted)
        await until_possible(partial(anyio.to_thread.run_sync, process.restart), "start the engine process")


class RestartBudget:
    """How many restarts are left; times are arguments."""

    def __init__(self, max_restarts: int) -> None:
        self._max_restarts = max_restarts
        self._restarted_at: list[float] = []
        self._num_explained = 0

    @property
    def num_counted(self) -> int:
        """Restarts that count, as of the last `take`."""
        return len(self._restarted_at)

    def take(self, now: float, num_explained: int) -> bool:
        """Count a restart, unless there are too many; returns whether there is to be one."""
        del self._restarted_at[: num_explained - self._num_explained]
        self._num_explained = num_explained
        self._restarted_at = [at for at in self._restarted_at if now - at < WINDOW_S]
        if self.num_counted >= self._max_restarts:
            return False
        self._restarted_at.append(now)
        return True


async def wait_ended(process: EngineProcess) -> int:
    """Wait for the process to end; returns its exit status."""
    watched = await until_possible(partial(_open, process), "watch the engine process")
    try:
        await anyio.wait_readable(watched)
    finally:
        os.close(watched)
    status = process.poll()
    assert status is not None
    return status


async def _open(process: EngineProcess) -> int:
    """A descriptor that becomes readable when the process ends."""
    assert process.pid is not None
    return os.pidfd_open(process.pid)
