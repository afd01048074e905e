"""Anthropic's Messages API: its own SDK, unmodified, over a socket, against an engine that says what a model would."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import pytest
from anthropic import AsyncAnthropic

from streamserve_client import SSEDecoder
from tests.server.apis.openai.tool_chats import ONE_CALL, TEMPLATE, TWO_CALLS
from tests.server.ws.session import session
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.live_server import LiveServer, live_server
from tests.support.raw_http import request
from tests.support.scripted_engine import ScriptedEngine, text_reply

pytestmark = pytest.mark.anyio

USER = [{"role": "user", "content": "say"}]
WEATHER = {
    "name": "weather",
    "description": "How it is outside.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CLOCK = {"name": "clock", "input_schema": {"type": "object", "properties": {}}}
TOOLS = [WEATHER, CLOCK]
THINKING = {"type": "enabled", "budget_tokens": 2048}


@asynccontextmanager
async def client_of(engine: ScriptedEngine, **config: Any) -> AsyncIterator[AsyncAnthropic]:
    async with live_server(engine, **{"chat_template": TEMPLATE, **config}) as server:
        async with client_at(server) as client:
            yield client


def client_at(server: LiveServer, key: str = "any") -> AsyncAnthropic:
    return AsyncAnthropic(base_url=server.base_url, api_key=key, max_retries=0)


async def whole(text: str, reason: Any = "stop", **body: Any) -> tuple[Any, ScriptedEngine]:
    engine = ScriptedEngine(reply=text_reply(text, reason))
    async with client_of(engine) as client:
        message = await client.messages.create(**{"model": "scripted", "max_tokens": 500, "messages": USER, **body})
    return message, engine


async def streamed(text: str, reason: Any = "stop", **body: Any) -> tuple[Any, list[str]]:
    """The message that the SDK puts together, and the types of the events."""
    async with client_of(ScriptedEngine(reply=text_reply(text, reason))) as client:
        async with client.messages.stream(**{"model": "scripted", "max_tokens": 500, "messages": USER, **body}) as stream:
            kinds = [event.type async for event in stream]
            return await stream.get_final_message(), kinds


def prompt_of(engine: ScriptedEngine) -> str:
    [spec] = engine.specs.values()
    return byte_tokenizer().decode(spec.prompt_token_ids)


def parts(message: Any) -> list[Any]:
    """The content, without what differs from answer to answer."""
    return [block.model_dump(exclude={"id", "citations", "caller"}, exclude_none=True) for block in message.content]


async def test_a_message_is_streamed_in_the_events_that_are_documented() -> None:
    message, kinds = await streamed("né!")
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert set(kinds[2:-3]) == {"content_block_delta", "text"}, "the SDK adds an event of its own to each text"
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert parts(message) == [{"type": "text", "text": "né!"}]
    assert (message.stop_reason, message.stop_sequence, message.role, message.model) == (
        "end_turn",
        None,
        "assistant",
        "scripted",
    )
    assert message.usage.input_tokens > 0
    assert message.usage.output_tokens == 5


@pytest.mark.parametrize(
    ("text", "reason", "body"),
    [
        ("né!", "stop", {}),
        ("cut", "length", {}),
        (TWO_CALLS, "stop", {"tools": TOOLS}),
        (ONE_CALL[:-20], "length", {"tools": TOOLS}),
        ("<think>\nhm\n</think>\n\nyes", "stop", {"thinking": THINKING}),
        ("<think>\nhm\n</think>\n\n" + ONE_CALL, "stop", {"thinking": THINKING, "tools": TOOLS}),
        ("", "stop", {}),
    ],
    ids=["text", "cut", "calls", "cut call", "thinking", "thinking and call", "nothing"],
)
async def test_a_streamed_message_is_the_whole_one(text: str, reason: str, body: dict[str, Any]) -> None:
    one, _ = await whole(text, reason, **body)
    other, _ = await streamed(text, reason, **body)
    assert parts(one) == parts(other)
    assert (one.stop_reason, one.usage) == (other.stop_reason, other.usage)


async def test_calls_are_blocks_with_their_input() -> None:
    message, engine = await whole(TWO_CALLS, tools=TOOLS)
    assert message.stop_reason == "tool_use"
    assert parts(message) == [
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "name": "weather", "input": {"city": "北京"}},
        {"type": "tool_use", "name": "clock", "input": {}},
    ]
    assert message.content[1].id.startswith("toolu_")
    assert '"name": "weather"' in prompt_of(engine)


async def test_a_call_that_was_cut_ends_the_message_as_cut() -> None:
    message, _ = await streamed(ONE_CALL[:-20], "length", tools=TOOLS)
    assert message.stop_reason == "max_tokens"


async def test_thinking_is_a_block_of_its_own_where_it_is_asked_for() -> None:
    text = "<think>\nhm\n</think>\n\nyes"
    message, engine = await whole(text, thinking=THINKING)
    assert [block["type"] for block in parts(message)] == ["thinking", "text"]
    assert message.content[0].thinking.strip() == "hm"
    assert "</think>" not in prompt_of(engine)
    _, engine = await whole("yes")
    assert prompt_of(engine).endswith("<think>\n\n</think>\n\n"), "the template turns it off"


async def test_a_stop_sequence_is_named() -> None:
    message, _ = await whole("one two three", stop_sequences=["two"])
    assert (message.content[0].text, message.stop_reason, message.stop_sequence) == ("one ", "stop_sequence", "two")


async def test_a_conversation_with_tools_reads_as_the_template_writes_it() -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "How is "}, {"type": "text", "text": "Beijing?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "x"},
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "北京"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "sunny"}]},
                {"type": "text", "text": "And now?", "cache_control": {"type": "ephemeral"}},
            ],
        },
    ]
    system = [
        {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "Be kind."},
    ]
    _, engine = await whole("a", messages=messages, system=system, tools=TOOLS, metadata={"user_id": "me"})
    prompt = prompt_of(engine)
    assert "<system>Be brief.\n\nBe kind.<user>How is \n\nBeijing?<assistant>Let me see.<tool_call>" in prompt
    assert '"city": "北京"' in prompt
    assert "<tool>sunny<user>And now?<assistant>" in prompt


async def test_the_beginning_of_an_answer_is_continued() -> None:
    _, engine = await whole("a", messages=[*USER, {"role": "assistant", "content": "Once upon"}])
    assert prompt_of(engine).endswith("<assistant>Once upon")


async def test_a_tool_can_be_demanded() -> None:
    message, engine = await whole(ONE_CALL, tools=TOOLS, tool_choice={"type": "tool", "name": "weather"})
    assert parts(message) == [{"type": "tool_use", "name": "weather", "input": {"city": "北京"}}]
    assert message.stop_reason == "tool_use"
    [spec] = engine.specs.values()
    assert spec.structured_outputs is not None


async def test_more_tokens_than_the_context_has_room_for_are_as_many_as_it_has() -> None:
    message, engine = await whole("a", max_tokens=20_000)
    [spec] = engine.specs.values()
    assert spec.max_tokens == 4096 - len(spec.prompt_token_ids)
    assert message.content[0].text == "a"


async def test_tokens_are_counted_as_they_would_be_read() -> None:
    engine = ScriptedEngine(reply=text_reply("a"))
    async with client_of(engine) as client:
        body: dict[str, Any] = {"model": "scripted", "messages": USER, "system": "Be brief.", "tools": TOOLS}
        counted = await client.messages.count_tokens(**body)
        message = await client.messages.create(max_tokens=9, **body)
    assert counted.input_tokens == message.usage.input_tokens


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            ["messages[0].content[0]", "text only"],
        ),
        ({"messages": []}, ["messages"]),
        ({"messages": [{"role": "robot", "content": "x"}]}, ["messages[0].role"]),
        ({"messages": [{"role": "user", "content": 7}]}, ["messages[0].content"]),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, ["tools[0].type", "web_search"]),
        ({"tools": [{"name": "a"}]}, ["tools[0].input_schema"]),
        ({"tools": TOOLS, "tool_choice": {"type": "tool"}}, ["tool_choice.name"]),
        ({"thinking": {"type": "maybe"}}, ["thinking.type"]),
        ({"extra_body": {"mcp_servers": [{"url": "x"}]}}, ["mcp_servers"]),
        ({"stop_sequences": [""]}, ["stop_sequences"]),
        ({"max_tokens": 0}, ["max_tokens"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
async def test_what_cannot_be_done_is_refused_by_name(body: dict[str, Any], words: list[str]) -> None:
    async with client_of(ScriptedEngine(reply=text_reply("a"))) as client:
        with pytest.raises(anthropic.BadRequestError) as refused:
            await client.messages.create(**{"model": "scripted", "max_tokens": 9, "messages": USER, **body})
    error = refused.value.body
    assert isinstance(error, dict)
    assert error["error"]["type"] == "invalid_request_error"
    assert all(word in error["error"]["message"] for word in words), error


async def test_the_key_may_come_in_the_header_that_this_api_has() -> None:
    engine = ScriptedEngine(reply=text_reply("a"))
    async with live_server(engine, chat_template=TEMPLATE, api_keys=["right"]) as server:
        async with client_at(server, "right") as client:
            assert (await client.messages.create(model="scripted", max_tokens=9, messages=USER)).content
        async with client_at(server, "wrong") as client:
            with pytest.raises(anthropic.AuthenticationError):
                await client.messages.create(model="scripted", max_tokens=9, messages=USER)
        async with client_at(server, "right") as client:
            with pytest.raises(anthropic.NotFoundError):
                await client.messages.create(model="other", max_tokens=9, messages=USER)


async def test_hints_are_named_in_the_warning_and_the_request_has_a_name() -> None:
    body: dict[str, Any] = {"model": "scripted", "max_tokens": 9, "messages": USER, "betas": ["x"]}
    body["thinking"] = {**THINKING, "display": "omitted"}
    async with live_server(ScriptedEngine(reply=text_reply("a")), chat_template=TEMPLATE) as server:
        async with request(server.port, "POST", "/v1/messages", body) as response:
            assert json.loads(await response.body())["id"] == response.headers["request-id"]
    assert response.headers["warning"] == '299 streamserve "parameters ignored: betas, thinking.display"'


async def test_a_stream_that_fails_ends_with_an_error_event() -> None:
    engine = ScriptedEngine()
    async with client_of(engine) as client:
        with pytest.raises(anthropic.APIStatusError) as failed:
            async with client.messages.stream(model="scripted", max_tokens=9, messages=USER) as stream:
                engine.die()
                await stream.get_final_message()
    assert isinstance(failed.value.body, dict)
    assert failed.value.body["error"]["type"] == "overloaded_error"


@pytest.mark.parametrize("way", ["post", "get", "socket"])
async def test_a_message_that_can_be_continued_goes_on_behind_any_event(way: str) -> None:
    body = {"model": "scripted", "max_tokens": 500, "messages": USER, "stream": True, "tools": TOOLS}
    engine = ScriptedEngine(reply=text_reply("So. " + TWO_CALLS))
    async with live_server(engine, chat_template=TEMPLATE) as server:
        async with request(server.port, "POST", "/v1/messages", body, headers={"X-Stream-Resume": "1"}) as response:
            events = SSEDecoder().feed(await response.body())
            stream_id = response.headers["x-stream-id"]
        assert [event.id for event in events] == [f"{stream_id}:{number}" for number in range(len(events))]
        whole = [json.loads(event.data) for event in events]
        assert [event["type"] for event in (whole[0], whole[-1])] == ["message_start", "message_stop"]
        for number in (0, 1, len(events) // 2, len(events) - 2):
            if way == "socket":
                async with session(server.port) as socket:
                    await socket.send({"type": "response.resume", "response_id": stream_id, "starting_after": number})
                    rest = [await socket.receive() for _ in whole[number + 1 :]]
                assert [each.pop("sequence_number") for each in rest] == list(range(number + 1, len(events)))
            else:
                method, path = ("POST", "/v1/messages") if way == "post" else ("GET", f"/v1/streams/{stream_id}")
                async with request(server.port, method, path, headers={"Last-Event-ID": events[number].id}) as response:
                    rest = [json.loads(event.data) for event in SSEDecoder().feed(await response.body())]
            assert rest == whole[number + 1 :]
        async with request(server.port, "POST", "/v1/messages", body) as response:
            assert "x-stream-id" not in response.headers
