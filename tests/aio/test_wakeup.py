"""The wakeup of one task."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from streamserve.aio.wakeup import Wakeup

pytestmark = pytest.mark.anyio


async def test_a_set_while_nobody_waits_ends_the_next_wait_and_only_that() -> None:
    wakeup = Wakeup()
    wakeup.set()
    wakeup.set()
    with anyio.fail_after(5):
        await wakeup.wait()
    with anyio.move_on_after(0) as second:
        await wakeup.wait()
    assert second.cancelled_caught


async def test_a_set_wakes_the_waiter() -> None:
    wakeup = Wakeup()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wakeup.wait)
            await anyio.wait_all_tasks_blocked()
            wakeup.set()


async def test_a_set_that_meets_a_cancelled_waiter_is_kept_for_the_next() -> None:
    wakeup = Wakeup()
    waiter = asyncio.create_task(wakeup.wait())
    await anyio.wait_all_tasks_blocked()
    wakeup.set()
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    with anyio.fail_after(5):
        await wakeup.wait()


async def test_a_second_waiter_is_refused() -> None:
    wakeup = Wakeup()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wakeup.wait)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError):
            await wakeup.wait()
        tasks.cancel_scope.cancel()
