"""A socket that does not drain: held back, then closed, and no other socket notices."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import SocketStream
from websockets.asyncio.client import connect
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed
from websockets.uri import parse_uri

from streamserve.engine.stream import StreamLimits
from streamserve.types import TokenDelta
from tests.server.ws.session import Session, session
from tests.support.live_server import LiveServer, live_server
from tests.support.raw_http import request
from tests.support.scripted_engine import ScriptedEngine

pytestmark = pytest.mark.anyio

BUFFER = 4096
"""Bytes that the kernel holds on either side."""
LONG_DELTA = TokenDelta([ord("x")] * 100)
MORE_THAN_BUFFERS_HOLD = 700


@asynccontextmanager
async def slow_session(server: LiveServer) -> AsyncIterator[Session]:
    """A client for whom the kernel holds little; it reads only what a test receives, and a few messages ahead."""
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    own.connect(("127.0.0.1", server.port))
    own.setblocking(False)
    async with connect(
        f"ws://127.0.0.1:{server.port}/v1/ws", sock=own, max_queue=1, close_timeout=1, ping_interval=None
    ) as connection:
        yield Session(connection)


async def generate(engine: ScriptedEngine, sequence: str) -> None:
    """More than buffers hold, a message per delta: merged into one they would be written at a stroke."""
    for _ in range(MORE_THAN_BUFFERS_HOLD):
        engine.generate(sequence, LONG_DELTA)
        await anyio.lowlevel.checkpoint()


async def test_a_socket_that_lags_pauses_its_own_stream_only_and_loses_nothing() -> None:
    engine = ScriptedEngine(limits=StreamLimits(high_water_tokens=400, low_water_tokens=100))
    async with live_server(engine, send_buffer=BUFFER) as server, slow_session(server) as slow, session(server.port) as fast:
        await slow.chat("s")
        [lagging] = await engine.sequences(1)
        await fast.chat("f")
        [_, quick] = await engine.sequences(2)
        await generate(engine, lagging)
        assert await engine.pauses() == [lagging]
        engine.say(quick, "not held up")
        engine.finish(quick)
        assert (await fast.ending("f"))["status"] == "completed"
        assert fast.text("f") == "not held up"
        engine.finish(lagging)
        assert (await slow.ending("s"))["status"] == "completed"
        assert len(slow.text("s")) == 100 * MORE_THAN_BUFFERS_HOLD
        assert len(slow.of("s")) < MORE_THAN_BUFFERS_HOLD


async def test_a_socket_that_does_not_drain_is_closed_with_1013_and_its_streams_end() -> None:
    engine = ScriptedEngine()
    async with live_server(engine, send_buffer=BUFFER, send_timeout_s=0.2) as server:
        async with slow_session(server) as slow:
            await slow.chat("s")
            [sequence] = await engine.sequences()
            await generate(engine, sequence)
            assert await engine.aborts() == [sequence]
            with anyio.fail_after(5):
                # Closed without waiting for the client to read.
                await server.service.sockets.wait_idle()
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    json.loads(await slow.connection.recv())
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1013
        metrics = server.service.metrics
        assert metrics.slow_client_closes.totals(metrics.memory)[""] == 1
        assert metrics.disconnects.totals(metrics.memory)["blocked"] == 1


async def test_pings_that_are_never_read_make_the_server_stop_listening_not_grow() -> None:
    async with live_server(ScriptedEngine(), send_buffer=BUFFER, send_timeout_s=0.3) as server, slow_session(server) as slow:
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                await slow.connection.send(json.dumps({"type": "ping", "id": "x" * 1000}))
        assert closed.value.rcvd is None or closed.value.rcvd.code == 1013


async def test_protocol_pings_that_are_never_read_do_not_fill_the_memory() -> None:
    engine = ScriptedEngine()
    client = ClientProtocol(parse_uri("ws://test/v1/ws"))
    client.send_request(client.connect())
    async with live_server(engine, send_buffer=BUFFER) as server:
        own = socket.socket()
        own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        own.connect(("127.0.0.1", server.port))
        async with await SocketStream.from_socket(own) as stream:
            await stream.send(b"".join(client.data_to_send()))
            client.receive_data(await stream.receive())
            for number in range(8_000):
                client.send_ping(f"{number:0125}".encode())
            client.send_text(json.dumps({"type": "completion.create", "stream_id": "s", "prompt": "p"}).encode())
            await stream.send(b"".join(client.data_to_send()))
            await engine.sequences()  # all of them have been heard
            with anyio.fail_after(5):
                while not (waiting := await buffered_bytes(server)):
                    await anyio.lowlevel.checkpoint()
    assert waiting < 200_000


async def buffered_bytes(server: LiveServer) -> float:
    """What waits for clients to read it, as /metrics has it twice a second."""
    async with request(server.port, "GET", "/metrics") as response:
        page = (await response.body()).decode()
    return float(next(line for line in page.splitlines() if line.startswith("streamserve:client_buffer_bytes{")).split()[-1])
