"""/v1/responses byte by byte: events, refusals, endings, the store."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest

from tests.server.apis.responses.raw import post
from tests.server.ws.session import session
from tests.support.live_server import live_server
from tests.support.raw_http import request
from tests.support.scripted_engine import ScriptedEngine, text_reply

pytestmark = pytest.mark.anyio

BODY: dict[str, Any] = {"model": "scripted", "input": "hi"}


def server_sent(body: bytes) -> list[dict[str, Any]]:
    """The events of a stream; fails unless each has its type on an `event:` line before its data."""
    found = []
    for block in body.decode().split("\n\n"):
        if block.strip("\n"):
            name, data = block.strip("\n").split("\n")
            event = json.loads(data.removeprefix("data: "))
            assert name == f"event: {event['type']}"
            found.append(event)
    return found


def nameless(value: Any) -> Any:
    """Without what differs from one response to the next."""
    if isinstance(value, dict):
        return {
            k: nameless(v) for k, v in value.items() if k not in ("id", "item_id", "created_at", "completed_at", "stream_id")
        }
    return [nameless(each) for each in value] if isinstance(value, list) else value


async def test_sse_and_websocket_carry_the_same_events() -> None:
    async with live_server(ScriptedEngine(reply=text_reply("wörld 你好"))) as server:
        async with request(server.port, "POST", "/v1/responses", {**BODY, "stream": True}) as response:
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert response.headers["cache-control"] == "no-cache, no-transform"
            over_sse = server_sent(await response.body())
        async with session(server.port, "/v1/responses") as client:
            await client.send({"type": "response.create", "stream_id": "s", **BODY})
            await client.ending("s")
    assert nameless(client.of("s")) == nameless(over_sse)
    assert [event["sequence_number"] for event in over_sse] == list(range(len(over_sse)))


async def test_without_a_stream_id_none_is_echoed() -> None:
    async with live_server(ScriptedEngine(reply=text_reply("a"))) as server, session(server.port, "/v1/responses") as client:
        await client.send({"type": "response.create", **BODY})
        assert (await client.ending(None))["type"] == "response.completed"
        assert all("stream_id" not in event for event in client.events)


async def test_silence_is_broken_by_blank_lines() -> None:
    engine = ScriptedEngine()
    async with live_server(engine, keepalive_s=0.05) as server:
        async with request(server.port, "POST", "/v1/responses", {**BODY, "stream": True}) as response:
            [sequence] = await engine.sequences()
            while await response.chunk() != b"\n\n":
                continue
            engine.say(sequence, "a")
            engine.finish(sequence)
            events = server_sent(await response.body())
    assert events[-1]["type"] == "response.completed"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "a" * 5000}, "input"),
        ({"thinking_token_budget": 0}, "thinking_token_budget"),
        ({"structured_outputs": {"regex": "a", "whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern"),
        ({"background": True, "store": False}, "background"),
        ({"input": []}, "input"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "item_reference"}]}, "input[0].id"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input[0].call_id"),
        ({"input": [{"type": "compaction", "encrypted_content": "gAAAA"}]}, "input[0].encrypted_content"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"previous_response_id": "resp_none"}, "previous_response_id"),
        ({"temperature": -1}, "temperature"),
        ({"max_output_tokens": "many"}, "max_output_tokens"),
        ({"top_logprobs": 99}, "top_logprobs"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_is_not_supported_is_refused_by_name_before_any_event(fields: dict[str, Any], param: str) -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server:
        status, body = await post(server, {**BODY, "stream": True, **fields})
    assert (status, body["error"]["param"]) == (400, param)
    assert engine.specs == {}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_tool_calls": 3}, "max_tool_calls"),
        ({"truncation": "auto"}, "truncation"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
        ({"reasoning": {"effort": "xhigh"}}, "reasoning.effort"),
        ({"include": ["reasoning.encrypted_content"]}, "include"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"text": {"format": {"type": "text", "zork": 1}}}, "text.format.zork"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_hints_are_answered_and_named_as_without_effect(fields: dict[str, Any], named: str) -> None:
    """Agents send these to every server, and got a 400 from this one."""
    async with live_server(ScriptedEngine(reply=text_reply("a"))) as server:
        async with request(server.port, "POST", "/v1/responses", {**BODY, **fields}) as response:
            assert response.status == 200
            assert response.headers["warning"] == f'299 streamserve "parameters ignored: {named}"'


async def test_a_finished_response_that_was_no_background_one_can_not_be_cancelled() -> None:
    async with live_server(ScriptedEngine(reply=text_reply("a"))) as server:
        _, made = await post(server, BODY)
        async with request(server.port, "POST", f"/v1/responses/{made['id']}/cancel") as response:
            assert response.status == 400
        async with request(server.port, "GET", f"/v1/responses/{made['id']}") as response:
            assert (await response.body()).find(b'"status":"completed"') > 0


async def test_a_response_shows_the_penalties_it_was_sampled_with() -> None:
    async with live_server(ScriptedEngine(reply=text_reply("a"))) as server:
        _, made = await post(server, {**BODY, "presence_penalty": 0.5, "frequency_penalty": -1})
    assert (made["presence_penalty"], made["frequency_penalty"]) == (0.5, -1)


async def test_an_unknown_field_is_warned_of() -> None:
    async with live_server(ScriptedEngine(reply=text_reply("a"))) as server:
        async with request(server.port, "POST", "/v1/responses", {**BODY, "nonsense": 1}) as response:
            assert "nonsense" in response.headers["warning"]


async def test_a_json_schema_reaches_the_engine() -> None:
    engine = ScriptedEngine(reply=text_reply("{}"))
    schema = {"type": "object"}
    async with live_server(engine) as server:
        await post(server, {**BODY, "text": {"format": {"type": "json_schema", "name": "x", "schema": schema}}})
    [spec] = engine.specs.values()
    assert spec.structured_outputs is not None
    assert spec.structured_outputs.json == schema


async def test_leaving_before_a_whole_response_is_done_ends_it() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server:
        connection = await anyio.connect_tcp("127.0.0.1", server.port)
        async with connection:
            body = json.dumps(BODY).encode()
            await connection.send(b"POST /v1/responses HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            [sequence] = await engine.sequences()
        assert await engine.aborts() == [sequence]


async def test_an_engine_that_dies_is_a_503_for_a_whole_response() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server:
        async with anyio.create_task_group() as tasks:

            async def die() -> None:
                await engine.sequences()
                engine.die()

            tasks.start_soon(die)
            status, body = await post(server, BODY)
    assert (status, body["error"]["code"]) == (503, "engine_dead")


async def test_what_is_not_stored_can_not_be_fetched() -> None:
    async with live_server(ScriptedEngine(reply=text_reply("a"))) as server:
        _, made = await post(server, {**BODY, "store": False})
        status, body = await post(server, None, f"/v1/responses/{made['id']}", "GET")
    assert made["store"] is False
    assert (status, body["error"]["code"]) == (404, "not_found")


async def test_a_stored_response_expires() -> None:
    async with live_server(ScriptedEngine(reply=text_reply("a")), response_ttl_s=0.05) as server:
        _, made = await post(server, BODY)
        assert (await post(server, None, f"/v1/responses/{made['id']}", "GET"))[0] == 200
        await anyio.sleep(0.1)
        assert (await post(server, None, f"/v1/responses/{made['id']}", "GET"))[0] == 404


async def test_a_running_response_can_not_be_continued_and_deleting_it_ends_it() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server:
        _, made = await post(server, {**BODY, "background": True})
        status, body = await post(server, {**BODY, "previous_response_id": made["id"]})
        assert (status, body["error"]["param"]) == (400, "previous_response_id")
        status, body = await post(server, None, f"/v1/responses/{made['id']}", "DELETE")
        assert (status, body["deleted"]) == (200, True)
        assert await engine.aborts() == await engine.sequences()


async def test_events_beyond_the_end_are_a_410() -> None:
    async with live_server(ScriptedEngine(reply=text_reply("a"))) as server:
        _, made = await post(server, BODY)
        status, body = await post(server, None, f"/v1/responses/{made['id']}?stream=true&starting_after=99", "GET")
        assert (status, body["error"]["code"]) == (410, "resume_gap")
        status, body = await post(server, None, f"/v1/responses/{made['id']}?stream=true&starting_after=x", "GET")
        assert (status, body["error"]["param"]) == (400, "starting_after")
        status, body = await post(server, None, f"/v1/responses/{made['id']}?stream=maybe", "GET")
        assert (status, body["error"]["param"]) == (400, "stream")


async def test_input_items_come_in_pages() -> None:
    items = [{"role": "user", "content": text} for text in "abc"]
    async with live_server(ScriptedEngine(reply=text_reply("a"))) as server:
        _, made = await post(server, {**BODY, "input": items})
        path = f"/v1/responses/{made['id']}/input_items"
        _, first = await post(server, None, f"{path}?order=asc&limit=2", "GET")
        _, second = await post(server, None, f"{path}?order=asc&limit=2&after={first['last_id']}", "GET")
        _, newest = await post(server, None, f"{path}?limit=1", "GET")
    assert [item["content"][0]["text"] for item in first["data"]] == ["a", "b"]
    assert (first["has_more"], second["has_more"]) == (True, False)
    assert [item["content"][0]["text"] for item in (*second["data"], *newest["data"])] == ["c", "c"]


async def test_a_response_over_a_dropped_socket_ends_unless_it_may_go_on() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server:
        async with session(server.port, "/v1/responses") as client:
            await client.send({"type": "response.create", "stream_id": "plain", **BODY})
            [plain] = await engine.sequences(1)
            await client.send({"type": "response.create", "stream_id": "kept", "resumable": True, **BODY})
            [_, kept] = await engine.sequences(2)
            engine.say(kept, "a")
            while (event := await client.receive())["type"] != "response.output_text.delta":
                if event["type"] == "response.created" and event["stream_id"] == "kept":
                    response_id = event["response"]["id"]
            seen = client.of("kept")
            await client.drop()
        assert await engine.aborts() == [plain]
        engine.say(kept, "b")
        engine.finish(kept)
        async with session(server.port) as client:
            after = seen[-1]["sequence_number"]
            await client.send(
                {"type": "response.resume", "response_id": response_id, "starting_after": after, "stream_id": "kept"}
            )
            assert (await client.ending("kept"))["response"]["output"][0]["content"][0]["text"] == "ab"
            numbers = [event["sequence_number"] for event in [*seen, *client.of("kept")]]
            assert numbers == list(range(len(numbers)))


async def test_cancelling_over_a_socket_keeps_the_text() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server, session(server.port, "/v1/responses") as client:
        await client.send({"type": "response.create", "stream_id": "s", **BODY})
        [sequence] = await engine.sequences()
        engine.say(sequence, "part")
        while (await client.receive()).get("delta") != "t":
            continue
        await client.send({"type": "response.cancel", "stream_id": "s"})
        ending = await client.ending("s")
    assert ending["type"] == "response.incomplete"
    assert ending["response"]["status"] == "cancelled"
    assert ending["response"]["output"][0]["content"][0]["text"] == "part"
    assert ending["response"]["usage"]["output_tokens"] == 4
