"""Kills an engine process that hangs, so that its supervisor starts another and its streams go on.

Runs on the event loop of an API side. A process that was stopped does not answer; one whose step never ends answers, and says
since when its loop waits; one that was started again and hangs before it is ready is late.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio

from streamserve.engine.process.launch import EngineProcess
from streamserve.engine.remote import STATS_TIMEOUT_S, RemoteEngine
from streamserve.errors import Unavailable

POLL_INTERVAL_S = 1.0
SILENT_TIMEOUT_S = 30.0
"""Seconds without an answer: a step, however long, leaves the engine's event loop free to give one."""

START_TIMEOUT_S = 60.0
"""Seconds that a process that was started again gets at least until it is ready."""

START_FACTOR = 4.0
"""How many times as long as the start before it may take."""


async def kill_when_hung(
    engine: RemoteEngine, process: EngineProcess, *, step_timeout_s: float, on_kill: Callable[[str], None]
) -> None:
    """Kill the process whenever it hangs, until cancelled.

    step_timeout_s  seconds that a step may take; an engine without an answer gets `SILENT_TIMEOUT_S`, at most as long; one that
                    is started again, at least as long
    on_kill         called with the reason before the process is killed
    """
    while True:
        reason = await _hang(engine, process, step_timeout_s, min(SILENT_TIMEOUT_S, step_timeout_s))
        on_kill(reason)
        process.kill()
        await engine.wait_lost()


async def _hang(engine: RemoteEngine, process: EngineProcess, step_timeout_s: float, silent_timeout_s: float) -> str:
    """Return once the engine hangs, with how that shows."""
    silent_s = waiting_s = heartbeat_s = lost_s = 0.0
    lost_pid = None
    # Time is counted in this loop's own polls: whoever stops and continues all processes must not find the engine killed.
    while True:
        await anyio.sleep(POLL_INTERVAL_S)
        if engine.is_lost:
            silent_s = waiting_s = heartbeat_s = 0.0
            # Each process that is started has its own time.
            lost_s = lost_s + POLL_INTERVAL_S if process.pid == lost_pid else 0.0
            lost_pid = process.pid
            if lost_s >= max(step_timeout_s, START_TIMEOUT_S, START_FACTOR * sum(engine.info.startup_s.values())):
                return f"it has not become ready for {lost_s:g} s"
            continue
        lost_s = 0.0
        try:
            stats = await engine.stats()
        except Unavailable:
            silent_s += STATS_TIMEOUT_S
        else:
            waiting_s = waiting_s + POLL_INTERVAL_S if stats.heartbeat_s > heartbeat_s else 0.0
            silent_s, heartbeat_s = 0.0, stats.heartbeat_s
        if silent_s >= silent_timeout_s:
            return f"it has not answered for {silent_s:g} s"
        if waiting_s >= step_timeout_s:
            return f"a step has not ended for {waiting_s:g} s"
