"""The control connection between API workers."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread
import pytest

from streamserve.errors import Unavailable
from streamserve.server.http.access.owned_id import OwnedId
from streamserve.server.siblings.control import Control, Drain, Method, WorkerReady
from streamserve.server.siblings.siblings import Siblings

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


def id_of(id: str) -> OwnedId:
    return OwnedId("somebody", id)


async def never(method: Method, id: OwnedId) -> int | None:
    return None


async def test_a_call_returns_the_worker_that_has_the_request() -> None:
    heard: list[tuple[Method, OwnedId]] = []

    async def on_call(method: Method, id: OwnedId) -> int | None:
        heard.append((method, id))
        return 7 if id.id == "there" else None

    here, there = Control(on_call=never), Control(on_call=on_call)
    async with connected(here, there):
        assert await here.call("cancel", id_of("there")) == 7
        assert await here.call("find", id_of("nowhere")) is None
    assert heard == [("cancel", id_of("there")), ("find", id_of("nowhere"))]


async def test_ends_report_readiness_and_draining() -> None:
    ready, drained = anyio.Event(), anyio.Event()
    here = Control(on_call=never, on_ready=ready.set)
    there = Control(on_call=never, on_drain=drained.set)
    async with connected(here, there):
        there.send(WorkerReady())
        here.send(Drain())
        with anyio.fail_after(5):
            await ready.wait()
            await drained.wait()


async def test_two_workers_may_call_each_other_at_once_through_a_third() -> None:
    """Each calls the middle one, which calls the other, which is calling itself."""
    gate = anyio.Event()

    async def found_later(method: Method, id: OwnedId) -> int | None:
        await gate.wait()
        return 1

    left, right = Control(on_call=found_later), Control(on_call=found_later)

    async def call_right(method: Method, id: OwnedId) -> int | None:
        return await to_right.call(method, id)

    async def call_left(method: Method, id: OwnedId) -> int | None:
        return await to_left.call(method, id)

    to_left, to_right = Control(on_call=call_right), Control(on_call=call_left)
    found: list[int | None] = []

    async def call(worker: Control) -> None:
        found.append(await worker.call("find", id_of("one")))

    async with connected(to_left, left), connected(to_right, right):
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call, left)
                tasks.start_soon(call, right)
                await anyio.wait_all_tasks_blocked()
                gate.set()
    assert found == [1, 1]


async def test_an_end_that_goes_leaves_no_call_open() -> None:
    async def hang(method: Method, id: OwnedId) -> int | None:
        await anyio.sleep_forever()
        return 1

    here, there = Control(on_call=never), Control(on_call=hang)
    found: list[int | None] = []

    async def call() -> None:
        found.append(await here.call("cancel", id_of("one")))

    async with connected(here, there) as end, anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await anyio.wait_all_tasks_blocked()
        end.shutdown(socket.SHUT_RDWR)
    assert found == [None]
    assert await here.call("cancel", id_of("two")) is None


@pytest.mark.parametrize(
    "line",
    [b"x" * (1 << 20), b"not JSON", b'{"type": "zork"}', b'{"type": "call"}', b"\xff\xfe", b""],
    ids=lambda line: line[:9],
)
async def test_no_line_ends_a_control_connection(line: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def on_call(method: Method, id: OwnedId) -> int | None:
        return 1

    ours, theirs = socket.socketpair()
    here, there = Control(on_call=never), Control(on_call=on_call)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(there.run, theirs)
        await anyio.to_thread.run_sync(ours.sendall, line + b"\n")
        tasks.start_soon(here.run, ours)
        with anyio.fail_after(5):
            assert await here.call("find", id_of("one")) == 1
        tasks.cancel_scope.cancel()
    assert "skipped what is no message" in caplog.text


async def test_a_call_that_fails_costs_its_caller_alone() -> None:

    async def on_call(method: Method, id: OwnedId) -> int | None:
        if id.id == "bad":
            raise RuntimeError("on purpose")
        return 1

    here, there = Control(on_call=never, call_timeout_s=0.1), Control(on_call=on_call)
    async with connected(here, there):
        with pytest.raises(TimeoutError):
            await here.call("find", id_of("bad"))
        assert await here.call("find", id_of("good")) == 1


async def test_a_call_of_a_process_that_is_stopped_ends() -> None:
    """An API worker stopped by SIGSTOP left every question about an unknown response without an answer, for ever."""
    ours, theirs = socket.socketpair()
    here = Control(on_call=never, call_timeout_s=0.1)
    with theirs:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(here.run, ours)
            with pytest.raises(TimeoutError):
                await here.call("find", id_of("one"))
            with pytest.raises(Unavailable):
                await Siblings(here.call, str).find(id_of("one"))
            tasks.cancel_scope.cancel()
