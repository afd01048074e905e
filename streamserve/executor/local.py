"""The one rank of a single-device engine, on threads of this process.

The launch thread owns the device: it imports torch, loads the model and launches steps in the order submitted. The wait thread
blocks on launched steps and hands their results to the event loop. On a GPU the two overlap; on a CPU launching is computing.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeVar

import msgspec

from streamserve.checkpoint.files import Checkpoint
from streamserve.config import EngineConfig
from streamserve.errors import EngineDead
from streamserve.executor.base import OnLost, StepHandle, ignore_loss
from streamserve.executor.handles import FutureStep, quiet_future
from streamserve.scheduling.plan import Plan, StepResult
from streamserve.types import EngineInfo

if TYPE_CHECKING:
    from streamserve.worker.divided_steps import Pending
    from streamserve.worker.runner import Runner

T = TypeVar("T")


class LocalExecutor:
    """Runs one rank; satisfies `executor.base.Executor`. Use it on one event loop."""

    def __init__(self, config: EngineConfig, checkpoint: Checkpoint) -> None:
        self._config = config
        self._checkpoint = checkpoint
        self._rank: _Rank | None = None

    async def start(self, on_lost: OnLost = ignore_loss) -> EngineInfo:
        """As `Executor.start`; a rank of this process ends in a step if at all, which fails, and so is never lost otherwise."""
        if self._rank is not None:
            raise RuntimeError("an executor starts once")
        self._rank = _Rank(self._config, self._checkpoint, asyncio.get_running_loop())
        return await asyncio.shield(self._rank.info)

    def submit(self, plan: Plan) -> StepHandle:
        if self._rank is None:
            raise RuntimeError("start the executor before submitting steps")
        return self._rank.submit(plan)

    async def stop(self) -> None:
        if self._rank is not None:
            await self._rank.stop()


class _Rank:
    """The two threads, and the queues between them and the event loop.

    info   resolves when the rank has loaded
    """

    def __init__(self, config: EngineConfig, checkpoint: Checkpoint, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._failure: EngineDead | None = None
        self._plans: SimpleQueue[tuple[Plan, asyncio.Future[StepResult]] | None] = SimpleQueue()
        self._launched: SimpleQueue[tuple[Pending, asyncio.Future[StepResult]] | None] = SimpleQueue()
        self.info: asyncio.Future[EngineInfo] = quiet_future(loop)
        self._ended: asyncio.Future[None] = quiet_future(loop)
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._launch_steps, args=(config, checkpoint), name="streamserve-launch", daemon=True),
            threading.Thread(target=self._await_steps, name="streamserve-wait", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    # On the event loop.

    def submit(self, plan: Plan) -> FutureStep:
        future: asyncio.Future[StepResult] = quiet_future(self._loop)
        if self._stopping:
            future.set_exception(EngineDead("the engine was stopped"))
        else:
            self._plans.put((plan, future))
        return FutureStep(future)

    async def stop(self) -> None:
        """Run what was submitted, then end both threads."""
        if not self._stopping:
            self._stopping = True
            self._plans.put(None)
        await asyncio.shield(self._ended)
        for thread in self._threads:
            thread.join()

    # On the launch thread.

    def _launch_steps(self, config: EngineConfig, checkpoint: Checkpoint) -> None:
        runner = self._load(config, checkpoint)
        while (submitted := self._plans.get()) is not None:
            plan, future = submitted
            if runner is None or self._failure is not None:
                self._fail(future, self._failure or EngineDead("the engine did not start"))
                continue
            try:
                self._launched.put((runner.step(plan), future))
            except Exception as error:
                self._break(future, plan.step, error)
        self._launched.put(None)

    def _load(self, config: EngineConfig, checkpoint: Checkpoint) -> Runner | None:
        try:
            began = time.perf_counter()
            # Here and not at the top: torch takes seconds to import, and only ranks need it.
            from streamserve.worker.startup.triton_cache import TritonCache

            with TritonCache(config, checkpoint) as triton_cache:
                triton_cache.start()
                from streamserve.worker.runner import Runner

                imports_s = time.perf_counter() - began
                runner = Runner(config, checkpoint, triton_cache, device_index=config.device_index(0))
                info = runner.load()
        except Exception as error:
            self._fail(self.info, error)
            return None
        self._resolve(self.info, msgspec.structs.replace(info, startup_s={"imports": imports_s} | info.startup_s))
        return runner

    # On the wait thread.

    def _await_steps(self) -> None:
        while (launched := self._launched.get()) is not None:
            pending, future = launched
            try:
                self._resolve(future, pending.wait())
            except Exception as error:
                self._break(future, pending.step, error)
        self._resolve(self._ended, None)

    # On either.

    def _break(self, future: asyncio.Future[StepResult], step: int, error: Exception) -> None:
        """A step failed, and with it the rank: its device may be in any state, so no later step is launched."""
        self._failure = EngineDead(f"step {step} failed on the device: {error}")
        self._fail(future, error)

    def _resolve(self, future: asyncio.Future[T], value: T) -> None:
        self._on_loop(future, lambda: future.set_result(value))

    def _fail(self, future: asyncio.Future[T], error: Exception) -> None:
        self._on_loop(future, lambda: future.set_exception(error))

    def _on_loop(self, future: asyncio.Future[T], settle: Callable[[], None]) -> None:
        def unless_cancelled() -> None:
            if not future.done():
                settle()

        # Nothing awaits a future of a closed loop.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(unless_cancelled)
