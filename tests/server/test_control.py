"""What API workers ask each other."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from streamserve.server.siblings.control import Control, Drain, Question, Ready

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


async def never(question: Question, id: str) -> int | None:
    return None


async def test_the_other_side_says_who_has_what_is_asked_about() -> None:
    heard: list[tuple[Question, str]] = []

    async def asked(question: Question, id: str) -> int | None:
        heard.append((question, id))
        return 7 if id == "there" else None

    here, there = Control(asked=never), Control(asked=asked)
    async with connected(here, there):
        assert await here.ask("cancel", "there") == 7
        assert await here.ask("find", "nowhere") is None
    assert heard == [("cancel", "there"), ("find", "nowhere")]


async def test_ends_tell_of_readiness_and_draining() -> None:
    ready, drained = anyio.Event(), anyio.Event()
    here = Control(asked=never, on_ready=ready.set)
    there = Control(asked=never, on_drain=drained.set)
    async with connected(here, there):
        there.tell(Ready())
        here.tell(Drain())
        with anyio.fail_after(5):
            await ready.wait()
            await drained.wait()


async def test_two_workers_may_ask_for_each_other_at_once_through_a_third() -> None:
    """Each asks the middle one, which asks the other, which is asking itself."""
    gate = anyio.Event()

    async def found_later(question: Question, id: str) -> int | None:
        await gate.wait()
        return 1

    left, right = Control(asked=found_later), Control(asked=found_later)

    async def ask_right(question: Question, id: str) -> int | None:
        return await to_right.ask(question, id)

    async def ask_left(question: Question, id: str) -> int | None:
        return await to_left.ask(question, id)

    to_left, to_right = Control(asked=ask_right), Control(asked=ask_left)
    found: list[int | None] = []

    async def ask(worker: Control) -> None:
        found.append(await worker.ask("find", "one"))

    async with connected(to_left, left), connected(to_right, right):
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask, left)
                tasks.start_soon(ask, right)
                await anyio.wait_all_tasks_blocked()
                gate.set()
    assert found == [1, 1]


async def test_an_end_that_goes_leaves_no_question_open() -> None:
    async def hang(question: Question, id: str) -> int | None:
        await anyio.sleep_forever()
        return 1

    here, there = Control(asked=never), Control(asked=hang)
    found: list[int | None] = []

    async def ask() -> None:
        found.append(await here.ask("cancel", "one"))

    async with connected(here, there) as end, anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        end.shutdown(socket.SHUT_RDWR)
    assert found == [None]
    assert await here.ask("cancel", "two") is None
