"""`AsyncClient` over real sockets: the same behaviour as `Client`, and cancellation."""

from __future__ import annotations

import anyio
import pytest

from streamserve_client import AsyncClient, RateLimited, RetryPolicy, StreamFailed, StreamInterrupted
from tests.client.scripted_server import USAGE, Reply, ScriptedServer, answer, chat_chunk, completion_chunk, events

pytestmark = pytest.mark.anyio


async def test_a_stream_gives_its_chunks_and_usage() -> None:
    reply = events(completion_chunk("秋"), completion_chunk("天"), USAGE, "[DONE]")
    with ScriptedServer(reply) as server:
        async with AsyncClient(server.url) as client, await client.stream_completion("p", model="m") as stream:
            texts = [chunk.text async for chunk in stream]
    assert texts == ["秋", "天", ""]
    assert stream.usage is not None
    assert stream.usage.total_tokens == 8


async def test_plain_calls_models_and_health() -> None:
    replies = [answer({"data": [{"id": "m"}]}), answer({"choices": [{"text": "x"}]}), answer({}), answer({}, 503)]
    with ScriptedServer(*replies) as server:
        async with AsyncClient(server.url) as client:
            assert (await client.complete("p")).text == "x"
            assert not (await client.health()).is_ready
    assert server.requests[1].body["model"] == "m"


async def test_a_connection_serves_one_stream_after_another() -> None:
    reply = events(chat_chunk("a"), "[DONE]")
    with ScriptedServer(reply, reply) as server:
        async with AsyncClient(server.url) as client:
            for _ in range(2):
                async with await client.stream_chat([{"role": "user", "content": "?"}], model="m") as stream:
                    assert [text async for text in stream.text()] == ["a"]
        assert server.connections == 1


async def test_leaving_early_closes_the_connection() -> None:
    with ScriptedServer(events(completion_chunk("a"), ending="hang")) as server:
        async with AsyncClient(server.url) as client, await client.stream_completion("p", model="m") as stream:
            assert (await anext(stream)).text == "a"
        assert server.departed.wait(5)


async def test_cancelling_the_reader_closes_the_connection() -> None:
    async def read(client: AsyncClient) -> None:
        async with await client.stream_completion("p", model="m") as stream:
            async for _ in stream:
                reading.set()

    reading = anyio.Event()
    with ScriptedServer(events(completion_chunk("a"), ending="hang")) as server:
        async with AsyncClient(server.url) as client, anyio.create_task_group() as tasks:
            tasks.start_soon(read, client)
            await reading.wait()
            tasks.cancel_scope.cancel()
        assert server.departed.wait(5)


async def test_an_error_inside_a_stream_comes_after_all_that_was_delivered() -> None:
    body = b"".join(events(completion_chunk("a"), {"error": {"message": "gone", "code": "engine_dead"}}, "[DONE]").pieces)
    with ScriptedServer(Reply([body], headers={"Content-Type": "text/event-stream"})) as server:
        async with AsyncClient(server.url) as client, await client.stream_completion("p", model="m") as stream:
            assert (await anext(stream)).text == "a"
            with pytest.raises(StreamFailed, match="gone"):
                await anext(stream)


async def test_a_cut_stream_is_not_taken_for_a_whole_one() -> None:
    with ScriptedServer(events(completion_chunk("a"), ending="cut")) as server:
        async with AsyncClient(server.url) as client, await client.stream_completion("p", model="m") as stream:
            await anext(stream)
            with pytest.raises(StreamInterrupted):
                await anext(stream)


async def test_retries_end_and_then_the_refusal_is_raised() -> None:
    busy = answer({"error": {"message": "full", "code": "queue_full"}}, 429, Retry_After_Ms="1")
    with ScriptedServer(busy, busy, busy) as server:
        async with AsyncClient(server.url, retry=RetryPolicy(max_retries=2)) as client:
            with pytest.raises(RateLimited, match="full"):
                await client.stream_completion("p", model="m")
    assert len(server.requests) == 3
