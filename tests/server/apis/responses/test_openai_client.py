"""The Responses API through the official client, over HTTP and over its WebSocket."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import openai
import pytest

from streamserve.types import SequenceSpec, TokenDelta
from tests.server.apis.responses.client import openai_client
from tests.support.live_server import live_server
from tests.support.scripted_engine import ScriptedEngine, text_reply

pytestmark = pytest.mark.anyio

KINDS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    *["response.output_text.delta"] * 5,
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]


def prompt_of(engine: ScriptedEngine, place: int) -> str:
    return bytes(list(engine.specs.values())[place].prompt_token_ids).decode()


async def test_a_response_is_answered_kept_listed_and_deleted() -> None:
    async with live_server(ScriptedEngine(reply=text_reply("hello"))) as server, openai_client(server.base_url) as client:
        made = await client.responses.create(
            model="scripted",
            input="hi",
            instructions="be brief",
            metadata={"for": "test"},
            temperature=0.5,
            top_p=0.9,
            max_output_tokens=50,
        )
        assert made.output_text == "hello"
        assert (made.status, made.instructions, made.metadata) == ("completed", "be brief", {"for": "test"})
        assert (made.temperature, made.top_p, made.max_output_tokens) == (0.5, 0.9, 50)
        assert made.usage is not None
        assert made.usage.output_tokens == 6
        assert made.usage.total_tokens == made.usage.input_tokens + 6
        assert await client.responses.retrieve(made.id) == made
        items: list[Any] = (await client.responses.input_items.list(made.id)).data
        assert [(item.type, item.content[0].text) for item in items] == [("message", "hi")]
        await client.responses.delete(made.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(made.id)


async def test_a_streamed_response_brings_every_event_in_order_and_can_be_replayed_from_any() -> None:
    async with live_server(ScriptedEngine(reply=text_reply("hello"))) as server, openai_client(server.base_url) as client:
        events = [event async for event in await client.responses.create(model="scripted", input="hi", stream=True)]
        assert [event.type for event in events] == KINDS
        assert [event.sequence_number for event in events] == list(range(len(KINDS)))
        assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "hello"
        last = events[-1]
        assert last.type == "response.completed"
        assert last.response.output_text == "hello"
        for after in (0, 6, len(KINDS) - 2):
            replay = await client.responses.retrieve(last.response.id, stream=True, starting_after=after)
            assert [event async for event in replay] == events[after + 1 :]


async def test_the_stream_helper_collects_the_final_response() -> None:
    async with live_server(ScriptedEngine(reply=text_reply("hello"))) as server, openai_client(server.base_url) as client:
        async with client.responses.stream(model="scripted", input="hi") as stream:
            final = await stream.get_final_response()
    assert final.output_text == "hello"


async def test_a_conversation_goes_on_from_the_previous_response_without_its_instructions() -> None:
    engine = ScriptedEngine(reply=text_reply("four"))
    async with live_server(engine) as server, openai_client(server.base_url) as client:
        first = await client.responses.create(model="scripted", input="2+2?", instructions="one")
        second = await client.responses.create(
            model="scripted", input="and 3+3?", instructions="two", previous_response_id=first.id
        )
        await client.responses.create(model="scripted", input="why?", previous_response_id=second.id)
    turns = "<user>2+2?\n<assistant>four\n<user>and 3+3?\n<assistant>"
    assert prompt_of(engine, 1) == "<system>two\n" + turns
    assert prompt_of(engine, 2) == turns + "four\n<user>why?\n<assistant>"
    assert second.previous_response_id == first.id


async def test_input_items_become_messages() -> None:
    engine = ScriptedEngine(reply=text_reply("ok"))
    items: list[Any] = [
        {"role": "developer", "content": "rules"},
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
        },
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "c", "annotations": []}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "function_call", "call_id": "call_1", "name": "add", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "5"},
    ]
    async with live_server(engine) as server, openai_client(server.base_url) as client:
        await client.responses.create(model="scripted", input=items)
    assert prompt_of(engine, 0) == "<system>rules\n<user>ab\n<assistant>c\n<tool>5\n<assistant>"


async def test_an_answer_that_runs_out_of_tokens_is_incomplete() -> None:
    async with live_server(ScriptedEngine(reply=text_reply("hel", "length"))) as server:
        async with openai_client(server.base_url) as client:
            made = await client.responses.create(model="scripted", input="hi", max_output_tokens=3)
    assert made.status == "incomplete"
    assert made.incomplete_details is not None
    assert made.incomplete_details.reason == "max_output_tokens"
    assert made.output_text == "hel"


async def test_logprobs_are_told_when_asked_for() -> None:
    async with live_server(ScriptedEngine(reply=text_reply("ab"))) as server, openai_client(server.base_url) as client:
        made = await client.responses.create(
            model="scripted", input="hi", include=["message.output_text.logprobs"], top_logprobs=2
        )
    message: Any = made.output[0]
    [part] = message.content
    assert [entry.token for entry in part.logprobs][:2] == ["a", "b"]
    assert [top.token for top in part.logprobs[0].top_logprobs] == ["a", "x"]


async def test_a_background_response_goes_on_alone_and_can_be_followed_and_cancelled() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server, openai_client(server.base_url) as client:
        made = await client.responses.create(model="scripted", input="hi", background=True)
        assert (made.status, made.background) == ("in_progress", True)
        [sequence] = await engine.sequences()
        engine.say(sequence, "part")
        events = await client.responses.retrieve(made.id, stream=True)
        async for event in events:
            if event.type == "response.output_text.delta" and event.delta == "t":
                break
        await events.close()
        assert engine.aborted == []
        cancelled = await client.responses.cancel(made.id)
        assert cancelled.status == "cancelled"
        assert cancelled.output_text == "part"
        assert cancelled.usage is not None
        assert cancelled.usage.output_tokens == 4
        assert engine.aborted == [sequence]
        last = [event async for event in await client.responses.retrieve(made.id, stream=True)][-1]
        assert last.type == "response.incomplete"
        assert last.response.status == "cancelled"
        assert await client.responses.cancel(made.id) == cancelled


async def test_leaving_a_streamed_response_ends_it() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server, openai_client(server.base_url) as client:
        stream = await client.responses.create(model="scripted", input="hi", stream=True)
        [sequence] = await engine.sequences()
        await stream.close()
        assert await engine.aborts() == [sequence]


async def test_an_engine_that_dies_fails_the_response() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server, openai_client(server.base_url) as client:
        stream = await client.responses.create(model="scripted", input="hi", stream=True)
        [sequence] = await engine.sequences()
        engine.say(sequence, "part")
        engine.die()
        last = [event async for event in stream][-1]
        assert last.type == "response.failed"
        assert last.response.status == "failed"
        assert last.response.error is not None
        assert last.response.output_text == "part"


async def test_the_client_streams_over_its_websocket() -> None:
    engine = ScriptedEngine(reply=text_reply("hello"))
    async with live_server(engine, api_keys=["secret"]) as server:
        async with openai_client(server.base_url, api_key="secret") as client, client.responses.connect() as connection:
            seen: dict[str, list[str]] = {"a": [], "b": []}
            for stream_id in seen:
                await connection.response.create(model="scripted", input="hi", stream_id=stream_id)
            async for event in connection:
                seen[event.stream_id or ""].append(event.type)
                if sum(kinds[-1:] == ["response.completed"] for kinds in seen.values()) == 2:
                    break
            assert seen == {"a": KINDS, "b": KINDS}
            await connection.response.create(model="scripted", input="hi", previous_response_id="resp_none")
            error: Any = await connection.recv()
            assert (error.type, error.error.code) == ("error", "previous_response_not_found")


def calls_a_tool(spec: SequenceSpec) -> list[TokenDelta]:
    """What a model says that was forced to call `add`."""
    return list(text_reply('[{"name": "add", "parameters": {"a": 1}}]')(spec))


async def test_a_demanded_function_call_is_an_item_and_its_output_continues_the_conversation() -> None:
    engine = ScriptedEngine(reply=calls_a_tool)
    tool: Any = {"type": "function", "name": "add", "parameters": {"type": "object", "properties": {}}, "strict": False}
    async with live_server(engine) as server, openai_client(server.base_url) as client:
        stream = await client.responses.create(
            model="scripted", input="1+2?", tools=[tool], tool_choice="required", stream=True
        )
        events = [event async for event in stream]
        last = events[-1]
        assert last.type == "response.completed"
        [call] = last.response.output
        assert call.type == "function_call"
        assert (call.name, call.arguments, call.status) == ("add", '{"a": 1}', "completed")
        deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
        assert "".join(deltas) == call.arguments
        engine.reply = text_reply("three")
        answer = await client.responses.create(
            model="scripted",
            input=[{"type": "function_call_output", "call_id": call.call_id, "output": "3"}],
            previous_response_id=last.response.id,
        )
        assert answer.output_text == "three"


async def test_of_the_tools_that_are_told_only_allowed_ones_can_be_called() -> None:
    engine = ScriptedEngine(reply=calls_a_tool)
    tools: list[Any] = [
        {"type": "function", "name": name, "parameters": {"type": "object", "properties": {}}, "strict": False}
        for name in ("add", "multiply")
    ]
    allowed: Any = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "add"}]}
    async with live_server(engine) as server, openai_client(server.base_url) as client:
        answer = await client.responses.create(model="scripted", input="1+2?", tools=tools, tool_choice=allowed)
        [call] = answer.output
        assert call.type == "function_call"
        assert call.name == "add"
        assert answer.tool_choice.type == "allowed_tools"  # type: ignore[union-attr]
        [spec] = engine.specs.values()
        assert spec.structured_outputs is not None
        assert "multiply" not in str(spec.structured_outputs.json)


async def test_reasoning_is_an_item_before_the_message() -> None:
    engine = ScriptedEngine(reply=text_reply("<think>hmm</think>\n\nso"))
    async with live_server(engine, reasoning_parser="qwen3") as server, openai_client(server.base_url) as client:
        events = [event async for event in await client.responses.create(model="scripted", input="hi", stream=True)]
        last = events[-1]
        assert last.type == "response.completed"
        thought, message = last.response.output
        assert thought.type == "reasoning"
        assert thought.content is not None
        assert thought.content[0].text.strip() == "hmm"
        assert last.response.output_text.strip() == "so"
        assert message.type == "message"
        assert last.response.usage is not None
        assert 0 < last.response.usage.output_tokens_details.reasoning_tokens < last.response.usage.output_tokens
        opened = [event.item.type for event in events if event.type == "response.output_item.added"]
        assert opened == ["reasoning", "message"]


async def test_a_background_response_that_nobody_reads_is_not_held_back() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server, openai_client(server.base_url) as client:
        made = await client.responses.create(model="scripted", input="hi", background=True)
        [sequence] = await engine.sequences()
        with anyio.fail_after(10):
            for _ in range(1000):
                engine.generate(sequence, TokenDelta([ord("x")]))
                await anyio.lowlevel.checkpoint()
        assert engine.paused == []
        engine.finish(sequence)
        last = [event async for event in await client.responses.retrieve(made.id, stream=True)][-1]
        assert last.type == "response.completed"
        assert len(last.response.output_text) == 1000
