"""Every parameter of a request reaches the sequence that the engine admits."""

from __future__ import annotations

import json
from typing import Any

import pytest

from streamserve.types import StructuredOutputs, TokenDelta
from tests.support.byte_tokenizer import EOS
from tests.support.live_server import live_server
from tests.support.raw_http import request
from tests.support.scripted_engine import ScriptedEngine, text_reply
from tests.support.specs import flat

pytestmark = pytest.mark.anyio

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hi"}]

TAGS = {"structures": [{"begin": "<f>", "schema": {"type": "null"}, "end": "</f>"}], "triggers": ["<f"]}

BOTH: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"temperature": 1.0, "top_p": 1.0, "seed": 7, "stop_token_ids": [EOS]}),
    (
        {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1},
        {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1},
    ),
    ({"top_k": -1}, {"top_k": 0}),
    ({"temperature": 1}, {"temperature": 1.0}),
    ({"temperature": None, "stop": None, "n": None}, {"temperature": 1.0}),
    ({"presence_penalty": 0.5, "frequency_penalty": -1.0}, {"presence_penalty": 0.5, "frequency_penalty": -1.0}),
    ({"repetition_penalty": 1.2, "min_tokens": 3}, {"repetition_penalty": 1.2, "min_tokens": 3}),
    ({"seed": 5}, {"seed": 5}),
    ({"seed": -1}, {"seed": 2**63 - 1}),
    ({"stop_token_ids": [9]}, {"stop_token_ids": [9, EOS]}),
    ({"ignore_eos": True}, {"stop_token_ids": []}),
    ({"logit_bias": {"5": -3}}, {"logit_bias": {5: -3.0}}),
    ({"allowed_token_ids": [1, 2]}, {"allowed_token_ids": [1, 2]}),
    ({"bad_words": ["x"]}, {"bad_words_token_ids": [[ord("x")], [ord(" "), ord("x")]]}),
    ({"max_time": 1.5}, {"max_time_s": 1.5}),
    ({"priority": -2, "cache_salt": "mine"}, {"priority": -2, "cache_salt": "mine"}),
    ({"prompt_logprobs": 2}, {"prompt_logprobs": 2}),
    ({"structured_outputs": {"choice": ["a"]}}, {"structured_outputs": StructuredOutputs(choice=["a"])}),
    ({"guided_regex": "a+"}, {"structured_outputs": StructuredOutputs(regex="a+")}),
    ({"guided_json": {"type": "object"}}, {"structured_outputs": StructuredOutputs(json={"type": "object"})}),
    ({"response_format": {"type": "text"}}, {"structured_outputs": None}),
    ({"response_format": {"type": "json_object"}}, {"structured_outputs": StructuredOutputs(json_object=True)}),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "null"}}}},
        {"structured_outputs": StructuredOutputs(json={"type": "null"})},
    ),
    (
        {"response_format": {"type": "structural_tag", **TAGS}},
        {"structured_outputs": StructuredOutputs(structural_tag={"type": "structural_tag", **TAGS})},
    ),
    ({"structured_outputs": {"structural_tag": "{}"}}, {"structured_outputs": StructuredOutputs(structural_tag="{}")}),
    ({"model": None, "user": "me"}, {}),
]

ONE: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (COMPLETIONS, {}, {"max_tokens": 16, "logprobs": None}),
    (COMPLETIONS, {"max_tokens": 3}, {"max_tokens": 3}),
    (COMPLETIONS, {"logprobs": 0}, {"logprobs": 0}),
    (COMPLETIONS, {"logprobs": 2, "echo": True}, {"logprobs": 2, "prompt_logprobs": 2}),
    (COMPLETIONS, {"best_of": 1, "suffix": ""}, {}),
    (COMPLETIONS, {"max_tokens": 0, "echo": True}, {"max_tokens": 1}),
    (COMPLETIONS, {"prompt": [1, 2, 3]}, {"prompt_token_ids": [1, 2, 3]}),
    (COMPLETIONS, {"prompt": [[1, 2, 3]]}, {"prompt_token_ids": [1, 2, 3]}),
    (COMPLETIONS, {"prompt": "abcdef", "truncate_prompt_tokens": 2}, {"prompt_token_ids": [101, 102]}),
    (COMPLETIONS, {"prompt": "ab", "truncate_prompt_tokens": -1}, {"prompt_token_ids": [97, 98]}),
    (CHAT, {}, {"max_tokens": 4096 - len("<user>hi\n<assistant>"), "logprobs": None}),
    (CHAT, {"max_tokens": 5}, {"max_tokens": 5}),
    (CHAT, {"max_tokens": 5, "max_completion_tokens": 6}, {"max_tokens": 6}),
    (CHAT, {"logprobs": True}, {"logprobs": 0}),
    (CHAT, {"logprobs": True, "top_logprobs": 4}, {"logprobs": 4}),
    (CHAT, {"tools": [], "tool_choice": "auto"}, {}),
    (CHAT, {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"}, {}),
    (CHAT, {"add_generation_prompt": False}, {"prompt_token_ids": list(b"<user>hi\n")}),
    (CHAT, {"messages": [{"role": "ipython", "content": "x"}]}, {"prompt_token_ids": list(b"<ipython>x\n<assistant>")}),
    (CHAT, {"messages": [{"role": "developer", "content": "x"}]}, {"prompt_token_ids": list(b"<system>x\n<assistant>")}),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
        {"prompt_token_ids": list(b"<user>a\nb\n<assistant>")},
    ),
    (
        CHAT,
        {"messages": [*HELLO, {"role": "assistant", "content": "well"}], "continue_final_message": True},
        {"prompt_token_ids": list(b"<user>hi\n<assistant>well")},
    ),
]


async def test_parameters_reach_the_engine() -> None:
    cases = [(path, fields, expected) for path in (COMPLETIONS, CHAT) for fields, expected in BOTH] + ONE
    engine = ScriptedEngine(reply=text_reply("ok"))
    wrong = []
    async with live_server(engine, priority_scheduling=True) as server:
        for path, fields, expected in cases:
            engine.specs.clear()
            body = {"prompt": "hi", **fields} if path == COMPLETIONS else {"messages": HELLO, **fields}
            async with request(server.port, "POST", path, body) as response:
                answer = await response.body()
            if response.status != 200:
                wrong.append((path, fields, answer))
                continue
            [spec] = engine.specs.values()
            wrong += [(path, fields, name) for name, value in expected.items() if flat(spec)[name] != value]
    assert wrong == []


async def test_every_output_of_a_request_has_a_seed_of_its_own() -> None:
    engine = ScriptedEngine(reply=text_reply("ok"))
    async with live_server(engine) as server:
        async with request(server.port, "POST", COMPLETIONS, {"prompt": "a", "n": 3, "seed": 10}) as response:
            assert response.status == 200
    assert [spec.sampling.seed for spec in engine.specs.values()] == [10, 11, 12]


async def test_defaults_of_the_model_hold_unless_the_request_says_otherwise() -> None:
    engine = ScriptedEngine(reply=text_reply("ok"))
    defaults = {"temperature": 0.6, "top_p": 0.95, "max_tokens": 9}
    async with live_server(engine, defaults=defaults) as server:
        for body in ({"prompt": "a"}, {"prompt": "a", "temperature": 0.1, "max_tokens": 2}):
            async with request(server.port, "POST", COMPLETIONS, body) as response:
                assert response.status == 200
    taken = [(spec.sampling.temperature, spec.sampling.top_p, spec.max_tokens) for spec in engine.specs.values()]
    assert taken == [(0.6, 0.95, 9), (0.1, 0.95, 2)]


async def test_cached_tokens_are_counted_once_per_prompt() -> None:
    engine = ScriptedEngine(reply=lambda spec: [TokenDelta([97], finish_reason="length", cached_tokens=2)])
    async with live_server(engine) as server:
        async with request(server.port, "POST", COMPLETIONS, {"prompt": ["abc", "abd"], "n": 3}) as response:
            usage = json.loads(await response.body())["usage"]
    assert usage["prompt_tokens"] == 6
    assert usage["prompt_tokens_details"] == {"cached_tokens": 4}
    assert (usage["completion_tokens"], usage["total_tokens"]) == (6, 12), "a total counts the tokens of a cache hit too"


async def test_the_total_of_a_response_counts_cached_tokens_too() -> None:
    engine = ScriptedEngine(reply=lambda spec: [TokenDelta([97], finish_reason="length", cached_tokens=2)])
    async with live_server(engine) as server:
        async with request(server.port, "POST", "/v1/responses", {"input": "abc"}) as response:
            usage = json.loads(await response.body())["usage"]
    assert usage["input_tokens_details"]["cached_tokens"] == 2
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert (usage["input_tokens"] > 2, usage["output_tokens"]) == (True, 1)


async def test_a_score_only_request_answers_with_the_prompt_alone() -> None:
    engine = ScriptedEngine(reply=text_reply("more"))
    body = {"prompt": "ab", "max_tokens": 0, "echo": True, "logprobs": 1}
    async with live_server(engine) as server, request(server.port, "POST", COMPLETIONS, body) as response:
        answer = json.loads(await response.body())
    assert answer["choices"][0]["text"] == "ab"
    assert answer["choices"][0]["logprobs"]["tokens"] == ["a", "b"]
    assert answer["usage"]["completion_tokens"] == 0


async def test_prompt_logprobs_are_maps_from_token_to_rank() -> None:
    engine = ScriptedEngine(reply=text_reply("x"))
    async with live_server(engine) as server:
        async with request(server.port, "POST", COMPLETIONS, {"prompt": "ab", "prompt_logprobs": 1}) as response:
            choice = json.loads(await response.body())["choices"][0]
    assert choice["prompt_logprobs"] == [None, {"98": {"logprob": -0.5, "rank": 1, "decoded_token": "b"}}]


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        (COMPLETIONS, {"prompt": "ab", "logprobs": -1, "prompt_logprobs": -1}),
        (CHAT, {"messages": HELLO, "logprobs": True, "top_logprobs": -1, "prompt_logprobs": -1}),
        ("/v1/responses", {"input": "hi", "top_logprobs": -1}),
    ],
)
async def test_minus_one_asks_for_every_tokens_logprob_where_the_server_has_no_limit(path: str, asked: dict[str, Any]) -> None:
    """As `--max-logprobs -1` allows in vLLM."""
    engine = ScriptedEngine(reply=text_reply("x"))
    async with live_server(engine, max_logprobs=-1) as server, request(server.port, "POST", path, asked) as response:
        assert response.status == 200, await response.body()
        await response.body()
    sampling = next(iter(engine.specs.values())).sampling
    assert sampling.logprobs == engine.info.vocab_size
    assert sampling.prompt_logprobs == (engine.info.vocab_size if "prompt_logprobs" in asked else None)
    async with live_server(ScriptedEngine()) as server, request(server.port, "POST", path, asked) as response:
        assert response.status == 400
        assert "must be between 0 and 20 on this server, got -1" in (await response.body()).decode()


async def test_tokens_may_be_written_as_ids() -> None:
    engine = ScriptedEngine(reply=text_reply("x"))
    async with live_server(engine) as server:
        body = {"prompt": "a", "logprobs": 0, "return_tokens_as_token_ids": True}
        async with request(server.port, "POST", COMPLETIONS, body) as response:
            choice = json.loads(await response.body())["choices"][0]
    assert choice["logprobs"]["tokens"] == ["token_id:120", "token_id:256"]


async def test_requests_of_one_gateway_may_share_a_header_id() -> None:
    engine = ScriptedEngine()
    headers = {"X-Request-Id": "trace"}
    body = {"prompt": "a", "stream": True}
    async with (
        live_server(engine) as server,
        request(server.port, "POST", COMPLETIONS, body, headers=headers) as first,
        request(server.port, "POST", COMPLETIONS, body, headers=headers) as second,
    ):
        assert (first.status, second.status) == (200, 200)
        assert first.headers["x-request-id"] == second.headers["x-request-id"] == "trace"
        assert len(await engine.sequences(2)) == 2


@pytest.mark.parametrize(("skips", "text", "offsets"), [(True, "hi", [0, 1, 1]), (False, "h</s>i", [0, 1, 5])])
async def test_offsets_point_into_the_echoed_text_whether_special_tokens_are_in_it_or_not(
    skips: bool, text: str, offsets: list[int]
) -> None:
    body = {"prompt": [104, 256, 105], "max_tokens": 0, "echo": True, "logprobs": 1, "skip_special_tokens": skips}
    async with (
        live_server(ScriptedEngine(reply=text_reply("more"))) as server,
        request(server.port, "POST", COMPLETIONS, body) as response,
    ):
        [choice] = json.loads(await response.body())["choices"]
    assert choice["text"] == text
    assert choice["logprobs"]["text_offset"] == offsets
