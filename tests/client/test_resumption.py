"""SSE streams of the clients over a network that cuts them wherever it likes."""

from __future__ import annotations

import os
import random
import signal
from typing import Any

import anyio
import pytest

from streamserve_client import AsyncClient, Client, RetryPolicy, StreamInterrupted
from streamserve_client.types import Message
from tests.client.dropping_proxy import dropping_proxy
from tests.client.scripted_server import ScriptedServer, completion_chunk, events
from tests.support.live_server import live_server
from tests.support.scripted_engine import ScriptedEngine, text_reply
from tests.support.serve_process import engine_of, serve_process

pytestmark = pytest.mark.anyio

FAST = RetryPolicy(base_s=0.0)
PATIENT = RetryPolicy(base_s=0.0, max_retries=1000)
TEXT = "北京的秋天，天高云淡🍂"


@pytest.mark.parametrize("seed", range(3))
async def test_cut_at_random_bytes_no_token_is_lost_or_repeated(seed: int) -> None:
    chance = random.Random(seed)
    engine = ScriptedEngine(reply=text_reply(TEXT * 3))
    async with (
        live_server(engine) as server,
        dropping_proxy(server.port, answer_bytes=lambda: chance.randrange(1, 1500)) as (proxy, url),
        AsyncClient(url, retry=PATIENT) as client,
    ):
        for _ in range(4):
            async with await client.stream_completion("p", model="scripted") as stream:
                assert "".join([text async for text in stream.text()]) == TEXT * 3
            assert stream.usage is not None
        assert proxy.accepted > 8


async def test_the_synchronous_client_continues_alike() -> None:
    chance = random.Random(7)

    def read(url: str) -> str:
        messages: list[Message] = [{"role": "user", "content": "p"}]
        with Client(url, retry=PATIENT) as client, client.stream_chat(messages, model="scripted") as stream:
            return "".join(stream.text())

    async with live_server(ScriptedEngine(reply=text_reply(TEXT))) as server:
        async with dropping_proxy(server.port, answer_bytes=lambda: chance.randrange(1, 1500)) as (proxy, url):
            assert await anyio.to_thread.run_sync(read, url) == TEXT
            assert proxy.accepted > 2


async def test_a_stream_goes_on_after_every_dropped_connection() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server, dropping_proxy(server.port) as (proxy, url):
        async with AsyncClient(url, retry=FAST) as client:
            async with await client.stream_completion("p", model="scripted") as stream:
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
        assert engine.num_asked == 1
    assert engine.aborted == []


async def test_an_answer_lost_before_its_head_begins_nothing_twice() -> None:
    engine = ScriptedEngine()
    engine.admit = anyio.Event()
    async with live_server(engine) as server, dropping_proxy(server.port) as (proxy, url):
        async with AsyncClient(url, retry=RetryPolicy(base_s=0.2)) as client, anyio.create_task_group() as tasks:
            texts: list[str] = []

            async def read() -> None:
                async with await client.stream_completion("p", model="scripted") as stream:
                    texts.extend([text async for text in stream.text()])

            tasks.start_soon(read)
            await engine.asked()
            proxy.drop()
            engine.admit.set()
            [sequence_id] = await engine.sequences()
            engine.say(sequence_id, "ab")
            engine.finish(sequence_id)
        assert texts == ["a", "b"]
        assert engine.num_asked == 1


async def test_leaving_early_or_being_cancelled_aborts_the_sequence() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server, AsyncClient(server.base_url) as client:
        async with await client.stream_completion("p", model="scripted"):
            [first] = await engine.sequences()
        assert await engine.aborts() == [first]
        async with anyio.create_task_group() as tasks:

            async def read() -> None:
                async with await client.stream_completion("p", model="scripted") as stream:
                    await anext(stream)

            tasks.start_soon(read)
            [_, second] = await engine.sequences(2)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        assert await engine.aborts(2) == [first, second]


async def test_without_retries_a_stream_ends_with_its_connection() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server, dropping_proxy(server.port) as (proxy, url):
        async with AsyncClient(url, retry=RetryPolicy(max_retries=0)) as client:
            async with await client.stream_completion("p", model="scripted") as stream:
                [sequence_id] = await engine.sequences()
                proxy.drop()
                with pytest.raises(StreamInterrupted):
                    await anext(stream)
        assert await engine.aborts() == [sequence_id]


async def test_events_that_are_kept_no_longer_are_an_interrupted_stream() -> None:
    engine = ScriptedEngine()
    async with live_server(engine, resume_s=0.01) as server, dropping_proxy(server.port) as (proxy, url):
        async with AsyncClient(url, retry=FAST) as client:
            async with await client.stream_completion("p", model="scripted") as stream:
                [sequence_id] = await engine.sequences()
                engine.say(sequence_id, "a")
                await anext(stream)
                port, proxy.port = proxy.port, None
                proxy.drop()
                await engine.aborts()
                await server.service.delivery.active_requests.wait_idle()
                await anyio.sleep(0.02)
                proxy.port = port
                with pytest.raises(StreamInterrupted) as lost:
                    await anext(stream)
        assert getattr(lost.value.__cause__, "code", None) == "resume_gap"


def test_a_server_that_can_not_continue_a_stream_is_not_asked_to() -> None:
    with ScriptedServer(events(completion_chunk("a"), ending="cut")) as server, Client(server.url, retry=FAST) as client:
        with client.stream_completion("p", model="m") as stream, pytest.raises(StreamInterrupted):
            list(stream)
        assert [request.path for request in server.requests] == ["/v1/completions"]
        assert server.requests[0].headers["x-stream-resume"] == "1"


@pytest.mark.slow
async def test_cut_streams_go_on_through_any_api_worker_and_over_a_restarted_engine() -> None:
    chance = random.Random(3)
    arguments = (
        "demo",
        "--max-model-len",
        "1024",
        "--kv-cache-memory",
        "64M",
        "--api-server-count",
        "2",
        "--max-engine-restarts",
        "1",
    )
    options: dict[str, Any] = {"max_tokens": 300, "seed": 5, "extra_body": {"ignore_eos": True}}
    with serve_process(*arguments) as server:
        server.wait_ready()
        port = int(server.base_url.rpartition(":")[2])
        async with AsyncClient(server.base_url) as client:
            async with await client.stream_completion("Once", **options) as stream:
                undisturbed = "".join([text async for text in stream.text()])
        async with dropping_proxy(port, answer_bytes=lambda: chance.randrange(400, 6000)) as (proxy, url):
            async with AsyncClient(url, retry=PATIENT) as client, await client.stream_completion("Once", **options) as stream:
                said = [await anext(stream) for _ in range(20)]
                os.kill(engine_of(server.children), signal.SIGKILL)
                said += [chunk async for chunk in stream]
            assert proxy.accepted > 5
        assert "".join(chunk.text for chunk in said) == undisturbed
        assert "starting it again" in server.log
