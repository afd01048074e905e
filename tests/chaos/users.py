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
    sizes = ["--users", str(count), "--spawn-rate", str(count), "--stop-timeout", str(STOP_TIMEOUT_S)]
    # libev aborts the process when a socket is closed that another greenlet waits for, as one is that was lost.
    environment = {**os.environ, FATES: str(fates), "GEVENT_LOOP": "libuv"}
    log = folder / "locust.log"
    with log.open("wb") as output:
        opened = await anyio.open_process([*command, *sizes], env=environment, stdin=DEVNULL, stdout=output, stderr=output)
    async with opened as process:
        try:
            yield outcomes
            assert process.returncode is None, f"the users have left with {process.returncode}: {log.read_text()[-2000:]}"
            process.send_signal(signal.SIGTERM)
            with anyio.fail_after(STOP_TIMEOUT_S + 30):
                await process.wait()
        finally:
            with suppress(ProcessLookupError):
                process.kill()
    outcomes.update(_judged(line, losses) for line in fates.read_text().splitlines())
    assert outcomes, "the users asked for nothing"


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
