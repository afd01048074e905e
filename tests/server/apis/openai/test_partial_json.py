"""Values inside an answer of JSON, as events of their own behind the text that completes them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.live_server import live_server
from tests.support.raw_http import events, request
from tests.support.scripted_engine import ScriptedEngine, text_reply

pytestmark = pytest.mark.anyio

ANSWER = '{"steps": [{"say": "héllo", "n": 1.50}, {"say": "b"}], "done": true}'
VALUES = [
    (["steps", 0, "say"], '"héllo"'),
    (["steps", 0, "n"], "1.50"),
    (["steps", 0], '{"say": "héllo", "n": 1.50}'),
    (["steps", 1, "say"], '"b"'),
    (["steps", 1], '{"say": "b"}'),
    (["steps"], '[{"say": "héllo", "n": 1.50}, {"say": "b"}]'),
    (["done"], "true"),
]
OPTIONS = {"stream": True, "stream_options": {"include_partial_json": True}, "response_format": {"type": "json_object"}}
CHAT = {"messages": [{"role": "user", "content": "hi"}]}
COMPLETION = {"prompt": "hi"}


async def answered(path: str, body: dict[str, Any], text: str = ANSWER) -> list[Any]:
    async with live_server(ScriptedEngine(reply=text_reply(text))) as server:
        async with request(server.port, "POST", path, {**OPTIONS, **body}) as response:
            found = events(await response.body())
    assert found[-1] == "[DONE]"
    return found[:-1]


def content(chunk: Any) -> str:
    return "".join(choice.get("text", "") + choice.get("delta", {}).get("content", "") for choice in chunk["choices"])


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)])
async def test_each_value_follows_the_text_that_ends_it(path: str, body: dict[str, Any]) -> None:
    chunks = await answered(path, body)
    said, given = "", []
    for chunk in chunks:
        said += content(chunk)
        if "partial_json" in chunk:
            value = chunk["partial_json"]
            given.append((value["path"], value["value"]))
            assert chunk["choices"] == []
            text = next(text for path, text in VALUES if path == value["path"])
            assert text in said, "its text came before"
    assert said == ANSWER
    assert given == [(path, json.loads(text)) for path, text in VALUES]


async def test_an_answer_in_many_lines_breaks_no_event() -> None:
    chunks = await answered("/v1/completions", COMPLETION, json.dumps({"a": [{"b": 1}]}, indent=2))
    given = [chunk["partial_json"]["value"] for chunk in chunks if "partial_json" in chunk]
    assert given == [1, {"b": 1}, [{"b": 1}]]


async def test_choices_are_read_apart_and_usage_is_as_on_every_event() -> None:
    options = {"include_partial_json": True, "include_usage": True}
    chunks = await answered("/v1/completions", {**COMPLETION, "n": 2, "stream_options": options}, '{"a": 1}')
    aside = [chunk for chunk in chunks if "partial_json" in chunk]
    assert sorted(chunk["partial_json"]["index"] for chunk in aside) == [0, 1]
    assert all(chunk["usage"] is None for chunk in aside)


async def test_only_content_is_read() -> None:
    text = '<think>{"not": 1}</think>{"a": 1}'
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if false %}<think></think>{% endif %}"
    async with live_server(ScriptedEngine(reply=text_reply(text)), chat_template=template, reasoning_parser="qwen3") as server:
        async with request(server.port, "POST", "/v1/chat/completions", {**OPTIONS, **CHAT}) as response:
            chunks = events(await response.body())[:-1]
    assert [chunk["partial_json"]["path"] for chunk in chunks if "partial_json" in chunk] == [["a"]]


@pytest.mark.parametrize("body", [{"response_format": {"type": "text"}}, {"response_format": None, "guided_regex": "a+"}])
async def test_an_answer_that_need_not_be_json_is_refused_by_name(body: dict[str, Any]) -> None:
    async with live_server(ScriptedEngine()) as server:
        async with request(server.port, "POST", "/v1/completions", {**OPTIONS, **COMPLETION, **body}) as response:
            error = json.loads(await response.body())["error"]
    assert (response.status, error["param"]) == (400, "stream_options.include_partial_json")
