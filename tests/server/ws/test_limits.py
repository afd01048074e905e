"""What a socket may not do, and the code it is closed with."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.ws.session import session
from tests.support.live_server import live_server
from tests.support.scripted_engine import ScriptedEngine

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"\x00binary", 1003),
        ("not json", 4400),
        ("[1, 2]", 4400),
        ("null", 4400),
        ('{"type": "ping"', 4400),
        ("[" * 100_000, 4400),
        ("x" * 3000, 1009),
    ],
    ids=lambda value: repr(value)[:16],
)
async def test_what_is_no_message_closes_the_socket_with_its_code(message: str | bytes, code: int) -> None:
    limit = 200_000 if len(message) > 10_000 else 2000
    async with live_server(ScriptedEngine(), max_body_bytes=limit) as server, session(server.port) as client:
        await client.connection.send(message)
        assert await client.closed() == code


async def test_text_that_is_not_utf8_closes_with_1007() -> None:
    async with live_server(ScriptedEngine()) as server, session(server.port) as client:
        await client.connection.send(b"\xff\xfe", text=True)
        assert await client.closed() == 1007


@pytest.mark.parametrize("limit", [{"socket_age_s": 0.1}, {"socket_idle_s": 0.1}], ids=["age", "idle"])
async def test_a_socket_too_old_or_idle_is_closed_with_4408(limit: dict[str, Any]) -> None:
    async with live_server(ScriptedEngine(), **limit) as server, session(server.port) as client:
        assert await client.closed() == 4408


async def test_a_socket_that_streams_is_not_idle() -> None:
    engine = ScriptedEngine()
    async with live_server(engine, socket_idle_s=0.1) as server, session(server.port) as client:
        await client.chat("s")
        [sequence] = await engine.sequences()
        async with session(server.port) as other:
            assert await other.closed() == 4408
        engine.finish(sequence)
        await client.ending("s")
        assert await client.closed() == 4408


async def test_one_stream_too_many_is_refused_and_the_rest_go_on() -> None:
    engine = ScriptedEngine()
    async with live_server(engine, max_streams_per_socket=2) as server, session(server.port) as client:
        for name in "abc":
            await client.chat(name)
        refused = await client.ending("c")
        assert (refused["status"], refused["error"]["code"]) == (429, "too_many_streams")
        for sequence in await engine.sequences(2):
            engine.finish(sequence)
        for name in "ab":
            if not any(event.get("status") == "completed" for event in client.of(name)):
                assert (await client.ending(name))["status"] == "completed"


async def test_a_flood_of_creates_closes_with_4429() -> None:
    engine = ScriptedEngine()
    async with live_server(engine, max_streams_per_socket=2) as server, session(server.port) as client:
        await client.chat("same")
        [sequence] = await engine.sequences()
        for _ in range(12):
            await client.chat("same")
        assert await client.closed() == 4429
        assert await engine.aborts() == [sequence]
