"""What API workers ask each other."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from streamserve.server.control import Control, Drain, Ready

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def connected(one: Control, other: Control) -> AsyncIterator[socket.socket]:
    """Two ends of a pair, running; yields the socket of the second."""
    ours, theirs = socket.socketpair()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.run, ours)
        tasks.start_soon(other.run, theirs)
        yield theirs
        tasks.cancel_scope.cancel()


async def never(request_id: str) -> bool:
    return False


async def test_a_request_is_cancelled_where_it_is_answered() -> None:
    asked: list[str] = []

    async def cancel(request_id: str) -> bool:
        asked.append(request_id)
        return request_id == "there"

    here, there = Control(cancel=never), Control(cancel=cancel)
    async with connected(here, there):
        assert await here.cancel("there")
        assert not await here.cancel("nowhere")
    assert asked == ["there", "nowhere"]


async def test_ends_tell_of_readiness_and_draining() -> None:
    ready, drained = anyio.Event(), anyio.Event()
    here = Control(cancel=never, on_ready=ready.set)
    there = Control(cancel=never, on_drain=drained.set)
    async with connected(here, there):
        there.tell(Ready())
        here.tell(Drain())
        with anyio.fail_after(5):
            await ready.wait()
            await drained.wait()


async def test_two_workers_may_ask_for_each_other_at_once_through_a_third() -> None:
    """Each asks the middle one, which asks the other, which is asking itself."""
    gate = anyio.Event()

    async def found_later(request_id: str) -> bool:
        await gate.wait()
        return True

    left, right = Control(cancel=found_later), Control(cancel=found_later)

    async def ask_right(request_id: str) -> bool:
        return await to_right.cancel(request_id)

    async def ask_left(request_id: str) -> bool:
        return await to_left.cancel(request_id)

    to_left, to_right = Control(cancel=ask_right), Control(cancel=ask_left)
    found: list[bool] = []

    async def ask(worker: Control) -> None:
        found.append(await worker.cancel("one"))

    async with connected(to_left, left), connected(to_right, right):
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask, left)
                tasks.start_soon(ask, right)
                await anyio.wait_all_tasks_blocked()
                gate.set()
    assert found == [True, True]


async def test_an_end_that_goes_leaves_no_question_open() -> None:
    async def hang(request_id: str) -> bool:
        await anyio.sleep_forever()
        return True

    here, there = Control(cancel=never), Control(cancel=hang)
    found: list[bool] = []

    async def ask() -> None:
        found.append(await here.cancel("one"))

    async with connected(here, there) as end, anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        end.shutdown(socket.SHUT_RDWR)
    assert found == [False]
    assert not await here.cancel("two")
