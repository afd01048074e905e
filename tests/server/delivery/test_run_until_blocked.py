"""A send that is started from a callback behaves as one that is awaited."""

from __future__ import annotations

import asyncio

import pytest

from streamserve.server.delivery.run_until_blocked import run_until_blocked

pytestmark = pytest.mark.anyio


async def test_what_does_not_wait_runs_to_its_end_at_once() -> None:
    steps: list[str] = []

    async def send() -> None:
        steps.append("sent")

    assert run_until_blocked(send()) is None
    assert steps == ["sent"]


async def test_what_waits_goes_on_where_it_is_awaited() -> None:
    gate, steps = asyncio.Event(), []

    async def send() -> None:
        for _ in range(2):
            await gate.wait()
            await asyncio.sleep(0)
            steps.append("sent")

    rest = run_until_blocked(send())
    assert rest is not None
    task = asyncio.create_task(asyncio.wait_for(rest, 5))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    assert steps == []
    gate.set()
    await task
    assert steps == ["sent", "sent"]


async def test_its_errors_are_raised_where_it_is() -> None:
    gate = asyncio.Event()

    async def fail_at_once() -> None:
        raise OSError("at once")

    async def fail_later() -> None:
        await gate.wait()
        raise OSError("later")

    with pytest.raises(OSError, match="at once"):
        run_until_blocked(fail_at_once())
    rest = run_until_blocked(fail_later())
    assert rest is not None
    gate.set()
    with pytest.raises(OSError, match="later"):
        await rest


async def test_a_cancellation_reaches_the_place_that_waits() -> None:
    seen: list[str] = []

    async def send() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("inside")
            raise

    rest = run_until_blocked(send())
    assert rest is not None

    async def wait() -> None:
        await rest

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["inside"]
