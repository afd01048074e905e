"""The interface of what runs an engine's steps.

Lives on the engine's event loop. `submit` never blocks: steps run in the order submitted, on ranks of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from streamserve.errors import EngineDead
from streamserve.scheduling.plan import Plan, StepResult
from streamserve.types import EngineInfo


class StepHandle(Protocol):
    """A step in flight."""

    async def result(self) -> StepResult:
        """Wait for the step; raises what the rank raised. Await it once."""
        ...


OnLost = Callable[[EngineDead], None]
"""Receives why the ranks of an engine have ended."""


def ignore_loss(reason: EngineDead) -> None:
    """Wait for the next step to fail."""


class Executor(Protocol):
    """The ranks of one engine."""

    async def start(self, on_lost: OnLost = ignore_loss) -> EngineInfo:
        """Load the model, size the KV cache; raises `ConfigError` when it can't start with these settings.

        on_lost  called on this loop when ranks end by themselves, even while they run no step: later ones can only fail
        """
        ...

    def submit(self, plan: Plan) -> StepHandle:
        """Queue a step behind those already submitted."""
        ...

    async def stop(self) -> None:
        """End the ranks and free everything; steps that still run are finished or fail.

        Safe to call twice and before `start`.
        """
        ...
