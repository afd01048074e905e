"""Frames by the million: read in turns with everybody else's events, and messages in pieces have an end."""

from __future__ import annotations

import json

import anyio
import pytest
from websockets.frames import Frame, Opcode

from streamserve.server.ws.protocol import FRAMES_PER_TURN, MAX_FRAGMENTS
from tests.server.ws.session import session
from tests.support.live_server import live_server
from tests.support.scripted_engine import ScriptedEngine

pytestmark = pytest.mark.anyio


def frames(frame: Frame, count: int) -> bytes:
    return frame.serialize(mask=True) * count


async def test_a_message_in_too_many_pieces_closes_its_socket() -> None:
    """Two million empty continuation frames froze an API worker for 8 s."""
    async with live_server(ScriptedEngine()) as server, session(server.port) as client:
        start = Frame(Opcode.TEXT, b"{", fin=False).serialize(mask=True)
        client.connection.transport.write(start + frames(Frame(Opcode.CONT, b"", fin=False), MAX_FRAGMENTS + 1))
        assert await client.closed() == 1009


async def test_a_message_in_many_pieces_is_read_whole_and_the_next_one_counts_anew() -> None:
    async with live_server(ScriptedEngine()) as server, session(server.port) as client:
        for number in range(3):
            text = json.dumps({"type": "ping", "id": number}).encode()
            pieces = Frame(Opcode.TEXT, text[:1], fin=False).serialize(mask=True)
            pieces += frames(Frame(Opcode.CONT, b"", fin=False), MAX_FRAGMENTS - 1)
            client.connection.transport.write(pieces + Frame(Opcode.CONT, text[1:]).serialize(mask=True))
            assert await client.receive() == {"type": "pong", "id": number}


@pytest.mark.parametrize("opcode", [Opcode.PING, Opcode.PONG], ids=["pings", "pongs"])
async def test_other_tasks_run_between_the_turns_of_a_flood(opcode: Opcode) -> None:
    """700 000 pings held every stream of an API worker for 1.2 s."""
    num_frames, turns = 40 * FRAMES_PER_TURN, 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with live_server(ScriptedEngine()) as server, session(server.port) as client, anyio.create_task_group() as tasks:
        client.connection.transport.write(frames(Frame(opcode, b""), num_frames))
        tasks.start_soon(others)
        await client.send({"type": "ping", "id": 1})
        assert await client.receive() == {"type": "pong", "id": 1}
        tasks.cancel_scope.cancel()
    # A turn ends with the slice in which it is full.
    assert turns >= num_frames // (2 * FRAMES_PER_TURN)


async def test_messages_behind_a_flood_are_all_read_in_order() -> None:
    async with live_server(ScriptedEngine()) as server, session(server.port) as client:
        for number in range(2000):
            text = json.dumps({"type": "ping", "id": number}).encode()
            client.connection.transport.write(
                Frame(Opcode.TEXT, text).serialize(mask=True) + frames(Frame(Opcode.PONG, b""), 10)
            )
        assert [(await client.receive())["id"] for _ in range(2000)] == list(range(2000))
