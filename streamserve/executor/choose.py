"""Which executor runs a configuration."""

from __future__ import annotations

from streamserve.checkpoint.files import Checkpoint
from streamserve.config import EngineConfig
from streamserve.executor.base import Executor
from streamserve.executor.group import GroupExecutor
from streamserve.executor.launchers.mp import ProcessLauncher
from streamserve.executor.local import LocalExecutor


def executor_for(config: EngineConfig, checkpoint: Checkpoint) -> Executor:
    """The executor of `config.executor_backend`; `engine.process` and the library's engine take this one."""
    match config.executor_backend:
        case "uni":
            return LocalExecutor(config, checkpoint)
        case "mp":
            return GroupExecutor(ProcessLauncher(config, checkpoint))
        case "ray":
            # Here and not at the top: few engines need it.
            from streamserve.executor.launchers.ray import RayLauncher

            return GroupExecutor(RayLauncher(config, checkpoint))
