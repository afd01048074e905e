"""Several ranks of one model in this process, a thread each, that exchange over gloo as those of several processes do."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

import torch
import torch.distributed as dist

from streamserve.checkpoint.names import resolve
from streamserve.config import EngineConfig
from streamserve.scheduling.plan import Plan, StepResult
from streamserve.types import EngineInfo
from streamserve.worker.communication.base import RankGroup
from streamserve.worker.communication.gloo import GlooGroup
from streamserve.worker.device.base import Device
from streamserve.worker.runner import Runner

T = TypeVar("T")


class RankThreads:
    """As a `Runner`, of as many ranks; every step fails unless all of them sampled the same."""

    def __init__(self, config: EngineConfig, world_size: int) -> None:
        store, checkpoint = dist.HashStore(), resolve(config.model)

        def join_as(rank: int) -> Callable[[Device], RankGroup]:
            return lambda device: GlooGroup(store, rank, world_size)

        self.runners = [Runner(config, checkpoint, join=join_as(rank)) for rank in range(world_size)]
        self._threads = [ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) for _ in self.runners]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for thread in self._threads:
            thread.shutdown()

    def load(self) -> EngineInfo:
        return self._together(lambda runner: runner.load())[0].result()

    def step(self, plan: Plan) -> PendingOnAll:
        return PendingOnAll(self._together(lambda runner: runner.step(plan).wait()))

    def _together(self, call: Callable[[Runner], T]) -> list[Future[T]]:
        return [thread.submit(call, runner) for thread, runner in zip(self._threads, self.runners, strict=True)]


class PendingOnAll:
    """A step in flight on every rank."""

    def __init__(self, results: list[Future[StepResult]]) -> None:
        self._results = results

    def wait(self) -> StepResult:
        results = [result.result() for result in self._results]
        assert all(result == results[0] for result in results), f"ranks sampled differently: {results}"
        return results[0]
