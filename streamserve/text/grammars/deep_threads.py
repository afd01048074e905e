"""Threads with deep stacks, for libraries that recurse over a client's input: few at a time, and awaited for a limited time.

Owned by one event loop; the work runs beside it. A library that recurses ends the whole process when its stack overflows,
with no exception: so each piece of work gets a new thread, with all the stack that an input within its limits could use. A
thread can't be stopped: one that exceeds its time is abandoned, but counts until it ends, so that never more than
`max_threads` run. Knows nothing of the work.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import anyio

from streamserve.errors import QueueFull

T = TypeVar("T")

_starting = threading.Lock()


class DeepThreads:
    """Runs functions on new threads, awaited from one event loop.

    max_threads  threads at a time
    timeout_s    seconds that a function may take, and seconds that it may wait for a thread
    stack_bytes  address space of each stack; memory only as it is used
    """

    def __init__(self, max_threads: int, *, timeout_s: float, stack_bytes: int) -> None:
        self._slots = anyio.Semaphore(max_threads)
        self._timeout_s = timeout_s
        self._stack_bytes = stack_bytes

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` on a thread; returns or raises what it does.

        Raises `TimeoutError` when it takes longer than `timeout_s`, `QueueFull` when no thread was free for as long.
        """
        await self._acquire()
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        try:
            self._start(partial(self._work, work, outcome, asyncio.get_running_loop()))
        except BaseException:
            self._slots.release()
            raise
        with anyio.fail_after(self._timeout_s):
            return await outcome

    async def _acquire(self) -> None:
        try:
            with anyio.fail_after(self._timeout_s):
                await self._slots.acquire()
        except TimeoutError:
            raise QueueFull("too many such requests at the moment: try again in some seconds", retry_after_s=5.0) from None

    def _start(self, body: Callable[[], None]) -> None:
        # The size is the process's: threads started elsewhere meanwhile get it too, which costs them address space only.
        with _starting:
            before = threading.stack_size(self._stack_bytes)
            try:
                threading.Thread(target=body, name="deep", daemon=True).start()
            finally:
                threading.stack_size(before)

    def _work(self, work: Callable[[], T], outcome: asyncio.Future[T], loop: asyncio.AbstractEventLoop) -> None:
        finish: Callable[[Any], None] = outcome.set_result
        try:
            value: Any = work()
        except BaseException as error:
            finish, value = outcome.set_exception, error
        with suppress(RuntimeError):  # the loop has closed, and with it the wait
            loop.call_soon_threadsafe(self._end, outcome, finish, value)

    def _end(self, outcome: asyncio.Future[T], finish: Callable[[Any], None], value: Any) -> None:
        self._slots.release()
        if not outcome.done():
            finish(value)
