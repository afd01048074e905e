"""Reasoning that ends at its budget, or when it is told to: over all APIs, on a random model that never ends it by itself."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.server.ws.session import session
from tests.support.raw_http import events, request
from tests.support.tiny_server import tiny_server

pytestmark = pytest.mark.anyio

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}{% if add_generation_prompt %}<think>{% endif %}"
CLOSE = list(b"</think>")
MESSAGES = [{"role": "user", "content": "why"}]
CHAT: dict[str, Any] = {"messages": MESSAGES, "ignore_eos": True, "temperature": 0, "max_tokens": 40, "return_token_ids": True}
SCHEMA = {"type": "json_schema", "json_schema": {"schema": {"enum": [1, 2]}}}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def port(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[int]:
    folder = tmp_path_factory.mktemp("tiny-llama")
    async with tiny_server(folder, chat_template=TEMPLATE, reasoning_parser="qwen3", max_streams_per_socket=4) as server:
        yield server.port


async def post(port: int, path: str, body: dict[str, Any], status: int = 200) -> Any:
    async with request(port, "POST", path, body) as response:
        answer = await response.body()
        assert response.status == status, answer
    return events(answer) if body.get("stream") else json.loads(answer)


async def chat(port: int, **changes: Any) -> Any:
    return await post(port, "/v1/chat/completions", CHAT | changes)


@pytest.mark.parametrize("budget", [0, 1, 9])
async def test_reasoning_has_as_many_tokens_as_its_budget_streamed_and_whole(port: int, budget: int) -> None:
    [choice] = (await chat(port, thinking_token_budget=budget))["choices"]
    assert choice["token_ids"][budget : budget + 8] == CLOSE
    assert len(choice["token_ids"]) == 40
    free = (await chat(port))["choices"][0]["token_ids"]
    assert choice["token_ids"][:budget] == free[:budget]
    *chunks, _ = await chat(port, reasoning={"max_tokens": budget}, stream=True)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert [token for chunk in chunks for token in chunk["choices"][0].get("token_ids") or []] == choice["token_ids"]
    for name in ("content", "reasoning"):
        assert "".join(delta.get(name) or "" for delta in deltas) == (choice["message"][name] or "")


async def test_a_budget_of_minus_one_is_none(port: int) -> None:
    [choice] = (await chat(port, thinking_token_budget=-1))["choices"]
    assert choice["message"]["content"] is None


async def test_each_choice_has_the_whole_budget(port: int) -> None:
    choices = (await chat(port, thinking_token_budget=5, n=3, temperature=1, seed=3))["choices"]
    assert [choice["token_ids"][5:13] for choice in choices] == [CLOSE] * 3
    assert len({tuple(choice["token_ids"]) for choice in choices}) == 3


async def test_a_grammar_begins_behind_the_mark(port: int) -> None:
    [choice] = (await chat(port, thinking_token_budget=6, response_format=SCHEMA))["choices"]
    assert choice["token_ids"][6:14] == CLOSE
    assert choice["message"]["content"] in ("1", "2")
    assert choice["finish_reason"] == "stop"


async def test_responses_and_messages_have_budgets_too(port: int) -> None:
    body: dict[str, Any] = {"input": "why", "max_output_tokens": 40, "ignore_eos": True, "temperature": 0}
    for asked in ({"reasoning": {"max_tokens": 7}}, {"thinking_token_budget": 7}):
        response = await post(port, "/v1/responses", body | asked)
        assert [item["type"] for item in response["output"]] == ["reasoning", "message"]
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 40, "thinking": {"type": "enabled", "budget_tokens": 7}}
    blocks = (await post(port, "/v1/messages", body | {"temperature": 0}))["content"]
    reasoning, content = (blocks[0]["thinking"], blocks[1]["text"])
    [choice] = (await chat(port, thinking_token_budget=7))["choices"]
    assert choice["message"]["reasoning"].startswith(reasoning.strip("\n"))
    assert content


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"thinking_token_budget": -2}, "thinking_token_budget"),
        ({"reasoning": {"max_tokens": -2}}, "reasoning.max_tokens"),
        ({"thinking_token_budget": 3, "reasoning": {"max_tokens": 4}}, "thinking_token_budget"),
        ({"thinking_token_budget": 3, "bad_words": ["<"]}, "thinking_token_budget"),
        ({"thinking_token_budget": 3, "allowed_token_ids": [65]}, "thinking_token_budget"),
    ],
)
async def test_a_budget_that_can_not_be_kept_is_refused_by_name(port: int, asked: dict[str, Any], param: str) -> None:
    answer = await post(port, "/v1/chat/completions", CHAT | asked, status=400)
    assert answer["error"]["param"] == param


@pytest.mark.parametrize("by", ["http", "stream", "response"])
async def test_a_request_told_to_answer_ends_its_reasoning_and_goes_on_in_the_same_stream(port: int, by: str) -> None:
    body = {"type": "chat.completion.create", "stream_id": "s", **CHAT, "max_tokens": 200}
    async with session(port) as client:
        await client.send(body)
        first = await client.receive()
        response_id = first["data"]["id"]
        if by == "http":
            answer = await post(port, f"/v1/requests/{response_id}/answer", {})
            assert answer == {"id": response_id, "object": "request.answering", "answering": True}
        else:
            name = {"stream_id": "s"} if by == "stream" else {"response_id": response_id}
            await client.send({"type": "response.answer", **name})
        assert (await client.ending("s"))["status"] == "completed"
        chunks = [event["data"]["choices"][0] for event in client.of("s")[:-1] if event["data"]["choices"]]
    token_ids = bytes(token for chunk in chunks for token in chunk.get("token_ids") or [])
    assert len(token_ids) == 200
    reasoning, mark, content = token_ids.partition(b"</think>")
    assert mark
    assert reasoning
    assert len(content) > 20
    assert [bool(chunk["delta"].get("reasoning")) for chunk in chunks if chunk["delta"].get("content")].count(True) == 0


async def test_nothing_can_be_told_to_answer_that_is_not_running(port: int) -> None:
    assert (await post(port, "/v1/requests/none/answer", {}, status=404))["error"]["code"] == "not_found"
    async with session(port) as client:
        await client.send({"type": "response.answer", "stream_id": "s"})
        assert (await client.receive())["status"] == 404
        await client.send({"type": "response.answer", "response_id": "none"})
        assert (await client.receive())["status"] == 404


async def test_a_request_told_to_answer_before_it_is_admitted_ends_its_reasoning_too(port: int) -> None:
    create = {"type": "chat.completion.create", "stream_id": "s", **CHAT}
    async with session(port) as client:
        await client.send(create)
        await client.send({"type": "response.answer", "stream_id": "s"})
        await client.ending("s")
        token_ids = [token for event in client.of("s")[:-1] for token in event["data"]["choices"][0].get("token_ids") or []]
    assert b"</think>" in bytes(token_ids)
