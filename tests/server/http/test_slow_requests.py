"""Clients that connect and do not finish what they began: they are disconnected, and no other client waits."""

from __future__ import annotations

import contextlib
import json

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import SocketStream

from streamserve.server.http.connections.connection_limit import ConnectionLimit
from tests.support.live_server import live_server
from tests.support.raw_http import events, request
from tests.support.scripted_engine import ScriptedEngine

pytestmark = pytest.mark.anyio

SOON = 0.2
POST = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n"
UPGRADE = b"GET /v1/ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"


async def rest_of(stream: SocketStream) -> bytes:
    """Everything until the server closes."""
    data = b""
    with anyio.fail_after(10):
        while True:
            try:
                data += await stream.receive()
            except anyio.EndOfStream:
                return data


def refusal(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head
    return int(head.split()[1]), json.loads(body)["error"]["code"]


async def test_a_client_that_says_nothing_is_hung_up_on_without_a_word() -> None:
    async with live_server(ScriptedEngine(), receive_timeout_s=SOON) as server:
        async with await anyio.connect_tcp("127.0.0.1", server.port) as silent:
            assert await rest_of(silent) == b""


@pytest.mark.parametrize("begun", [POST[:9], POST, POST + b"\r\n", POST + b"\r\n{", UPGRADE])
async def test_a_request_that_does_not_go_on_is_refused_and_hung_up_on(begun: bytes) -> None:
    async with live_server(ScriptedEngine(), receive_timeout_s=SOON) as server:
        async with await anyio.connect_tcp("127.0.0.1", server.port) as slow:
            await slow.send(begun)
            assert refusal(await rest_of(slow)) == (408, "request_timeout")
        with anyio.fail_after(5):
            await server.service.delivery.active_requests.wait_idle()


async def test_a_second_request_is_waited_for_no_longer_than_the_first() -> None:
    async with live_server(ScriptedEngine(), receive_timeout_s=SOON) as server:
        async with await anyio.connect_tcp("127.0.0.1", server.port) as client:
            await client.send(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n" + POST)
            first, _, second = (await rest_of(client)).partition(b"HTTP/1.1 408")
            assert first.startswith(b"HTTP/1.1 200")
            assert b"request_timeout" in second


async def test_a_body_that_drips_is_hung_up_on_though_it_never_pauses() -> None:
    """A byte now and then kept a connection for ever, and enough of them left none for /health."""
    async with live_server(ScriptedEngine(), receive_timeout_s=SOON) as server:
        async with await anyio.connect_tcp("127.0.0.1", server.port) as slow, anyio.create_task_group() as tasks:

            async def drip() -> None:
                while True:
                    await slow.send(b" ")
                    await anyio.sleep(SOON / 10)

            await slow.send(POST + b"\r\n")
            tasks.start_soon(drip)
            assert refusal(await rest_of(slow)) == (408, "request_timeout")
            tasks.cancel_scope.cancel()


async def test_a_client_that_leaves_in_mid_body_is_no_fault_of_the_server(caplog: pytest.LogCaptureFixture) -> None:
    """Each logged a traceback of 2 kB and counted as internal, so that alarms rang for somebody's closed laptop."""
    async with live_server(ScriptedEngine()) as server:
        async with await anyio.connect_tcp("127.0.0.1", server.port) as client:
            await client.send(POST + b"\r\n{")
            await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(5):
            aborted = b'rejected_total{engine="0",model_name="scripted",reason="aborted"} 1.0'
            while aborted not in server.service.metrics.page():
                await anyio.lowlevel.checkpoint()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_probes_are_answered_beyond_the_limit_on_connections(caplog: pytest.LogCaptureFixture) -> None:
    """Without descriptors left, connections were closed as they came, those of probes too, and the log said nothing."""
    limit = ConnectionLimit(2, spare=1, always=["/health"])
    async with live_server(ScriptedEngine(), connection_limit=limit) as server, contextlib.AsyncExitStack() as stack:
        for _ in range(2):
            held = await stack.enter_async_context(await anyio.connect_tcp("127.0.0.1", server.port))
            await held.send(POST)
            await anyio.wait_all_tasks_blocked()
        async with request(server.port, "GET", "/health?now") as response:
            assert (response.status, response.headers["connection"]) == (200, "close")
        async with await anyio.connect_tcp("127.0.0.1", server.port) as third:
            await third.send(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
            assert refusal(await rest_of(third)) == (503, "too_many_connections")
        async with await anyio.connect_tcp("127.0.0.1", server.port) as third:
            await third.send(POST)
            await anyio.wait_all_tasks_blocked()
            async with await anyio.connect_tcp("127.0.0.1", server.port) as fourth:
                assert refusal(await rest_of(fourth)) == (503, "too_many_connections")
    assert caplog.text.count("2 connections are open") == 1


async def test_a_head_that_never_ends_is_refused() -> None:
    async with live_server(ScriptedEngine()) as server:
        async with await anyio.connect_tcp("127.0.0.1", server.port) as client:
            await client.send(POST + b"X-Long: " + b"x" * (70 << 10))
            assert refusal(await rest_of(client)) == (431, "headers_too_large")


async def test_what_is_no_http_is_told_so_in_json() -> None:
    async with live_server(ScriptedEngine()) as server:
        async with await anyio.connect_tcp("127.0.0.1", server.port) as client:
            await client.send(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
            assert refusal(await rest_of(client)) == (400, "invalid_request")


async def test_a_client_that_waits_for_its_answer_is_not_hurried() -> None:
    engine = ScriptedEngine()
    async with live_server(engine, receive_timeout_s=SOON) as server:
        async with request(server.port, "POST", "/v1/completions", {"prompt": "say", "stream": True}) as response:
            [sequence] = await engine.sequences()
            await anyio.sleep(3 * SOON)
            engine.say(sequence, "a")
            engine.finish(sequence)
            assert events(await response.body())[-1] == "[DONE]"
