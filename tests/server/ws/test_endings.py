"""Every stream of a socket has exactly one ending, whatever ends it."""

from __future__ import annotations

import json
from time import monotonic
from typing import Any, cast

import anyio
import pytest
from litestar.types import Scope

from streamserve.errors import QueueFull
from streamserve.server.open_sockets import DRAINING, LONGEST_LEAVE_S, RESTARTING, Leave
from streamserve.server.ws.socket import StreamSocket
from tests.server.ws.session import TERMINAL, Session, numbers, session
from tests.support.live_server import live_server
from tests.support.scripted_engine import ScriptedEngine

pytestmark = pytest.mark.anyio


def endings(client: Session, stream_id: str) -> list[str]:
    return [event["type"] for event in client.of(stream_id) if event["type"] in TERMINAL]


async def test_an_engine_that_dies_ends_every_stream_then_the_socket_closes_with_1011() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server, session(server.port) as client:
        await client.chat("a")
        [first] = await engine.sequences(1)
        await client.chat("b")
        await engine.sequences(2)
        engine.say(first, "part")
        await client.chunk("a", "part")
        engine.die()
        for name in "ab":
            if not endings(client, name):
                await client.ending(name)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.service.die, 5.0)
            assert await client.closed() == 1011
        for name in "ab":
            assert endings(client, name) == ["error"]
            error = client.of(name)[-1]
            assert (error["status"], error["error"]["code"]) == (503, "engine_dead")
            assert numbers(client.of(name)) == list(range(len(client.of(name))))


async def test_a_drain_lets_streams_finish_then_closes_with_1001() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server, session(server.port) as busy, session(server.port) as idle:
        await busy.chat("s")
        [sequence] = await engine.sequences()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.service.drain, 5.0)
            assert await idle.closed() == 1001
            await busy.chat("late")
            assert (await busy.ending("late"))["status"] == 503
            engine.say(sequence, "whole")
            engine.finish(sequence)
            assert (await busy.ending("s"))["status"] == "completed"
            assert await busy.closed() == 1001
        assert busy.text("s") == "whole"


async def test_a_socket_that_opens_while_the_server_drains_is_closed_with_1001() -> None:
    async with live_server(ScriptedEngine()) as server:
        # Its upgrade was let through just before the phase changed.
        server.service.sockets.leave(DRAINING)
        async with session(server.port) as client:
            assert await client.closed() == 1001
        await server.service.sockets.wait_idle()


async def test_sockets_of_a_worker_that_is_replaced_are_served_until_they_are_silent() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server, session(server.port) as early:
        server.service.sockets.leave(RESTARTING, quiet_s=10.0)
        # One whose upgrade came just before another worker took over, too.
        async with session(server.port) as late:
            for number, client in enumerate([early, late, early, late], start=1):
                await client.chat("s")
                engine.finish((await engine.sequences(number))[-1])
                assert (await client.ending("s"))["status"] == "completed"
            server.service.sockets.leave(RESTARTING)
            assert [await client.closed() for client in (early, late)] == [1001, 1001]


def test_a_socket_that_must_go_is_closed_after_a_silence_or_between_two_streams_in_the_end() -> None:
    leave = Leave(RESTARTING, since=100.0, quiet_s=1.0)
    assert leave.due_at(quiet_since=40.0, opened_at=10.0) == 41.0
    assert leave.due_at(quiet_since=100.5, opened_at=10.0) == 101.5
    assert leave.due_at(quiet_since=500.0, opened_at=10.0) == 100.0 + LONGEST_LEAVE_S
    # A worker that was replaced may accept for another that has ended.
    assert leave.due_at(quiet_since=500.0, opened_at=500.0) == 501.0


async def test_a_message_that_is_being_read_when_its_socket_must_go_is_answered_before_the_close() -> None:
    # Large: it is parsed on a thread, while the loop goes on.
    messages = [json.dumps({"type": "ping", "id": "x" * 100_000})]
    sent: list[Any] = []

    async def receive() -> Any:
        if not messages:
            await anyio.sleep_forever()
        socket.leave(Leave(RESTARTING, since=monotonic()))
        return {"type": "websocket.receive", "text": messages.pop(), "bytes": None}

    async def send(event: Any) -> None:
        sent.append(event)

    async with live_server(ScriptedEngine()) as server:
        socket = StreamSocket(server.service, {}, cast(Scope, {}), receive, send)
        with anyio.fail_after(10):
            await socket.run()
    assert [event["type"] for event in sent] == ["websocket.send", "websocket.close"]
    assert json.loads(sent[0]["text"])["type"] == "pong"


async def test_a_drain_that_takes_too_long_ends_streams_with_an_error_before_1001() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server, session(server.port) as client:
        await client.chat("s")
        [sequence] = await engine.sequences()
        engine.say(sequence, "part")
        await client.chunk("s", "part")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.service.drain, 0.05)
            ending = await client.ending("s")
            assert (ending["type"], ending["status"], ending["error"]["code"]) == ("error", 503, "unavailable")
            assert await client.closed() == 1001
        assert engine.aborted == [sequence]
        assert endings(client, "s") == ["error"]


async def test_a_drain_does_not_wait_for_readers_who_may_not_come_back() -> None:
    engine = ScriptedEngine()
    async with live_server(engine, resume_s=60.0) as server:
        async with session(server.port) as client:
            await client.chat("s", resumable=True)
            [sequence] = await engine.sequences()
        await server.service.sockets.wait_idle()
        with anyio.fail_after(5):
            await server.service.drain(60.0)
        assert engine.aborted == [sequence]


async def test_a_stream_that_fails_keeps_what_it_has_said_and_the_others_go_on() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server, session(server.port) as client:
        await client.chat("bad")
        [bad] = await engine.sequences(1)
        await client.chat("good")
        [_, good] = await engine.sequences(2)
        engine.say(bad, "part")
        engine.fail(bad, "slow_consumer", "the reader took nothing")
        ending = await client.ending("bad")
        assert (ending["type"], ending["error"]["code"]) == ("error", "slow_consumer")
        assert client.text("bad") == "part"
        engine.finish(good)
        assert (await client.ending("good"))["status"] == "completed"


async def test_a_full_queue_refuses_the_stream_and_not_the_socket() -> None:
    engine = ScriptedEngine()
    engine.refuse = QueueFull("too many requests wait")
    async with live_server(engine) as server, session(server.port) as client:
        await client.chat("s")
        ending = await client.ending("s")
        assert (ending["status"], ending["error"]["code"]) == (429, "queue_full")
        metrics = server.service.metrics
        assert metrics.rejected.totals(metrics.memory)["queue_full"] == 1
        assert not any(metrics.disconnects.totals(metrics.memory).values())
        engine.refuse = None
        await client.chat("s")
        [sequence] = await engine.sequences()
        engine.finish(sequence)
        assert (await client.ending("s"))["status"] == "completed"
