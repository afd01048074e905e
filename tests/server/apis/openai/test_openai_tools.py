"""Tools and parsed answers through the official client, unmodified; forced calls from a model that knows nothing of tools."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

from tests.server.apis.openai.tool_chats import TEMPLATE, TWO_CALLS
from tests.support.live_server import live_server
from tests.support.scripted_engine import ScriptedEngine, text_reply
from tests.support.tiny_server import TinyServer, tiny_server

pytestmark = pytest.mark.anyio

HI: Any = [{"role": "user", "content": "hi"}]


class Place(BaseModel):
    country: Literal["fr", "cn"]
    number: int = Field(ge=0, le=99)


class Weather(BaseModel):
    """How it is outside."""

    city: Literal["Paris", "北京"]
    places: list[Place] = Field(max_length=2)


class Clock(BaseModel):
    """What time it is."""

    zone: Literal["utc", "local"]


WEATHER: Any = openai.pydantic_function_tool(Weather, name="weather")
CLOCK: Any = openai.pydantic_function_tool(Clock, name="clock")


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def tiny(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TinyServer]:
    async with tiny_server(tmp_path_factory.mktemp("tiny-llama")) as server:
        yield server


def client_of(base_url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0)


async def test_a_named_call_parses_into_its_model(tiny: TinyServer) -> None:
    choice: Any = {"type": "function", "function": {"name": "weather"}}
    async with client_of(tiny.base_url) as client:
        for seed in range(4):
            answer = await client.chat.completions.parse(
                model="tiny", messages=HI, tools=[WEATHER, CLOCK], tool_choice=choice, seed=seed
            )
            [call] = answer.choices[0].message.tool_calls or []
            assert (call.function.name, answer.choices[0].message.content) == ("weather", None)
            assert isinstance(call.function.parsed_arguments, Weather)


async def test_required_calls_parse_into_their_models(tiny: TinyServer) -> None:
    names = set()
    async with client_of(tiny.base_url) as client:
        for seed in range(6):
            answer = await client.chat.completions.parse(
                model="tiny",
                messages=HI,
                tools=[WEATHER, CLOCK],
                tool_choice="required",
                parallel_tool_calls=False,
                seed=seed,
                logit_bias={"34": 4, "125": 4},
            )
            [call] = answer.choices[0].message.tool_calls or []
            assert isinstance(call.function.parsed_arguments, {"weather": Weather, "clock": Clock}[call.function.name])
            assert answer.choices[0].finish_reason == "tool_calls"
            names.add(call.function.name)
    assert names == {"weather", "clock"}


async def test_a_required_call_streams_through_the_helper(tiny: TinyServer) -> None:
    async with client_of(tiny.base_url) as client:
        async with client.chat.completions.stream(
            model="tiny", messages=HI, tools=[WEATHER, CLOCK], tool_choice="required", parallel_tool_calls=False, seed=1
        ) as stream:
            deltas = [event async for event in stream if event.type == "tool_calls.function.arguments.delta"]
            final = await stream.get_final_completion()
    [call] = final.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Weather | Clock)
    assert len(deltas) > 3
    assert "".join(event.arguments_delta for event in deltas) == call.function.arguments


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_response_format_parses_into_its_model(tiny: TinyServer, stream: bool) -> None:
    async with client_of(tiny.base_url) as client:
        if stream:
            async with client.chat.completions.stream(model="tiny", messages=HI, response_format=Weather, seed=2) as streamed:
                answer: Any = await streamed.get_final_completion()
        else:
            answer = await client.chat.completions.parse(model="tiny", messages=HI, response_format=Weather, seed=2)
    assert isinstance(answer.choices[0].message.parsed, Weather)


async def test_references_inside_of_a_tools_schema_are_followed(tiny: TinyServer) -> None:
    tree = {
        "type": "object",
        "properties": {"root": {"$ref": "#/$defs/node"}},
        "required": ["root"],
        "additionalProperties": False,
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"leaf": {"type": "boolean"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
                "required": ["leaf", "next"],
                "additionalProperties": False,
            }
        },
    }
    tools: Any = [{"type": "function", "function": {"name": name, "parameters": tree}} for name in ("a", "b")]
    async with client_of(tiny.base_url) as client:
        answer = await client.chat.completions.create(
            model="tiny", messages=HI, tools=tools, tool_choice="required", parallel_tool_calls=False, seed=1, temperature=0.5
        )
    [call] = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert isinstance(json.loads(call.function.arguments)["root"]["leaf"], bool)


async def test_a_tool_whose_schema_can_not_be_compiled_is_refused(tiny: TinyServer) -> None:
    tools: Any = [{"type": "function", "function": {"name": "a", "parameters": {"type": "object", "$ref": "#/nowhere"}}}]
    async with client_of(tiny.base_url) as client:
        with pytest.raises(openai.BadRequestError, match="can't be compiled"):
            await client.chat.completions.create(model="tiny", messages=HI, tools=tools, tool_choice="required")


async def test_free_calls_go_through_the_stream_helper_and_back_into_the_conversation() -> None:
    engine = ScriptedEngine(reply=text_reply("<think>\nhm\n</think>\n\n" + TWO_CALLS.replace("clock", "weather")))
    async with live_server(engine, chat_template=TEMPLATE) as server, client_of(f"{server.base_url}/v1") as client:
        tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
        async with client.chat.completions.stream(model="scripted", messages=HI, tools=tools) as stream:
            kinds = {event.type async for event in stream}
            message = (await stream.get_final_completion()).choices[0].message
        calls = message.tool_calls or []
        assert (message.content, [call.function.name for call in calls]) == ("Let me see.", ["weather", "weather"])
        assert json.loads(calls[0].function.arguments) == {"city": "北京"}
        assert "tool_calls.function.arguments.done" in kinds
        results: Any = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in calls]
        again = await client.chat.completions.create(
            model="scripted", messages=[*HI, message.model_dump(), *results], tools=tools
        )
    assert again.choices[0].message.tool_calls
    assert getattr(again.choices[0].message, "reasoning_content", None) == "hm"
