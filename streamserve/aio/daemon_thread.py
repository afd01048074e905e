"""Blocking calls that a program's end does not wait for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

T = TypeVar("T")


async def run_in_daemon_thread(call: Callable[[], T]) -> T:
    """Run a blocking call on a thread of its own and return its result, or raise its error.

    Cancelled, it returns at once; the call goes on, unheard, and ends with the program. (anyio's threads, once cancelled, keep
    the program from ending until their call does.)
    """
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

    threading.Thread(target=run, name="streamserve call", daemon=True).start()
    return await outcome
