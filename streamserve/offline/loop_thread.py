"""An event loop on a thread of its own, for programs that have none.

Any thread may call into it and wait. The loop ends when it is closed, and when the program's main thread ends, so that a
program that does not close it exits cleanly.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from streamserve.errors import Unavailable

T = TypeVar("T")


class LoopThread:
    """Runs coroutines on its event loop.

    on_exit  awaited on the loop before it ends
    """

    def __init__(self, on_exit: Callable[[], Awaitable[None]]) -> None:
        self._on_exit = on_exit
        self._ending = asyncio.Event()
        self._loop: Future[asyncio.AbstractEventLoop] = Future()
        # Not a daemon: the interpreter must not be finalised under a model that still computes.
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="streamserve loop")
        self._thread.start()
        threading.Thread(target=self._end_with_program, name="streamserve exit", daemon=True).start()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and wait for its result. Interrupting the wait cancels it.

        Raises `Unavailable` when the loop has ended.
        """
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop.result())
        except RuntimeError as error:
            coroutine.close()
            raise Unavailable("it was closed") from error
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Cancel running calls, await `on_exit` and end the loop. Idempotent."""
        self._end()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    async def _run(self) -> None:
        self._loop.set_result(asyncio.get_running_loop())
        await self._ending.wait()
        await self._on_exit()

    def _end(self) -> None:
        if self._thread.is_alive():
            try:
                self._loop.result().call_soon_threadsafe(self._ending.set)
            except RuntimeError:
                return  # the loop ended in between

    def _end_with_program(self) -> None:
        threading.main_thread().join()
        self._end()
