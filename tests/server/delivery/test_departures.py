"""Clients that leave, and clients that do not read: their sequences end within a step, and no other client notices."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from streamserve.engine.stream import StreamLimits
from streamserve.types import TokenDelta
from tests.support.live_server import LiveServer, live_server
from tests.support.raw_http import events, request
from tests.support.scripted_engine import ScriptedEngine, text_reply

pytestmark = pytest.mark.anyio

COMPLETION = {"model": "scripted", "prompt": "say", "stream": True, "max_tokens": 4000}
BUFFER = 4096
"""Bytes that the kernel holds on either side for a client that does not read."""

LONG_DELTA = TokenDelta([ord("x")] * 100)


async def disconnects(server: LiveServer) -> dict[str, float]:
    with anyio.fail_after(5):
        await server.service.delivery.active_requests.wait_idle()
    metrics = server.service.metrics
    return {phase: count for phase, count in metrics.disconnects.totals(metrics.memory).items() if count}


async def test_leaving_before_admission_aborts_as_soon_as_it_is_admitted() -> None:
    engine = ScriptedEngine()
    engine.admit = anyio.Event()
    async with live_server(engine) as server:
        stream = await anyio.connect_tcp("127.0.0.1", server.port)
        await stream.send(
            b'POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 31\r\n\r\n{"prompt": "say","stream":true}'
        )
        await engine.asked()
        await stream.aclose()
        engine.admit.set()
        assert await engine.aborts() == await engine.sequences()


async def test_leaving_during_prefill_aborts() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server:
        async with request(server.port, "POST", "/v1/completions", COMPLETION) as response:
            [sequence] = await engine.sequences()
            await response.leave()
        assert await engine.aborts() == [sequence]
        assert await disconnects(server) == {"queued": 1}


async def test_leaving_during_decode_aborts() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server:
        async with request(server.port, "POST", "/v1/completions", COMPLETION) as response:
            [sequence] = await engine.sequences()
            engine.say(sequence, "a")
            await response.chunk()
            await response.leave()
        assert await engine.aborts() == [sequence]
        assert await disconnects(server) == {"streaming": 1}


async def test_leaving_aborts_every_choice() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server:
        async with request(server.port, "POST", "/v1/completions", {**COMPLETION, "n": 3}) as response:
            sequences = await engine.sequences(3)
            await response.leave()
        assert sorted(await engine.aborts(3)) == sorted(sequences)


async def test_leaving_while_the_server_is_blocked_on_sending_aborts() -> None:
    engine = ScriptedEngine()
    async with live_server(engine, send_buffer=BUFFER) as server:
        async with request(server.port, "POST", "/v1/completions", COMPLETION, receive_buffer=BUFFER) as response:
            [sequence] = await engine.sequences()
            await fill(engine, sequence)
            assert not engine.aborted
            await response.leave()
        assert await engine.aborts() == [sequence]
        assert await disconnects(server) == {"blocked": 1}


async def test_a_plain_request_that_is_left_aborts() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server:
        stream = await anyio.connect_tcp("127.0.0.1", server.port)
        await stream.send(b'POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 17\r\n\r\n{"prompt": "say"}')
        [sequence] = await engine.sequences()
        await stream.aclose()
        assert await engine.aborts() == [sequence]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_whole_answer_is_no_departure(stream: bool) -> None:
    async with live_server(ScriptedEngine(reply=text_reply("abc"))) as server:
        for _ in range(5):
            async with request(server.port, "POST", "/v1/completions", {**COMPLETION, "stream": stream}) as response:
                await response.body()
        assert await disconnects(server) == {}


async def test_nobody_else_notices_a_client_that_leaves() -> None:
    engine = ScriptedEngine()
    async with (
        live_server(engine) as server,
        request(server.port, "POST", "/v1/completions", COMPLETION) as stays,
        request(server.port, "POST", "/v1/completions", COMPLETION) as leaves,
    ):
        first, second = await engine.sequences(2)
        await leaves.leave()
        assert await engine.aborts() == [second]
        engine.say(first, "hello")
        engine.finish(first)
        assert events(await stays.body())[-1] == "[DONE]"


async def fill(engine: ScriptedEngine, sequence: str) -> None:
    """Generate until the client's sockets are full and the sequence has been paused."""
    with anyio.fail_after(10):
        while not engine.paused:
            engine.generate(sequence, LONG_DELTA)
            await anyio.lowlevel.checkpoint()


async def test_a_slow_reader_is_paused_loses_nothing_and_slows_nobody() -> None:
    engine = ScriptedEngine()
    async with (
        live_server(engine, send_buffer=BUFFER) as server,
        request(server.port, "POST", "/v1/completions", COMPLETION, receive_buffer=BUFFER) as slow,
        request(server.port, "POST", "/v1/completions", COMPLETION) as quick,
    ):
        slow_one, quick_one = await engine.sequences(2)
        engine_tokens = 0
        with anyio.fail_after(10):
            while not engine.paused:
                engine.generate(slow_one, LONG_DELTA)
                engine_tokens += 100
                await anyio.lowlevel.checkpoint()
        assert engine.paused == [slow_one]
        engine.say(quick_one, "quick")
        engine.finish(quick_one)
        assert events(await quick.body())[-1] == "[DONE]"
        engine.finish(slow_one)
        *chunks, done = events(await slow.body())
    assert sum(len(chunk["choices"][0]["text"]) for chunk in chunks) == engine_tokens
    assert done == "[DONE]"


async def test_a_client_that_takes_nothing_for_too_long_is_let_go() -> None:
    engine = ScriptedEngine()
    async with live_server(engine, send_buffer=BUFFER, keepalive_s=0.05, send_timeout_s=0.1) as server:
        async with request(server.port, "POST", "/v1/completions", COMPLETION, receive_buffer=BUFFER):
            [sequence] = await engine.sequences()
            await fill(engine, sequence)
            assert await engine.aborts() == [sequence]
            metrics = server.service.metrics
            with anyio.fail_after(5):
                await server.service.delivery.active_requests.wait_idle()
            assert metrics.slow_client_closes.totals(metrics.memory) == {"": 1}


async def test_a_stalled_stream_whose_client_reads_again_ends_with_an_error() -> None:
    engine = ScriptedEngine(limits=StreamLimits(stall_timeout_s=0.05))
    async with live_server(engine, send_buffer=BUFFER) as server:
        async with request(server.port, "POST", "/v1/completions", COMPLETION, receive_buffer=BUFFER) as response:
            [sequence] = await engine.sequences()
            await fill(engine, sequence)
            assert await engine.aborts() == [sequence]
            *_, error, done = events(await response.body())
    assert error["error"]["code"] == "slow_consumer"
    assert done == "[DONE]"
