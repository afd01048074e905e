"""Blocking calls that a program's end does not wait for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


async def run_in_daemon_thread(call: Callable[[], T]) -> T:
    """Run a blocking call on a thread of its own and return its result, or raise its error.

    Cancelled, it returns at once; the call goes on, unheard, and ends with the program. (anyio's threads, once cancelled, keep
    the program from ending until their call does.)
    """
    run, outcome = _settling(call)
    threading.Thread(target=run, name="streamserve call", daemon=True).start()
    return await outcome


class DaemonThread:
    """A thread that runs blocking calls one after another, until closed: for libraries bound to the one they began on."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    async def run(self, call: Callable[[], T]) -> T:
        """As `run_in_daemon_thread`, behind the calls before it."""
        run, outcome = _settling(call)
        self._calls.put(run)
        return await outcome

    def close(self) -> None:
        """End the thread after the calls that it was given."""
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


def _settling(call: Callable[[], T]) -> tuple[Callable[[], None], asyncio.Future[T]]:
    """The call, to be made on another thread, and the future of this loop that it settles."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def settle(set_outcome: Callable[[], None]) -> None:
        # The loop may have closed.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(lambda: None if outcome.done() else set_outcome())

    def run() -> None:
        try:
            result = call()
        except BaseException as error:
            settle(partial(outcome.set_exception, error))
        else:
            settle(partial(outcome.set_result, result))

    return run, outcome
