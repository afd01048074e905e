"""Calls over a connection: each gets its own result, and none waits for a connection that has ended."""

from __future__ import annotations

import anyio
import pytest

from streamserve.aio.calls import PendingCalls

pytestmark = pytest.mark.anyio


class Peer:
    """Makes calls, and keeps their numbers and outcomes."""

    def __init__(self) -> None:
        self.calls: PendingCalls[str] = PendingCalls()
        self.numbers: list[int] = []
        self.outcomes: list[str] = []

    async def call(self) -> None:
        try:
            self.outcomes.append(await self.calls.call(self.numbers.append))
        except ConnectionError as error:
            self.outcomes.append(repr(error))


async def test_results_find_their_calls_in_any_order() -> None:
    peer = Peer()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(peer.call)
            await anyio.wait_all_tasks_blocked()
            first, second, third = peer.numbers
            peer.calls.complete(third, "third")
            peer.calls.fail(second, ConnectionError("second"))
            await anyio.wait_all_tasks_blocked()
            peer.calls.complete(first, "first")
    assert peer.outcomes == ["third", "ConnectionError('second')", "first"]


async def test_what_ends_the_connection_ends_pending_and_later_calls_until_it_is_there_again() -> None:
    peer = Peer()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(peer.call)
            await anyio.wait_all_tasks_blocked()
            peer.calls.close(ConnectionError("gone"))
            peer.calls.close(ConnectionError("gone again"))
        await peer.call()
        assert peer.calls.is_closed
        assert len(peer.numbers) == 1, "a call after the end must not be sent"
        peer.calls.reopen()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(peer.call)
            await anyio.wait_all_tasks_blocked()
            peer.calls.complete(peer.numbers[-1], "back")
    assert peer.outcomes == ["ConnectionError('gone')", "ConnectionError('gone')", "back"]


async def test_results_of_calls_that_were_cancelled_or_never_made_are_ignored() -> None:
    peer = Peer()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(peer.call)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    peer.calls.complete(peer.numbers[0], "late")
    peer.calls.fail(99, ConnectionError("never"))
    peer.calls.close(ConnectionError("gone"))
    assert peer.outcomes == []


async def test_what_can_not_be_sent_raises_and_leaves_nothing_pending() -> None:
    calls: PendingCalls[str] = PendingCalls()

    def send(number: int) -> None:
        raise ConnectionError("not connected")

    with pytest.raises(ConnectionError, match="not connected"):
        await calls.call(send)
    calls.close(ConnectionError("gone"))
