"""Futures of the event loop for what ranks produce."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TypeVar

from streamserve.scheduling.plan import StepResult

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FutureStep:
    """A step in flight; satisfies `executor.base.StepHandle`."""

    future: asyncio.Future[StepResult]

    async def result(self) -> StepResult:
        return await self.future


def quiet_future(loop: asyncio.AbstractEventLoop) -> asyncio.Future[T]:
    """A future whose failure nobody needs to see: an engine may stop before it awaits a step."""
    future: asyncio.Future[T] = loop.create_future()
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future
