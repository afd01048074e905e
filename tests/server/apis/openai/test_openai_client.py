"""The official client, unmodified, over a real socket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from streamserve.types import SequenceSpec, TokenDelta
from streamserve.types.progress import PrefillProgress, QueueProgress
from tests.support.live_server import live_server
from tests.support.scripted_engine import ScriptedEngine, text_reply

pytestmark = pytest.mark.anyio

HI: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]


@asynccontextmanager
async def client(engine: ScriptedEngine | None = None, *, key: str = "sesame") -> AsyncIterator[openai.AsyncOpenAI]:
    """A client of a server that says "héllo"."""
    async with live_server(engine or ScriptedEngine(reply=text_reply("héllo")), api_keys=["sesame"]) as server:
        async with openai.AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key=key, max_retries=0) as made:
            yield made


async def test_models() -> None:
    async with client() as openai_client:
        listed = await openai_client.models.list()
        shown = await openai_client.models.retrieve("scripted")
    assert [model.id for model in listed.data] == ["scripted"]
    assert shown.id == "scripted"


async def test_a_completion() -> None:
    async with client() as openai_client:
        answer = await openai_client.completions.create(model="scripted", prompt=["a", "b"], logprobs=1, echo=True)
    assert [(choice.index, choice.text, choice.finish_reason) for choice in answer.choices] == [
        (0, "ahéllo", "stop"),
        (1, "bhéllo", "stop"),
    ]
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.text_offset == [0, 1, 2, 2, 3, 4, 5, 6]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 14)


async def test_a_streamed_completion() -> None:
    async with client() as openai_client:
        stream = await openai_client.completions.create(model="scripted", prompt="a", stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == "héllo"


async def test_a_chat() -> None:
    async with client() as openai_client:
        answer = await openai_client.chat.completions.create(
            model="scripted", messages=[{"role": "user", "content": "hi"}], n=2, logprobs=True, top_logprobs=2
        )
    assert [choice.message.content for choice in answer.choices] == ["héllo", "héllo"]
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].logprobs is not None
    entry = (answer.choices[0].logprobs.content or [])[1]
    assert (entry.bytes, entry.logprob, len(entry.top_logprobs)) == ([0xC3], -0.25, 2)


async def test_a_streamed_chat_with_usage() -> None:
    async with client() as openai_client:
        stream = await openai_client.chat.completions.create(
            model="scripted",
            messages=[{"role": "user", "content": "hi"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "héllo"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 7


async def test_the_stream_helper_accumulates_the_message() -> None:
    async with client() as openai_client:
        async with openai_client.chat.completions.stream(
            model="scripted", messages=[{"role": "user", "content": "hi"}]
        ) as stream:
            kinds = {event.type async for event in stream}
            final = await stream.get_final_completion()
    assert final.choices[0].message.content == "héllo"
    assert {"chunk", "content.delta", "content.done"} <= kinds


ASIDE: dict[str, Any] = {"include_usage": True, "include_progress": True, "include_partial_json": True}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
JSON: dict[str, Any] = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}


def says_city(spec: SequenceSpec) -> list[TokenDelta]:
    progress = [QueueProgress(1), PrefillProgress(9, 0, 9, 1.0)]
    return [*(TokenDelta([], progress=each) for each in progress), *text_reply('{"city": "Xi\\u2019an"}')(spec)]


async def test_progress_partial_json_and_ids_pass_its_streams_by() -> None:
    async with client(ScriptedEngine(reply=says_city)) as openai_client:
        stream = await openai_client.chat.completions.create(
            model="scripted", messages=HI, stream=True, stream_options=ASIDE, response_format=JSON,
            extra_headers={"X-Stream-Resume": "1"},
        )  # fmt: skip
        chunks = [chunk async for chunk in stream]
        aside = [chunk.model_extra or {} for chunk in chunks if not chunk.choices and chunk.usage is None]
        assert [each["progress"]["state"] for each in aside[:2]] == ["queued", "prefill"]
        assert [each["partial_json"] for each in aside[2:]] == [{"index": 0, "path": ["city"], "value": "Xi\u2019an"}]
        text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        assert json.loads(text) == {"city": "Xi\u2019an"}
        assert chunks[-1].usage is not None
        async with openai_client.chat.completions.stream(
            model="scripted", messages=HI, stream_options=ASIDE, extra_body={"response_format": JSON}
        ) as helper:
            async for _ in helper:
                continue
            assert (await helper.get_final_completion()).choices[0].message.content == text
        completion = await openai_client.completions.create(
            model="scripted", prompt="a", stream=True, stream_options=ASIDE, extra_body={"response_format": JSON}
        )
        pieces = [choice.text async for piece in completion for choice in piece.choices]
        assert "".join(pieces) == text


async def test_its_errors_are_the_ones_it_knows() -> None:
    async with client() as openai_client:
        with pytest.raises(openai.NotFoundError) as missing:
            await openai_client.completions.create(model="other", prompt="a")
        with pytest.raises(openai.BadRequestError) as bad:
            await openai_client.completions.create(model="scripted", prompt="a", temperature=-1)
    assert missing.value.code == "model_not_found"
    assert (bad.value.code, bad.value.param) == ("invalid_value", "temperature")
    async with client(key="wrong") as stranger:
        with pytest.raises(openai.AuthenticationError) as refused:
            await stranger.models.list()
    assert refused.value.code == "invalid_api_key"


async def test_an_error_in_the_middle_of_a_stream_is_raised() -> None:
    engine = ScriptedEngine()
    async with client(engine) as openai_client:
        stream = await openai_client.completions.create(model="scripted", prompt="a", stream=True)
        [sequence] = await engine.sequences()
        engine.say(sequence, "part")
        engine.die()
        said = ""
        with pytest.raises(openai.APIError, match="engine process ended"):
            async for chunk in stream:
                said += chunk.choices[0].text
    assert said == "part"


async def test_leaving_a_stream_early_aborts_it() -> None:
    engine = ScriptedEngine()
    async with client(engine) as openai_client:
        stream = await openai_client.completions.create(model="scripted", prompt="a", stream=True)
        [sequence] = await engine.sequences()
        engine.say(sequence, "part")
        async for _ in stream:
            break
        await stream.close()
        assert await engine.aborts() == [sequence]
