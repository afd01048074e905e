"""A rank in a process of its own: `python -m streamserve.executor.rank`, started by `launchers.mp`, or an actor of Ray's.

The main thread is the launch thread: it loads the model and launches steps. One thread receives plans, another waits for
steps and sends what they produced. The process exits when its connection is closed, whatever it is doing: a rank in the
middle of an exchange may wait for one that is gone.
"""

from __future__ import annotations

import gc
import logging
import os
import socket
import sys
import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING

import msgspec

from streamserve.errors import ConfigError, EngineDead, RankOutOfMemory, StreamserveError
from streamserve.executor.messages import RankFailed, RankLaunch, RankLoaded, RankMessage, StepDone, plan_decoder
from streamserve.executor.tuning import tune_after_loading, tune_before_loading
from streamserve.process.bytecode import compile_ahead
from streamserve.process.child import decode_with_paths
from streamserve.process.error_stream import error_stream
from streamserve.process.framing import ProtocolViolation, encode
from streamserve.process.signals import ENDING, MEANINGLESS, ignore
from streamserve.scheduling.plan import Plan
from streamserve.types import EngineInfo

if TYPE_CHECKING:
    from streamserve.worker.divided_steps import Pending
    from streamserve.worker.runner import Runner

logger = logging.getLogger(__name__)

_RECEIVE_BYTES = 1 << 16


def main() -> None:
    """Read the launch line and run the rank until its connection is closed."""
    # A terminal or supervisor sends them to the whole group: the engine's parent handles them, and drains first.
    ignore(*ENDING, *MEANINGLESS)
    compile_ahead()
    launch = decode_with_paths(sys.stdin.buffer.readline(), RankLaunch)
    name = (
        f"rank {launch.rank}" if launch.config.data_parallel_size == 1 else f"engine {launch.config.replica} rank {launch.rank}"
    )
    logging.basicConfig(level=logging.INFO, stream=error_stream(), format=f"%(asctime)s {name} %(levelname)s %(message)s")
    tune_before_loading(launch.config, launch.checkpoint)
    run_rank(launch, socket.socket(fileno=launch.connection_fd))


def run_rank(launch: RankLaunch, connection: socket.socket) -> None:
    """Run a rank on this thread until its connection is closed, then exit this process."""
    status = _Rank(launch, connection).run()
    # Not sys.exit: finalising the interpreter under threads inside torch aborts.
    os._exit(status)


class _Rank:
    """One rank's connection and its three threads."""

    def __init__(self, launch: RankLaunch, connection: socket.socket) -> None:
        self._launch = launch
        self._connection = connection
        self._plans: SimpleQueue[Plan] = SimpleQueue()
        self._launched: SimpleQueue[Pending] = SimpleQueue()
        self._sending = threading.Lock()

    def run(self) -> int:
        """Load, then run every plan; returns the exit status once that has failed."""
        threading.Thread(target=self._receive, name="streamserve-receive", daemon=True).start()
        try:
            runner, info = self._load()
        except Exception as error:
            if not isinstance(error, (ConfigError, EngineDead)):
                logger.exception("the rank could not start")
            return self._fail(error)
        gc.collect()
        gc.freeze()
        tune_after_loading()
        self._send(RankLoaded(info))
        threading.Thread(target=self._await_steps, name="streamserve-wait", daemon=True).start()
        while True:
            plan = self._plans.get()
            try:
                self._launched.put(runner.step(plan))
            except EngineDead as error:
                # Another rank ended, or this one has no memory: there is no fault to show a traceback of.
                logger.error("step %d failed: %s", plan.step, error.message)
                return self._fail(error)
            except Exception as error:
                logger.exception("step %d failed", plan.step)
                return self._fail(error)

    def _load(self) -> tuple[Runner, EngineInfo]:
        launch, began = self._launch, time.perf_counter()
        # Here and not at the top: torch takes seconds to import.
        from streamserve.worker.startup.triton_cache import TritonCache

        with TritonCache(launch.config, launch.checkpoint) as triton_cache:
            triton_cache.start(compiles=launch.rank == 0)
            from streamserve.worker.communication.select import join_at
            from streamserve.worker.runner import Runner

            imports_s = time.perf_counter() - began
            join = join_at(
                launch.store,
                launch.rank,
                launch.world_size,
                store_fd=launch.store_fd,
                maps_memory=not launch.config.disable_custom_all_reduce,
            )
            runner = Runner(launch.config, launch.checkpoint, triton_cache, device_index=launch.device_index, join=join)
            info = runner.load()
        return runner, msgspec.structs.replace(info, startup_s={"imports": imports_s} | info.startup_s)

    def _receive(self) -> None:
        decoder = plan_decoder()
        try:
            while data := self._receive_some():
                for plan in decoder.feed(data):
                    self._plans.put(plan)
        except ProtocolViolation as violation:
            os._exit(self._fail(violation))
        os._exit(0)

    def _receive_some(self) -> bytes:
        try:
            return self._connection.recv(_RECEIVE_BYTES)
        except OSError:
            return b""

    def _await_steps(self) -> None:
        while True:
            pending = self._launched.get()
            try:
                result = pending.wait()
            except Exception as error:
                logger.exception("step %d failed", pending.step)
                os._exit(self._fail(error))
            if self._launch.rank == 0:
                self._send(StepDone(result))

    def _fail(self, error: Exception) -> int:
        is_config_error = isinstance(error, ConfigError)
        message = error.message if isinstance(error, StreamserveError) else f"{type(error).__name__}: {error}"
        self._send(RankFailed(message, is_config_error, error.num_tokens if isinstance(error, RankOutOfMemory) else None))
        return 1

    def _send(self, message: RankMessage) -> None:
        with self._sending:
            try:
                self._connection.sendall(encode(message))
            except OSError:
                os._exit(0)


if __name__ == "__main__":
    main()
