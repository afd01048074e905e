"""The start of an engine process on a thread of its own, so that it loads while its API side still imports what it needs.

Made before anything slow is imported; `result` then waits for the outcome. Finding a model may take a download.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import NamedTuple

from streamserve.checkpoint.files import Checkpoint
from streamserve.checkpoint.names import checkpoint_of
from streamserve.config import EngineConfig, replace
from streamserve.engine.process.launch import EXECUTOR, EngineProcess
from streamserve.errors import EngineDead

GRAMMARS = "streamserve.text.grammars.grammar:compiler_for"


class Started(NamedTuple):
    """An engine process that was started: on which model, under a configuration that names its local path."""

    checkpoint: Checkpoint
    config: EngineConfig
    process: EngineProcess


class EngineStart:
    """Finds the model and starts an engine process on it, beginning at once.

    executor, compile_constraint  as in `engine.process.launch.Launch`
    """

    def __init__(self, config: EngineConfig, *, executor: str = EXECUTOR, compile_constraint: str | None = GRAMMARS) -> None:
        self._config = config
        self._executor = executor
        self._compile_constraint = compile_constraint
        self._lock = threading.Lock()
        self._process: EngineProcess | None = None
        self._is_stopped = False
        self._outcome: Future[Started] = Future()
        # A daemon: a program that exits early must not wait for a download.
        threading.Thread(target=self._run, name="streamserve-start", daemon=True).start()

    def result(self) -> Started:
        """Block until the process has been started; raises what prevented that, a `ConfigError` when there is no such model."""
        return self._outcome.result()

    def stop(self) -> None:
        """Stop what was started, and start nothing any more. Blocks; idempotent."""
        with self._lock:
            self._is_stopped = True
            process, self._process = self._process, None
        if process is not None:
            process.stop()

    def _run(self) -> None:
        try:
            self._outcome.set_result(self._start())
        except BaseException as error:
            self._outcome.set_exception(error)

    def _start(self) -> Started:
        checkpoint = checkpoint_of(self._config)
        config = replace(self._config, model=str(checkpoint.path))
        process = EngineProcess(config, checkpoint, executor=self._executor, compile_constraint=self._compile_constraint)
        with self._lock:
            if self._is_stopped:
                raise EngineDead("the engine was stopped before it had started")
            process.start()
            self._process = process
        return Started(checkpoint, config, process)
