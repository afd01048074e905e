"""A stream ends exactly once, whatever happens to the engine, the server or the request."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest

from streamserve.types import TokenDelta
from tests.support.live_server import live_server
from tests.support.raw_http import events, request
from tests.support.scripted_engine import ScriptedEngine, text_reply

pytestmark = pytest.mark.anyio

COMPLETION = {"model": "scripted", "prompt": "say", "stream": True}
CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "say"}], "stream": True}


def ending(body: bytes) -> tuple[list[Any], dict[str, Any]]:
    """The events before an error, and the error; fails unless it is the only one and [DONE] follows it."""
    *chunks, error, done = events(body)
    assert done == "[DONE]"
    assert all("error" not in chunk for chunk in chunks)
    assert set(error["error"]) == {"message", "type", "param", "code"}
    return chunks, error["error"]


@pytest.mark.parametrize(("path", "body"), [("/v1/completions", COMPLETION), ("/v1/chat/completions", CHAT)])
@pytest.mark.parametrize("text", ["", "hello"])
async def test_an_engine_that_dies_ends_its_streams_with_an_error(path: str, body: dict[str, Any], text: str) -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server, request(server.port, "POST", path, body) as response:
        [sequence] = await engine.sequences()
        engine.say(sequence, text)
        engine.die()
        chunks, error = ending(await response.body())
    assert error["code"] == "engine_dead"
    said = "".join(
        chunk["choices"][0].get("text") or chunk["choices"][0].get("delta", {}).get("content", "") for chunk in chunks
    )
    assert said == text


async def test_a_text_that_is_held_back_still_comes_before_the_error() -> None:
    engine = ScriptedEngine()
    body = {**COMPLETION, "stop": ["END"]}
    async with live_server(engine) as server, request(server.port, "POST", "/v1/completions", body) as response:
        [sequence] = await engine.sequences()
        engine.say(sequence, "part EN")
        engine.fail(sequence, "slow_consumer", "the reader took nothing")
        chunks, error = ending(await response.body())
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "part EN"
    assert error["code"] == "slow_consumer"


async def test_one_failed_choice_ends_the_whole_answer_and_aborts_the_others() -> None:
    engine = ScriptedEngine()
    body = {**COMPLETION, "n": 2}
    async with live_server(engine) as server, request(server.port, "POST", "/v1/completions", body) as response:
        first, second = await engine.sequences(2)
        engine.say(first, "a")
        engine.fail(second, "slow_consumer", "the reader took nothing")
        chunks, error = ending(await response.body())
        assert await engine.aborts() == [first]
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["a"]
    assert error["code"] == "slow_consumer"


async def test_an_engine_that_dies_makes_plain_answers_503() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server, anyio.create_task_group() as tasks:

        async def ask() -> None:
            async with request(server.port, "POST", "/v1/completions", {"prompt": "a"}) as response:
                assert response.status == 503
                assert b'"engine_dead"' in await response.body()

        tasks.start_soon(ask)
        await engine.sequences()
        engine.die()


async def test_a_drained_server_lets_streams_finish_and_ends_the_rest_with_an_error() -> None:
    engine = ScriptedEngine()
    async with (
        live_server(engine) as server,
        request(server.port, "POST", "/v1/completions", COMPLETION) as quick,
        request(server.port, "POST", "/v1/completions", COMPLETION) as slow,
        anyio.create_task_group() as tasks,
    ):
        first, second = await engine.sequences(2)
        engine.say(second, "part")
        tasks.start_soon(server.service.drain, 0.2)
        await anyio.lowlevel.checkpoint()
        async with request(server.port, "POST", "/v1/completions", COMPLETION) as refused:
            assert refused.status == 503
            assert "retry-after" in refused.headers
        for path, status in (("/ready", 503), ("/health", 503), ("/live", 200)):
            async with request(server.port, "GET", path) as probe:
                assert probe.status == status
        engine.say(first, "whole")
        engine.finish(first)
        finished = events(await quick.body())
        chunks, error = ending(await slow.body())
    assert finished[-1] == "[DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in finished[:-1]) == "whole"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "part"
    assert error["code"] == "unavailable"
    assert engine.aborted == [second]


@pytest.mark.parametrize("by", ["answer", "header"])
async def test_a_cancelled_request_keeps_its_text_and_finishes_as_aborted(by: str) -> None:
    engine = ScriptedEngine()
    body = {**COMPLETION, "stream_options": {"include_usage": True}}
    headers = {"X-Request-Id": "job-1"}
    async with live_server(engine) as server:
        async with request(server.port, "POST", "/v1/completions", body, headers=headers) as response:
            [sequence] = await engine.sequences()
            engine.say(sequence, "part")
            name = events(await response.chunk() or b"")[0]["id"] if by == "answer" else "job-1"
            async with request(server.port, "POST", f"/v1/requests/{name}/cancel") as cancelled:
                assert cancelled.status == 200
            last, usage, done = events(await response.body())[-3:]
        assert engine.aborted == [sequence]
        async with request(server.port, "POST", f"/v1/requests/{name}/cancel") as again:
            assert again.status == 404
    assert last["choices"][0]["finish_reason"] == "abort"
    assert usage["usage"]["completion_tokens"] == 4
    assert done == "[DONE]"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_cancelled_before_it_was_admitted_is_told_so_and_not_to_try_again(stream: bool) -> None:
    engine = ScriptedEngine()
    engine.admit = anyio.Event()
    body = {**COMPLETION, "stream": stream, "request_id": "job-1"}

    async def refused() -> None:
        async with request(server.port, "POST", "/v1/completions", body) as response:
            assert response.status == 499
            assert json.loads(await response.body())["error"]["code"] == "aborted"

    async with live_server(engine) as server, anyio.create_task_group() as tasks:
        tasks.start_soon(refused)
        await engine.asked()
        async with request(server.port, "POST", "/v1/requests/job-1/cancel") as cancelled:
            assert cancelled.status == 200
        engine.admit.set()
    assert engine.aborted == list(engine.specs)


async def test_a_fault_of_our_own_in_the_middle_is_an_error_event_without_details() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server, request(server.port, "POST", "/v1/completions", COMPLETION) as response:
        [sequence] = await engine.sequences()
        engine.say(sequence, "a")
        engine.generate(sequence, TokenDelta([97], logprobs=["no logprobs"]))  # type: ignore[list-item]
        _, error = ending(await response.body())
        assert await engine.aborts() == [sequence]
    assert error["type"] == "internal_error"
    assert "no logprobs" not in error["message"]


async def test_a_stop_string_ends_the_choice_and_aborts_its_sequence() -> None:
    engine = ScriptedEngine()
    body = {**COMPLETION, "stop": ["END"]}
    async with live_server(engine) as server, request(server.port, "POST", "/v1/completions", body) as response:
        [sequence] = await engine.sequences()
        engine.say(sequence, "some EN text END more")
        *chunks, done = events(await response.body())
        assert await engine.aborts() == [sequence]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "some EN text "
    assert (chunks[-1]["choices"][0]["finish_reason"], chunks[-1]["choices"][0]["stop_reason"]) == ("stop", "END")
    assert done == "[DONE]"


async def test_a_finished_stream_leaves_nothing_behind() -> None:
    engine = ScriptedEngine(reply=text_reply("done"))
    async with live_server(engine) as server:
        async with request(server.port, "POST", "/v1/completions", COMPLETION) as response:
            await response.body()
        with anyio.fail_after(5):
            await server.service.delivery.active_requests.wait_idle()
    assert engine.aborted == []
