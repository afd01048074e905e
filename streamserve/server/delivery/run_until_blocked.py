"""Run an awaitable from a callback until it first waits.

An ASGI `send` waits only while its client does not read. Started from a callback, an event then costs neither a future nor a
turn of a task; when it does wait, a task takes over the rest. (Python 3.12's eager tasks do the same with a task per call.)
"""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from typing import Any


def run_until_blocked(awaitable: Awaitable[None]) -> Rest | None:
    """Run until the end, giving None, or until it first waits, giving what remains to be awaited. Raises what it raises."""
    steps = awaitable.__await__()
    try:
        waits_for = steps.send(None)
    except StopIteration:
        return None
    return Rest(steps, waits_for)


class Rest:
    """Something awaitable that has begun, to be awaited once, by any task of its loop."""

    def __init__(self, steps: Generator[Any, Any, None], waits_for: Any) -> None:
        self._steps = steps
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        while True:
            thrown: BaseException | None = None
            try:
                yield self._waits_for
            except BaseException as error:
                # A cancellation belongs inside, where it was waited.
                thrown = error
            try:
                self._waits_for = self._steps.send(None) if thrown is None else self._steps.throw(thrown)
            except StopIteration:
                return
