"""The engine in a process of its own: `python -m streamserve.engine.process.main`, started by `launch.EngineProcess`.

Its main thread runs the engine's event loop; ranks run on threads of the executor. It exits when its standard input ends: the
parent has exited, or wants it to. It ignores signals, which a terminal or supervisor sends to the whole process group: its
parent handles them, and drains first.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

import anyio

from streamserve.engine.core import EngineCore
from streamserve.engine.ipc.listener import Listener
from streamserve.engine.process.last_words import leave
from streamserve.engine.process.launch import Launch
from streamserve.errors import ConfigError, EngineDead, RankOutOfMemory
from streamserve.executor.base import Executor
from streamserve.executor.tuning import tune_after_loading, tune_before_loading
from streamserve.process.bytecode import compile_ahead
from streamserve.process.child import decode_with_paths
from streamserve.process.error_stream import error_stream
from streamserve.process.signals import ENDING, MEANINGLESS, ignore

STARTUP_FAILURE_LINGER_S = 30.0
"""Seconds that an engine which could not start waits for late API workers, to report why."""

RANKS_TIMEOUT_S = 3.0
"""Seconds that ranks get to finish their steps."""

FORCED_EXIT_S = 6.0
"""Seconds after the end of standard input at which a process that still runs exits by force."""

logger = logging.getLogger(__name__)


def main() -> None:
    """Read the launch line and serve until standard input ends."""
    ignore(*ENDING, *MEANINGLESS)
    compile_ahead()
    launch = decode_with_paths(sys.stdin.buffer.readline(), Launch)
    name = "engine" if launch.config.data_parallel_size == 1 else f"engine {launch.config.replica}"
    logging.basicConfig(level=logging.INFO, stream=error_stream(), format=f"%(asctime)s {name} %(levelname)s %(message)s")
    if launch.config.most_step_tokens is not None:
        logger.warning(
            "steps compute %d tokens at most, since a larger one ran out of memory: "
            "to start with such steps, lower --max-num-batched-tokens, or leave more memory free",
            launch.config.most_step_tokens,
        )
    tune_before_loading(launch.config, launch.checkpoint)
    options = {"use_uvloop": find_spec("uvloop") is not None}
    sys.exit(anyio.run(serve, launch, sys.stdin.fileno(), backend_options=options))


async def serve(launch: Launch, stdin_fd: int) -> int:
    """Serve one engine on the inherited socket until it dies or standard input ends; returns the exit status."""
    executor: Executor = _named(launch.executor)(launch.config, launch.checkpoint)
    compiler = _named(launch.compile_constraint)(launch.config, launch.checkpoint) if launch.compile_constraint else None
    core = EngineCore(launch.config, executor, compile_constraint=compiler)
    listener = Listener(core)
    status = 0
    try:
        async with anyio.create_task_group() as tasks:
            _call_at_end_of(stdin_fd, tasks.cancel_scope.cancel)
            await listener.listen(socket.socket(fileno=launch.listen_fd))
            status = await _run(core, listener)
            if isinstance(core.cause, RankOutOfMemory):
                leave(launch.last_words_fd, core.cause.num_tokens)
            tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            core.end(EngineDead("the engine was stopped"))
            await listener.close()
            await _stop(executor)
    return status


async def _run(core: EngineCore, listener: Listener) -> int:
    """Start and run the engine; returns the exit status once it is dead."""
    try:
        info = await core.start()
    except Exception as error:
        if not isinstance(error, ConfigError):
            logger.exception("the engine could not start")
        listener.announce_failure(error)
        await anyio.sleep(STARTUP_FAILURE_LINGER_S)
        return 1
    # What loading left stays: the collector need not walk it again, which takes as long as twenty steps on a GPU. Not for an
    # engine inside a caller's process, whose own cycles would never be freed.
    gc.collect()
    gc.freeze()
    tune_after_loading()
    listener.announce_ready(info)
    await core.run()
    listener.announce_failure(core.failure or EngineDead("the engine ended"))
    return 1


async def _stop(executor: Executor) -> None:
    with anyio.move_on_after(RANKS_TIMEOUT_S) as scope:
        await executor.stop()
    if scope.cancelled_caught:
        # A rank that still loads or hangs. Not sys.exit: finalising the interpreter under a thread inside torch aborts.
        logger.warning("the ranks did not stop in time; exiting without them")
        os._exit(1)


def _call_at_end_of(fd: int, call: Callable[[], None]) -> None:
    """Call on this loop once `fd` is at its end; exit by force when the process still runs `FORCED_EXIT_S` later."""
    loop = asyncio.get_running_loop()

    def watch() -> None:
        # The bare descriptor: a thread inside sys.stdin's lock would make the interpreter abort at exit.
        while os.read(fd, 4096):
            continue
        with suppress(RuntimeError):  # the loop has closed: the process is exiting
            loop.call_soon_threadsafe(call)
        time.sleep(FORCED_EXIT_S)
        os._exit(1)

    threading.Thread(target=watch, name="stdin-watch", daemon=True).start()


def _named(path: str) -> Callable[..., Any]:
    """The callable at "module:name"."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
