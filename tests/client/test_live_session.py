"""`AsyncClient` and its WebSocket session against the real server, with a network that breaks on cue."""

from __future__ import annotations

import asyncio

import pytest

from streamserve_client import AsyncClient, BadRequest, NotFound, RetryPolicy
from tests.client.dropping_proxy import dropping_proxy
from tests.support.live_server import live_server
from tests.support.scripted_engine import ScriptedEngine, text_reply

pytestmark = pytest.mark.anyio

FAST = RetryPolicy(base_s=0.0)
TEXT = "北京的秋天，天高云淡🍂"


async def test_both_transports_carry_the_same_text() -> None:
    async with live_server(ScriptedEngine(reply=text_reply(TEXT))) as server, AsyncClient(server.base_url) as client:
        async with await client.stream_completion("p") as stream:
            over_sse = [chunk async for chunk in stream]
        async with client.websocket() as session, await session.stream_completion("p") as stream:
            over_ws = [chunk async for chunk in stream]
    assert "".join(chunk.text for chunk in over_ws) == TEXT
    assert [(chunk.text, chunk.finish_reason, chunk.usage) for chunk in over_ws] == [
        (chunk.text, chunk.finish_reason, chunk.usage) for chunk in over_sse
    ]


async def test_a_stream_goes_on_after_every_dropped_connection_without_losing_or_repeating_a_token() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server, dropping_proxy(server.port) as (proxy, url):
        async with AsyncClient(url, retry=FAST) as client, client.websocket() as session:
            async with await session.stream_completion("p", model="scripted") as stream:
                [sequence_id] = await engine.sequences()
                said = ""
                for character in TEXT:
                    engine.say(sequence_id, character)
                    said += (await anext(stream)).text
                    proxy.drop()
                engine.finish(sequence_id)
                said += "".join([text async for text in stream.text()])
        assert said == TEXT
        assert proxy.accepted > 3
        assert len(engine.specs) == 1
    assert engine.aborted == []


async def test_a_connection_dropped_before_the_first_token_begins_nothing_twice() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server, dropping_proxy(server.port) as (proxy, url):
        async with AsyncClient(url, retry=FAST) as client, client.websocket() as session:
            async with await session.stream_completion("p", model="scripted") as stream:
                [sequence_id] = await engine.sequences()
                proxy.drop()
                engine.say(sequence_id, "a")
                engine.finish(sequence_id)
                assert "".join([text async for text in stream.text()]) == "a"
        assert engine.num_asked == 1
    assert engine.aborted == []


async def test_what_came_while_the_connection_was_down_comes_afterwards() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server, dropping_proxy(server.port) as (proxy, url):
        async with AsyncClient(url, retry=FAST) as client, client.websocket() as session:
            async with await session.stream_completion("p", model="scripted") as stream:
                [sequence_id] = await engine.sequences()
                engine.say(sequence_id, "a")
                assert (await anext(stream)).text == "a"
                proxy.drop()
                engine.say(sequence_id, "bcd")
                engine.finish(sequence_id)
                assert "".join([text async for text in stream.text()]) == "bcd"


async def test_leaving_a_stream_early_aborts_its_sequence_and_the_session_goes_on() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server, AsyncClient(server.base_url) as client, client.websocket() as session:
        async with await session.stream_completion("p", model="scripted") as stream:
            [sequence_id] = await engine.sequences()
            engine.say(sequence_id, "a")
            await anext(stream)
        assert await engine.aborts() == [sequence_id]
        engine.reply = text_reply("z")
        async with await session.stream_completion("p", model="scripted") as stream:
            assert [text async for text in stream.text()] == ["z"]


async def test_leaving_the_session_aborts_what_runs() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server, AsyncClient(server.base_url) as client:
        async with client.websocket() as session:
            await session.stream_completion("p", model="scripted")
            [sequence_id] = await engine.sequences()
        assert await engine.aborts() == [sequence_id]


async def test_leaving_an_sse_stream_early_aborts_its_sequence() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server, AsyncClient(server.base_url) as client:
        opening = asyncio.create_task(client.stream_completion("p", model="scripted"))
        [sequence_id] = await engine.sequences()
        engine.say(sequence_id, "a")
        async with await opening as stream:
            await anext(stream)
        assert await engine.aborts() == [sequence_id]


async def test_a_refusal_concerns_its_stream_alone() -> None:
    async with live_server(ScriptedEngine(reply=text_reply("z"))) as server, AsyncClient(server.base_url) as client:
        async with client.websocket() as session:
            refused = await session.stream_completion("p", temperature=-1.0)
            with pytest.raises(BadRequest) as caught:
                await anext(refused)
            assert caught.value.param == "temperature"
            async with await session.stream_completion("p") as stream:
                assert [text async for text in stream.text()] == ["z"]


async def test_a_stream_is_told_to_answer_over_both_transports() -> None:
    engine = ScriptedEngine()
    async with live_server(engine, reasoning_parser="qwen3") as server, AsyncClient(server.base_url) as client:
        async with await client.stream_chat([{"role": "user", "content": "hi"}]) as stream:
            [over_sse] = await engine.sequences()
            await stream.answer_now()
            assert await engine.answers() == [over_sse]
        async with client.websocket() as session:
            async with await session.stream_chat([{"role": "user", "content": "hi"}]) as stream:
                over_ws = (await engine.sequences(2))[1]
                stream.answer_now()
                assert await engine.answers(2) == [over_sse, over_ws]
                engine.finish(over_ws)
                assert [chunk async for chunk in stream]
            stream.answer_now()
        with pytest.raises(NotFound):
            await client.answer_now("nobody")
