"""Locust's users of the load test, run beside the exact clients in a process of their own, and what became of their answers.

On the test's event loop. They ask for other things than the exact clients do: chats, tools, several streams of a socket,
responses that are resumed, connections that are left or never read. What they get is not compared, but has to end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from subprocess import DEVNULL

import anyio
from anyio.abc import Process

from tests.chaos.load import NO_TOKEN, REASONS
from tests.chaos.losses import Losses

FATES = "STREAMSERVE_CHAOS_FATES"
"""The environment variable that names the file into which Locust's process writes what became of each answer."""

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
STOP_TIMEOUT_S = 60

FAILURES = REASONS | {NO_TOKEN, "server_error"}
"""Codes with which answers may fail: of the Responses API the last, and one where they come upon the broken token by chance."""

GONE = frozenset({"not_found"})
"""Codes of answers that were kept by an API worker that was killed."""


@asynccontextmanager
async def users_running(url: str, count: int, losses: Losses, folder: Path) -> AsyncIterator[Counter[str]]:
    """Run so many users while the block runs; yields how many answers ended in which way, known behind it.

    Raises `AssertionError` for answers that were lost, or have no end or reason, without a fault that explains it. Without
    Locust there are no users.
    """
    fates, outcomes = folder / "fates", Counter[str]()
    fates.touch()
    if find_spec("locust") is None:
        yield outcomes
        return
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--host", url, "--headless", "--skip-log"]
    command += ["--users", str(count), "--spawn-rate", str(count), "--stop-timeout", str(STOP_TIMEOUT_S)]
    async with anyio.create_task_group() as tasks:
        stopping = anyio.Event()
        tasks.start_soon(_keep_running, command, {**os.environ, FATES: str(fates)}, folder / "locust.log", stopping)
        yield outcomes
        stopping.set()
    outcomes.update(_judged(line, losses) for line in fates.read_text().splitlines())
    assert outcomes, "the users asked for nothing"


async def _keep_running(command: list[str], environment: dict[str, str], log: Path, stopping: anyio.Event) -> None:
    """Run Locust until it is to stop, again whenever libev aborts it over a socket that was closed while a greenlet waits."""
    while not stopping.is_set():
        with log.open("ab") as output:
            opened = await anyio.open_process(command, env=environment, stdin=DEVNULL, stdout=output, stderr=output)
        async with opened as process, anyio.create_task_group() as tasks:
            tasks.start_soon(_stop_when, stopping, process)
            try:
                status = await process.wait()
            finally:
                with suppress(ProcessLookupError):
                    process.kill()
            tasks.cancel_scope.cancel()
        assert stopping.is_set() or status == -signal.SIGABRT, f"the users left with {status}; {log} says why"


async def _stop_when(stopping: anyio.Event, process: Process) -> None:
    await stopping.wait()
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    await anyio.sleep(STOP_TIMEOUT_S + 30)
    raise AssertionError("the users did not stop")


def _judged(line: str, losses: Losses) -> str:
    """How an answer of a user ended, which must be well or for a reason."""
    fate = json.loads(line)
    how, what = fate["how"], fate["what"]
    if how in ("whole", "left"):
        return f"{fate['user']}: {how}"
    if how == "failed" and what in FAILURES:
        return f"{fate['user']}: {what}"
    assert how != "broken", f"an answer that did not end once and for a reason: {line}"
    assert how == "lost" or what in GONE, f"an answer that failed for no reason of the faults: {line}"
    is_explained = losses.explain(fate["began_at"], fate["ended_at"])
    assert is_explained, f"an answer was lost without a fault that explains it: {line}"
    return f"{fate['user']}: lost with its worker"
