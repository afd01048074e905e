"""The library's engine: the step loop as a task of the caller's event loop, its one rank on
threads, or several in processes of their own.

For `AsyncEngine` and `LLM`, where no sockets compete for the interpreter; a server runs the engine in a process of its own
(`remote`). Streams are read on the same loop.
"""

from __future__ import annotations

import asyncio

import anyio

from streamserve.checkpoint.files import Checkpoint
from streamserve.config import EngineConfig
from streamserve.engine.base import SequenceStream
from streamserve.engine.constraints import CompileConstraint
from streamserve.engine.core import EngineCore
from streamserve.engine.stream import StreamLimits
from streamserve.engine.stream_table import StreamTable
from streamserve.errors import ConfigError, EngineDead, QueueFull
from streamserve.executor.base import Executor
from streamserve.executor.choose import executor_for
from streamserve.types import EngineInfo, EngineSnapshot, EngineStats, Quotas, SequenceSpec, Tenant


class InlineEngine:
    """An `Engine` in this process; `start` and everything after it belong to one event loop.

    executor            runs the steps; by default the one that the configuration chooses
    compile_constraint  compiles structured outputs off the loop; without it they are refused
    """

    def __init__(
        self,
        config: EngineConfig,
        checkpoint: Checkpoint,
        *,
        executor: Executor | None = None,
        compile_constraint: CompileConstraint | None = None,
        stream_limits: StreamLimits | None = None,
    ) -> None:
        require_one_engine(config)
        self._executor: Executor = executor or executor_for(config, checkpoint)
        self._core = EngineCore(config, self._executor, compile_constraint=compile_constraint)
        self._streams = StreamTable(self._core, stream_limits or StreamLimits(stall_timeout_s=config.stall_timeout_s))
        self._loop_task: asyncio.Task[None] | None = None

    @property
    def info(self) -> EngineInfo:
        return self._core.info

    async def start(self) -> EngineInfo:
        """Load the model and run the step loop; raises `ConfigError` when it can't start with these settings."""
        info = await self._core.start()
        self._loop_task = asyncio.create_task(self._core.run(), name="streamserve engine")
        return info

    async def open(self, specs: list[SequenceSpec]) -> list[SequenceStream]:
        """Admit sequences, all or none; see `Engine.open`."""
        constraints = await self._core.compile(specs)
        self._core.admit(specs, constraints, self._streams)
        return list(self._streams.add(specs))

    def refusal(self, tenant: Tenant) -> QueueFull | None:
        """None: here asking costs nothing."""
        return None

    def quotas(self, tenant: Tenant) -> Quotas | None:
        """What a tenant may still use in this minute; None where it has no limits."""
        return self._core.quotas(tenant)

    def abort(self, sequence_id: str) -> bool:
        """End a sequence with reason "abort", keeping what its reader has not read yet. False when unknown."""
        return self._streams.abort_stream(sequence_id)

    async def stats(self) -> EngineStats:
        return self._core.stats()

    async def snapshots(self) -> list[EngineSnapshot]:
        return [EngineSnapshot(self.info, None if self._core.failure is not None else self._core.stats())]

    async def stop(self) -> None:
        """End every stream with `EngineDead`, then free the ranks. Idempotent."""
        task, self._loop_task = self._loop_task, None
        with anyio.CancelScope(shield=True):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
            self._core.end(EngineDead("the engine was stopped"))
            await self._executor.stop()


def require_one_engine(config: EngineConfig) -> None:
    """Raise `ConfigError` when several engines are configured: only a server has a process for each."""
    if config.data_parallel_size > 1:
        raise ConfigError(
            f"--data-parallel-size {config.data_parallel_size}: a process has one engine, and only streamserve serve starts "
            "several: start a server, or a process for each share of the prompts"
        )
