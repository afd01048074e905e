"""Work on deep threads: few at a time, waited for no longer than agreed, and with room for recursion."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import anyio
import pytest

from streamserve.errors import QueueFull
from streamserve.text.grammars.deep_threads import DeepThreads

pytestmark = pytest.mark.anyio

STACK_BYTES = 64 << 20


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


def threads(timeout_s: float) -> DeepThreads:
    return DeepThreads(1, timeout_s=timeout_s, stack_bytes=STACK_BYTES)


async def test_what_work_returns_or_raises_comes_back() -> None:
    deep, before = threads(10), threading.stack_size()
    assert await deep.run(lambda: 7) == 7
    with pytest.raises(ValueError, match="invalid literal"):
        await deep.run(lambda: int("a"))
    assert threading.stack_size() == before


async def test_work_that_takes_too_long_keeps_its_place_until_it_ends(gate: threading.Event) -> None:
    deep = threads(0.05)
    with pytest.raises(TimeoutError):
        await deep.run(gate.wait)
    with pytest.raises(QueueFull):
        await deep.run(lambda: 7)
    gate.set()
    await anyio.to_thread.run_sync(_join_deep_threads)
    assert await deep.run(lambda: 7) == 7


async def test_a_caller_that_leaves_does_not_free_the_place_of_its_work(gate: threading.Event) -> None:
    deep, started = threads(10), threading.Event()

    def long_work() -> None:
        started.set()
        gate.wait()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(deep.run, long_work)
        await anyio.to_thread.run_sync(started.wait)
        tasks.cancel_scope.cancel()
    results: list[int] = []

    async def next_one() -> None:
        results.append(await deep.run(lambda: 7))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(next_one)
        await anyio.wait_all_tasks_blocked()
        assert results == []
        gate.set()
    assert results == [7]


async def test_a_caller_that_leaves_the_queue_leaves_no_gap(gate: threading.Event) -> None:
    deep = threads(10)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(deep.run, gate.wait)
        async with anyio.create_task_group() as waiting:
            waiting.start_soon(deep.run, lambda: 7)
            await anyio.wait_all_tasks_blocked()
            waiting.cancel_scope.cancel()
        gate.set()
    assert await deep.run(lambda: 8) == 8


def _join_deep_threads() -> None:
    for thread in threading.enumerate():
        if thread.name == "deep":
            thread.join()
