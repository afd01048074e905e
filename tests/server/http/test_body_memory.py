"""Bodies that arrive and never end: together they take a bounded amount of memory, and nobody who is quick is refused."""

from __future__ import annotations

import json

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import SocketStream
from websockets.frames import Frame, Opcode

from streamserve.server.http.bodies.body_memory import UNCOUNTED_BYTES, BodyMemory, TooManyBodies
from tests.server.ws.session import session
from tests.support.live_server import live_server
from tests.support.raw_http import request
from tests.support.scripted_engine import ScriptedEngine, text_reply

pytestmark = pytest.mark.anyio

LARGE = 4 * UNCOUNTED_BYTES
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (2 * LARGE)


async def begin(port: int, num_bytes: int) -> SocketStream:
    """A request that stops in the middle of its body."""
    client = await anyio.connect_tcp("127.0.0.1", port)
    await client.send(HEAD + b" " * num_bytes)
    return client


def test_what_has_been_arriving_for_longest_makes_room() -> None:
    memory, dropped = BodyMemory(3 * LARGE), list[str]()
    held = {name: memory.hold(lambda name=name: dropped.append(name)) for name in "abcd"}  # type: ignore[misc]
    for body in held.values():
        body.grow(LARGE)
    assert (dropped, memory.num_bytes) == (["a"], 3 * LARGE)
    held["d"].grow(LARGE)
    assert (dropped, memory.num_bytes) == (["a", "b"], 3 * LARGE)


def test_what_is_complete_stays_and_keeps_others_out() -> None:
    memory = BodyMemory(2 * LARGE)
    with memory.hold() as first, memory.hold() as second:
        first.grow(LARGE)
        second.grow(LARGE)
        with pytest.raises(TooManyBodies), memory.hold() as third:
            third.grow(LARGE)
        assert memory.num_bytes == 2 * LARGE
    assert memory.num_bytes == 0


def test_small_bodies_are_not_counted() -> None:
    memory = BodyMemory(0)
    with memory.hold() as small:
        small.grow(UNCOUNTED_BYTES)
        assert memory.num_bytes == 0


async def until_held(memory: BodyMemory, num_bytes: int) -> None:
    with anyio.fail_after(5):
        while memory.num_bytes < num_bytes:
            await anyio.lowlevel.checkpoint()


async def test_bodies_that_never_end_make_room_for_one_that_does() -> None:
    """Every one of them held up to 16 MB for as long as its client liked, and needed no key."""
    async with live_server(ScriptedEngine(reply=text_reply("fine"))) as server:
        memory = server.service.large_work.memory
        memory.max_bytes = 3 * LARGE
        async with await begin(server.port, LARGE) as first, await begin(server.port, LARGE):
            await until_held(memory, 2 * LARGE)
            body = json.dumps({"prompt": "say", "max_tokens": 1}).encode().ljust(2 * LARGE)
            async with request(server.port, "POST", "/v1/completions", body) as response:
                assert response.status == 200
            with anyio.fail_after(5):
                answer = await first.receive()
        assert b" 503 " in answer
        assert b"too_many_bodies" in answer


async def test_a_sockets_message_that_never_ends_makes_room_too() -> None:
    async with live_server(ScriptedEngine()) as server, session(server.port) as client:
        memory = server.service.large_work.memory
        client.connection.transport.write(Frame(Opcode.TEXT, b" " * LARGE, fin=False).serialize(mask=True))
        await until_held(memory, LARGE)
        memory.max_bytes = LARGE
        with memory.hold() as other:
            other.grow(LARGE)
            assert await client.closed() == 1013
        assert memory.num_bytes == 0
