"""SSE streams that go on after a dropped connection, and those that don't."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest

from streamserve.server.http.access.owned_id import OwnedId
from streamserve_client import ServerSentEvent, SSEDecoder
from tests.server.ws.session import session
from tests.support.live_server import LiveServer, live_server
from tests.support.raw_http import RawResponse, events, request
from tests.support.scripted_engine import ScriptedEngine, text_reply

pytestmark = pytest.mark.anyio

CHATS = "/v1/chat/completions"
CHAT = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "stream_options": {"include_usage": True}}
COMPLETION = {"prompt": "say", "stream": True}
RESUME = {"X-Stream-Resume": "1"}
TEXT = "北京的秋天，天高云淡🍂 and a good deal more of it"


@asynccontextmanager
async def resumable(server: LiveServer, path: str = CHATS, body: Any = CHAT) -> AsyncIterator[RawResponse]:
    async with request(server.port, "POST", path, body, headers=RESUME) as response:
        assert response.status == 200
        yield response


def decoded(body: bytes) -> list[ServerSentEvent]:
    return SSEDecoder().feed(body)


def data(body: bytes) -> list[str]:
    return [event.data for event in decoded(body)]


def text_of(answered: list[str]) -> str:
    chunks = [json.loads(each) for each in answered if each != "[DONE]"]
    return "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])


async def goes_on(server: LiveServer, last_event_id: str, way: str) -> bytes:
    """The rest of a stream behind an event, asked for in one of the two ways."""
    headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
    stream_id = last_event_id.rpartition(":")[0]
    method, path, body = ("POST", CHATS, CHAT) if way == "post" else ("GET", f"/v1/streams/{stream_id}", None)
    async with request(server.port, method, path, body, headers=headers) as response:
        assert response.status == 200, await response.body()
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["x-stream-id"] == stream_id
        return await response.body()


@pytest.mark.parametrize(
    ("path", "body"), [(CHATS, CHAT), ("/v1/completions", COMPLETION), ("/invocations", {**COMPLETION, "n": 2})]
)
async def test_a_resumable_stream_is_the_same_with_ids(path: str, body: Any) -> None:
    async with live_server(ScriptedEngine(reply=text_reply("né!"))) as server:
        async with request(server.port, "POST", path, body) as response:
            assert "x-stream-id" not in response.headers
            plain = events(await response.body())
        async with resumable(server, path, body) as response:
            numbered = decoded(await response.body())
            stream_id = response.headers["x-stream-id"]
        async with request(server.port, "POST", path, {**body, "resumable": True}) as response:
            assert len(decoded(await response.body())) == len(numbered)
    assert [event.id for event in numbered] == [f"{stream_id}:{number}" for number in range(len(numbered))]
    assert numbered[-1].data == "[DONE]"
    fixed = {"id": "", "created": 0}
    assert [{**json.loads(event.data), **fixed} for event in numbered[:-1]] == [{**chunk, **fixed} for chunk in plain[:-1]]


@pytest.mark.parametrize("way", ["post", "get"])
async def test_cut_at_any_byte_it_goes_on_without_a_token_lost_or_repeated(way: str) -> None:
    async with live_server(ScriptedEngine(reply=text_reply(TEXT))) as server:
        async with resumable(server) as response:
            whole = await response.body()
        boundaries = [index + 2 for index in range(len(whole)) if whole.startswith(b"\n\n", index)]
        around = {place + offset for place in boundaries[:2] + boundaries[-3:-1] for offset in (-1, 0, 1)}
        for cut in around | set(random.Random(1).sample(range(boundaries[0], boundaries[-1]), 20)):
            seen = decoded(whole[:cut])
            if seen:
                rest = await goes_on(server, seen[-1].id, way)
                assert [event.data for event in seen] + data(rest) == data(whole)
    assert text_of(data(whole)) == TEXT


async def test_it_goes_on_while_it_is_generated() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server:
        async with resumable(server) as response:
            [sequence] = await engine.sequences()
            engine.say(sequence, "before ")
            seen = b""
            while b'" "' not in seen:
                seen += await response.chunk() or b""
            await response.leave()
        engine.say(sequence, "between ")
        async with request(server.port, "POST", CHATS, headers={"Last-Event-ID": decoded(seen)[-1].id}) as response:
            engine.say(sequence, "after")
            engine.finish(sequence)
            rest = await response.body()
    assert text_of(data(seen) + data(rest)) == "before between after"
    assert data(rest)[-1] == "[DONE]"
    assert engine.aborted == []


async def test_a_client_that_named_its_request_can_come_back_without_having_seen_an_event() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server:
        async with request(server.port, "POST", CHATS, CHAT, headers={**RESUME, "X-Request-Id": "mine"}) as response:
            [sequence] = await engine.sequences()
            await response.leave()
        engine.say(sequence, "hello")
        engine.finish(sequence)
        async with request(server.port, "GET", "/v1/streams/mine") as response:
            assert text_of(data(await response.body())) == "hello"


async def test_without_being_asked_for_it_a_stream_ends_with_its_connection_and_has_no_ids() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server:
        for headers in ({}, {"X-Stream-Resume": "0"}):
            async with request(server.port, "POST", CHATS, CHAT, headers=headers) as response:
                sequence = (await engine.sequences(len(engine.aborted) + 1))[-1]
                engine.say(sequence, "a")
                assert (await response.chunk() or b"").startswith(b"data: ")
                await response.leave()
            assert (await engine.aborts(len(engine.specs)))[-1] == sequence


async def test_nobody_coming_back_ends_it_after_a_while() -> None:
    engine = ScriptedEngine()
    async with live_server(engine, resume_s=0.05) as server:
        async with resumable(server) as response:
            [sequence] = await engine.sequences()
            await response.leave()
        assert await engine.aborts() == [sequence]


async def test_without_a_reader_generation_goes_on_unhindered() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server:
        async with resumable(server) as response:
            [sequence] = await engine.sequences()
            await response.leave()
        logged = server.service.find(OwnedId("", response.headers["x-stream-id"]))
        assert logged is not None
        with anyio.fail_after(5):
            while logged.log.is_read:
                await anyio.lowlevel.checkpoint()
        for _ in range(40):
            engine.say(sequence, "x" * 20)
            await anyio.lowlevel.checkpoint()
        engine.finish(sequence)
        await logged.wait_ended()
        assert engine.paused == []
        async with request(server.port, "GET", f"/v1/streams/{logged.id}") as response:
            assert text_of(data(await response.body())) == "x" * 800


async def test_a_stream_begun_over_one_transport_goes_on_over_the_other() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server:
        async with session(server.port) as client:
            await client.chat("s", resumable=True)
            [first] = await engine.sequences()
            engine.say(first, "ab")
            message = await client.chunk("s", "ab")
            await client.drop()
        engine.finish(first)
        last_event_id = f"{message['data']['id']}:{message['sequence_number'] - 1}"
        assert text_of(data(await goes_on(server, last_event_id, "get"))) == "b"
        async with resumable(server) as response:
            second = (await engine.sequences(2))[-1]
            engine.say(second, "c")
            [_, event] = decoded(await response.chunk() or b"")
            await response.leave()
        async with session(server.port) as client:
            stream_id, _, number = event.id.rpartition(":")
            resume = {"type": "response.resume", "response_id": stream_id, "starting_after": int(number), "stream_id": "s"}
            await client.send(resume)
            engine.say(second, "d")
            await client.chunk("s", "d")
            engine.finish(second)
            await client.ending("s")
            assert client.text("s") == "d"


async def test_a_failed_stream_ends_as_failed_for_whoever_comes_back() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server:
        async with resumable(server) as response:
            [sequence] = await engine.sequences()
            engine.say(sequence, "a")
            last = decoded(await response.chunk() or b"")[-1]
            await response.leave()
        engine.fail(sequence, "stream_failed", "it broke")
        error, done = data(await goes_on(server, last.id, "post"))
        assert json.loads(error)["error"]["message"] == "it broke"
        assert done == "[DONE]"


async def test_an_event_source_that_has_read_everything_is_told_to_stop() -> None:
    async with live_server(ScriptedEngine(reply=text_reply("a"))) as server:
        async with resumable(server) as response:
            last = decoded(await response.body())[-1]
        for method, path in (("GET", f"/v1/streams/{response.headers['x-stream-id']}"), ("POST", CHATS)):
            async with httpx.AsyncClient() as client:
                answer = await client.request(method, server.base_url + path, headers={"Last-Event-ID": last.id})
            assert (answer.status_code, answer.content) == (204, b"")


async def test_what_can_not_be_gone_on_with_is_refused_by_name() -> None:
    async with (
        live_server(ScriptedEngine(reply=text_reply("a"))) as server,
        httpx.AsyncClient(base_url=server.base_url) as client,
    ):
        async with resumable(server) as response:
            await response.body()
        stream_id = response.headers["x-stream-id"]

        async def refusal(method: str, path: str, last: str = "", **options: Any) -> tuple[int, str | None, str | None]:
            headers = {"Last-Event-ID": last, **options.pop("headers", {})}
            answer = await client.request(method, path, headers=headers, **options)
            error = answer.json()["error"]
            return answer.status_code, error["code"], error["param"]

        gone = (410, "resume_gap", None)
        assert await refusal("GET", "/v1/streams/unknown") == gone
        assert await refusal("POST", CHATS, "unknown:3") == gone
        assert await refusal("POST", "/v1/completions", f"{stream_id}:99") == gone
        for last in ("nothing", f"{stream_id}:", f"{stream_id}:-1", f"{stream_id}:{'9' * 30}", "other:1"):
            wrong = await refusal("GET", f"/v1/streams/{stream_id}", last)
            assert wrong == (400, "invalid_value", "Last-Event-ID"), last
        whole = {**COMPLETION, "stream": False}
        assert (await refusal("POST", "/v1/completions", json={**whole, "resumable": True}))[::2] == (400, "resumable")
        header = {"X-Stream-Resume": "yes"}
        assert (await refusal("POST", CHATS, json=CHAT, headers=header))[::2] == (400, "X-Stream-Resume")
        answer = await client.post("/v1/completions", json=whole, headers=RESUME)
        assert answer.json()["choices"][0]["text"] == "a"
