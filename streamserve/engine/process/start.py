"""The start of a server's engine processes on a thread, so that they load while the API side still imports what it needs.

Made before anything slow is imported; `result` then waits for the outcome. Finding a model may take a download.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from time import monotonic
from typing import NamedTuple

from streamserve.checkpoint.files import Checkpoint
from streamserve.checkpoint.names import checkpoint_of
from streamserve.config import EngineConfig, replace
from streamserve.engine.process.launch import EXECUTOR, STOP_TIMEOUT_S, EngineProcess
from streamserve.errors import EngineDead
from streamserve.process.owned_folder import OwnedFolder

GRAMMARS = "streamserve.text.grammars.grammar:compiler_for"


class Started(NamedTuple):
    """Engine processes that were started: on which model, and under a configuration that names its local path.

    config     of the first; the others' differ in `replica`
    processes  one for each replica, by number
    """

    checkpoint: Checkpoint
    config: EngineConfig
    processes: list[EngineProcess]


class EngineStart:
    """Finds the model and starts an engine process on it for each replica, beginning at once.

    executor, compile_constraint  as in `engine.process.launch.Launch`
    """

    def __init__(self, config: EngineConfig, *, executor: str = EXECUTOR, compile_constraint: str | None = GRAMMARS) -> None:
        self._config = config
        self._executor = executor
        self._compile_constraint = compile_constraint
        self._lock = threading.Lock()
        self._folder: OwnedFolder | None = None
        self._processes: list[EngineProcess] = []
        self._is_stopped = False
        self._outcome: Future[Started] = Future()
        # A daemon: a program that exits early must not wait for a download.
        threading.Thread(target=self._run, name="streamserve-start", daemon=True).start()

    def result(self) -> Started:
        """Block until the processes have been started; raises what prevented that: `ConfigError` for want of a model."""
        return self._outcome.result()

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop what was started, by force after `timeout_s`, and start nothing any more. Blocks; idempotent."""
        with self._lock:
            self._is_stopped = True
            processes, self._processes = self._processes, []
            folder, self._folder = self._folder, None
        # First all of them, then each: they end at the same time.
        for process in processes:
            process.request_end()
        deadline = monotonic() + timeout_s
        for process in processes:
            process.stop(max(0.0, deadline - monotonic()))
        if folder is not None:
            folder.remove()

    def _run(self) -> None:
        try:
            self._outcome.set_result(self._start())
        except BaseException as error:
            self._outcome.set_exception(error)

    def _start(self) -> Started:
        checkpoint = checkpoint_of(self._config)
        config = replace(self._config, model=str(checkpoint.path))
        with self._lock:
            if self._is_stopped:
                raise EngineDead("the engine was stopped before it had started")
            self._folder = OwnedFolder()
            self._processes = [self._process(config, checkpoint, replica) for replica in range(config.data_parallel_size)]
            for process in self._processes:
                process.start()
            return Started(checkpoint, config, list(self._processes))

    def _process(self, config: EngineConfig, checkpoint: Checkpoint, replica: int) -> EngineProcess:
        assert self._folder is not None
        return EngineProcess(
            replace(config, replica=replica),
            checkpoint,
            executor=self._executor,
            compile_constraint=self._compile_constraint,
            folder=self._folder,
        )
