"""What an API brings is all it takes: its events, whole answers and errors leave through the same runs and writers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from streamserve.errors import QueueFull
from streamserve.server.app import APIS
from tests.support.live_server import LiveServer, live_server
from tests.support.messages_api import MESSAGES
from tests.support.raw_http import request
from tests.support.scripted_engine import ScriptedEngine, text_reply

pytestmark = pytest.mark.anyio

BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 40}
STREAMED = {**BODY, "stream": True}


@asynccontextmanager
async def serving(engine: ScriptedEngine, **config: Any) -> AsyncIterator[LiveServer]:
    async with live_server(engine, apis=[*APIS, MESSAGES], **config) as server:
        yield server


def parsed(body: bytes) -> list[dict[str, Any]]:
    """The data of each event; fails unless its type stands on its `event:` line."""
    events = []
    for block in body.decode().strip("\n").split("\n\n"):
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


async def post(server: LiveServer, body: Any, path: str = "/v2/messages", method: str = "POST") -> tuple[int, dict[str, Any]]:
    async with request(server.port, method, path, body) as response:
        return response.status, json.loads(await response.body())


async def test_its_own_events_leave_from_the_announcement_to_the_ending() -> None:
    async with serving(ScriptedEngine(reply=text_reply("né!"))) as server:
        async with request(server.port, "POST", "/v2/messages", STREAMED) as response:
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            events = parsed(await response.body())
    assert [event["type"] for event in events] == [
        "message_start",
        *["content_block_delta"] * 3,
        "message_delta",
        "message_stop",
    ]
    assert "".join(event["delta"]["text"] for event in events[1:4]) == "né!"
    assert events[4]["delta"] == {"stop_reason": "end_turn"}


async def test_the_announcement_does_not_wait_for_the_first_token() -> None:
    engine = ScriptedEngine()
    async with serving(engine) as server, request(server.port, "POST", "/v2/messages", STREAMED) as response:
        assert [event["type"] for event in parsed(await response.chunk() or b"")] == ["message_start"]
        engine.finish((await engine.sequences())[0])
        assert parsed(await response.body())[-1]["type"] == "message_stop"


async def test_its_whole_answer_is_its_own_object() -> None:
    async with serving(ScriptedEngine(reply=text_reply("hello"))) as server:
        status, body = await post(server, BODY)
    assert (status, body["type"], body["content"]) == (200, "message", [{"type": "text", "text": "hello"}])


@pytest.mark.parametrize("stream", [True, False])
async def test_a_failure_after_admission_has_its_shape(stream: bool) -> None:
    engine = ScriptedEngine()

    async def die() -> None:
        await engine.sequences()
        engine.die()

    async with serving(engine) as server, anyio.create_task_group() as tasks:
        tasks.start_soon(die)
        async with request(server.port, "POST", "/v2/messages", {**BODY, "stream": stream}) as response:
            body = await response.body()
    error = parsed(body)[-1] if stream else json.loads(body)
    assert response.status == (200 if stream else 503)
    assert (error["type"], set(error["error"])) == ("error", {"type", "message"})


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v2/messages", {"messages": "no list", "max_tokens": 1}, 400),
        ("POST", "/v2/messages", {**BODY, "model": "other"}, 404),
        ("POST", "/v2/messages", {**BODY, "max_tokens": 10**6}, 400),
        ("POST", "/v2/messages/nothing", BODY, 404),
        ("GET", "/v2/messages", None, 405),
    ],
    ids=["type", "model", "length", "path", "method"],
)
async def test_what_is_refused_at_its_paths_has_its_shape(method: str, path: str, body: Any, status: int) -> None:
    async with serving(ScriptedEngine()) as server:
        answered, error = await post(server, body, path, method)
    assert answered == status
    assert (error["type"], set(error["error"])) == ("error", {"type", "message"})


async def test_a_refusal_by_the_engine_has_its_shape_before_the_200() -> None:
    engine = ScriptedEngine()
    engine.refuse = QueueFull("too many requests wait")
    async with serving(engine) as server:
        status, error = await post(server, STREAMED)
    assert (status, error["type"], error["error"]["message"]) == (429, "error", "too many requests wait")


async def test_a_missing_key_has_the_shape_of_the_api_it_is_missed_at() -> None:
    async with serving(ScriptedEngine(), api_keys=["secret"]) as server:
        assert set((await post(server, BODY))[1]) == {"type", "error"}
        assert set((await post(server, {"prompt": "a"}, "/v1/completions"))[1]) == {"error"}


async def test_other_paths_keep_their_shape() -> None:
    async with serving(ScriptedEngine()) as server:
        for path in ("/v1/completions", "/v2/messagesand", "/nothing"):
            status, error = await post(server, {}, path)
            assert status in (400, 404)
            assert set(error["error"]) == {"message", "type", "param", "code"}


async def test_its_readers_that_leave_free_their_sequences_and_its_requests_are_cancelled_by_id() -> None:
    engine = ScriptedEngine()
    async with serving(engine) as server:
        async with request(server.port, "POST", "/v2/messages", STREAMED) as response:
            [sequence] = await engine.sequences()
            await response.leave()
        assert await engine.aborts() == [sequence]
        async with request(server.port, "POST", "/v2/messages", STREAMED) as response:
            await engine.sequences(2)
            id = parsed(await response.chunk() or b"")[0]["message"]["id"]
            name = id.removeprefix("memo_")
            async with request(server.port, "POST", f"/v1/requests/{name}/cancel") as cancelled:
                assert cancelled.status == 200
            assert parsed(await response.body())[-1]["type"] == "message_stop"


async def test_what_its_requests_leave_out_is_the_models_recommendation() -> None:
    engine = ScriptedEngine(reply=text_reply("a"))
    async with live_server(engine, apis=[*APIS, MESSAGES], defaults={"temperature": 0.3, "max_tokens": 9}) as server:
        await post(server, BODY)
    [spec] = engine.specs.values()
    assert (spec.sampling.temperature, spec.max_tokens) == (0.3, 40)


async def test_its_answers_are_named_after_the_clients_request_id() -> None:
    async with serving(ScriptedEngine(reply=text_reply("a"))) as server:
        async with request(server.port, "POST", "/v2/messages", BODY, headers={"x-request-id": "mine"}) as response:
            assert json.loads(await response.body())["id"] == "memo_mine"
        assert response.headers["x-request-id"] == "mine"
