"""Bad input gets the right 4xx, in OpenAI's shape, before any 200, and costs the engine nothing."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest

from streamserve.errors import (
    ContextLengthExceeded,
    EngineDead,
    InvalidParameter,
    PromptTooLarge,
    QueueFull,
    StreamserveError,
    Unavailable,
)
from tests.support.live_server import live_server
from tests.support.raw_http import request
from tests.support.scripted_engine import ScriptedEngine, text_reply

pytestmark = pytest.mark.anyio

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]


def completion(**fields: Any) -> dict[str, Any]:
    return {"prompt": "a", **fields}


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": HELLO, **fields}


REFUSED: list[tuple[str, Any, int, str, str | None]] = [
    (COMPLETIONS, b"", 400, "invalid_request", None),
    (COMPLETIONS, b"{", 400, "invalid_request", None),
    (COMPLETIONS, b"[1]", 400, "invalid_request", None),
    (COMPLETIONS, b'{"prompt": "\xff"}', 400, "invalid_request", None),
    (COMPLETIONS, b'{"prompt": "a", "temperature": NaN}', 400, "invalid_request", None),
    (COMPLETIONS, b'{"prompt": "a", "temperature": 1e999}', 400, "invalid_request", None),
    (COMPLETIONS, b"[" * 5000, 400, "invalid_request", None),
    (COMPLETIONS, b'{"prompt": "\\ud800"}', 400, "invalid_request", None),
    (COMPLETIONS, {}, 400, "invalid_value", "prompt"),
    (COMPLETIONS, completion(prompt=7), 400, "invalid_value", "prompt"),
    (COMPLETIONS, completion(prompt=""), 400, "invalid_value", "prompt"),
    (COMPLETIONS, completion(prompt=[]), 400, "invalid_value", "prompt"),
    (COMPLETIONS, completion(prompt=["a", 1]), 400, "invalid_value", "prompt"),
    (COMPLETIONS, completion(prompt=[[1], []]), 400, "invalid_value", "prompt"),
    (COMPLETIONS, completion(prompt=[257]), 400, "invalid_value", "prompt"),
    (COMPLETIONS, completion(prompt=[-1]), 400, "invalid_value", "prompt"),
    (COMPLETIONS, completion(prompt=["a"] * 5000), 400, "invalid_value", "prompt"),
    (COMPLETIONS, completion(max_tokens="x"), 400, "invalid_value", "max_tokens"),
    (COMPLETIONS, completion(max_tokens=0), 400, "invalid_value", "max_tokens"),
    (COMPLETIONS, completion(max_tokens=4096), 400, "context_length_exceeded", "max_tokens"),
    (COMPLETIONS, completion(prompt="a" * 5000), 400, "context_length_exceeded", "prompt"),
    (COMPLETIONS, completion(prompt=[97] * 4096), 400, "context_length_exceeded", "prompt"),
    (COMPLETIONS, completion(temperature=-1), 400, "invalid_value", "temperature"),
    (COMPLETIONS, completion(top_p=0), 400, "invalid_value", "top_p"),
    (COMPLETIONS, completion(top_p=1.5), 400, "invalid_value", "top_p"),
    (COMPLETIONS, completion(n=0), 400, "invalid_value", "n"),
    (COMPLETIONS, completion(n=2, temperature=0), 400, "invalid_value", "n"),
    (COMPLETIONS, completion(seed=2**80), 400, "invalid_value", "seed"),
    (COMPLETIONS, completion(stop=[1]), 400, "invalid_value", "stop[0]"),
    (COMPLETIONS, completion(stop=""), 400, "invalid_value", "stop"),
    (COMPLETIONS, completion(stream=1), 400, "invalid_value", "stream"),
    (COMPLETIONS, completion(stream_options={"include_usage": True}), 400, "invalid_value", "stream_options"),
    (
        COMPLETIONS,
        completion(stream=True, stream_options={"include_usage": 1}),
        400,
        "invalid_value",
        "stream_options.include_usage",
    ),
    (COMPLETIONS, completion(logit_bias={"x": 1}), 400, "invalid_value", "logit_bias"),
    (COMPLETIONS, completion(logit_bias={"5": 101}), 400, "invalid_value", "logit_bias"),
    (COMPLETIONS, completion(logit_bias={"999": 1}), 400, "invalid_value", "logit_bias"),
    (COMPLETIONS, completion(presence_penalty=3), 400, "invalid_value", "presence_penalty"),
    (COMPLETIONS, completion(logprobs=21), 400, "invalid_value", "logprobs"),
    (COMPLETIONS, completion(logprobs=True), 400, "invalid_value", "logprobs"),
    (COMPLETIONS, completion(prompt_logprobs=21), 400, "invalid_value", "prompt_logprobs"),
    (COMPLETIONS, completion(prompt_logprobs=1, stream=True), 400, "invalid_value", "prompt_logprobs"),
    (COMPLETIONS, completion(min_tokens=20, max_tokens=10), 400, "invalid_value", "min_tokens"),
    (COMPLETIONS, completion(allowed_token_ids=[]), 400, "invalid_value", "allowed_token_ids"),
    (COMPLETIONS, completion(allowed_token_ids=[999]), 400, "invalid_value", "allowed_token_ids"),
    (COMPLETIONS, completion(bad_words=[""]), 400, "invalid_value", "bad_words"),
    (COMPLETIONS, completion(max_time=0), 400, "invalid_value", "max_time"),
    (COMPLETIONS, completion(priority=1), 400, "invalid_value", "priority"),
    (COMPLETIONS, completion(cache_salt=""), 400, "invalid_value", "cache_salt"),
    (COMPLETIONS, completion(request_id="a b"), 400, "invalid_value", "request_id"),
    (COMPLETIONS, completion(request_id="abc\n"), 400, "invalid_value", "request_id"),
    (COMPLETIONS, completion(truncate_prompt_tokens=0), 400, "invalid_value", "truncate_prompt_tokens"),
    (
        COMPLETIONS,
        completion(guided_choice=["a"], structured_outputs={"regex": "a"}),
        400,
        "invalid_value",
        "structured_outputs",
    ),
    (COMPLETIONS, completion(structured_outputs={}), 400, "invalid_value", "structured_outputs"),
    (COMPLETIONS, completion(response_format={"type": "xml"}), 400, "invalid_value", "response_format.type"),
    (COMPLETIONS, completion(response_format={}), 400, "invalid_value", "response_format.type"),
    (
        COMPLETIONS,
        completion(response_format={"type": "json_schema"}),
        400,
        "invalid_value",
        "response_format.json_schema.schema",
    ),
    (COMPLETIONS, completion(truncation_side="right"), 400, "unsupported_parameter", "truncation_side"),
    (COMPLETIONS, completion(logprob_token_ids=[1]), 400, "unsupported_parameter", "logprob_token_ids"),
    (COMPLETIONS, completion(thinking_token_budget=0), 400, "unsupported_parameter", "thinking_token_budget"),
    (COMPLETIONS, completion(stream_interval=8), 400, "unsupported_parameter", "stream_interval"),
    (COMPLETIONS, completion(vllm_xargs={"a": 1}), 400, "unsupported_parameter", "vllm_xargs"),
    (CHAT, chat(repetition_detection={"max_pattern_size": 9}), 400, "unsupported_parameter", "repetition_detection"),
    (CHAT, chat(return_prompt_text=True), 400, "unsupported_parameter", "return_prompt_text"),
    (CHAT, chat(documents=[{"text": "a"}]), 400, "unsupported_parameter", "documents"),
    (CHAT, chat(thinking_token_budget=3), 400, "unsupported_parameter", "thinking_token_budget"),
    (COMPLETIONS, completion(whitespace_pattern=" "), 400, "unsupported_parameter", "whitespace_pattern"),
    (
        COMPLETIONS,
        completion(structured_outputs={"regex": "a", "disable_any_whitespace": True}),
        400,
        "unsupported_parameter",
        "structured_outputs.disable_any_whitespace",
    ),
    (COMPLETIONS, completion(suffix="b"), 400, "unsupported_parameter", "suffix"),
    (COMPLETIONS, completion(best_of=3), 400, "unsupported_parameter", "best_of"),
    (COMPLETIONS, completion(use_beam_search=True), 400, "unsupported_parameter", "use_beam_search"),
    (COMPLETIONS, completion(model="other"), 404, "model_not_found", "model"),
    (CHAT, {}, 400, "invalid_value", "messages"),
    (CHAT, chat(messages=[]), 400, "invalid_value", "messages"),
    (CHAT, chat(messages="hello"), 400, "invalid_value", "messages"),
    (CHAT, chat(messages=[{"role": ["king"], "content": "a"}]), 400, "invalid_value", "messages[0].role"),
    (CHAT, chat(messages=[{"role": "user"}]), 400, "invalid_value", "messages[0].content"),
    (CHAT, chat(messages=[{"role": "user", "content": 5}]), 400, "invalid_value", "messages[0].content"),
    (
        CHAT,
        chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        400,
        "unsupported_parameter",
        "messages[0].content[0]",
    ),
    (CHAT, chat(top_logprobs=2), 400, "invalid_value", "top_logprobs"),
    (CHAT, chat(logprobs=True, top_logprobs=21), 400, "invalid_value", "top_logprobs"),
    (CHAT, chat(tools=[{"type": "function", "function": {"name": "f"}}]), 400, "unsupported_parameter", "tools"),
    (CHAT, chat(tool_choice="required"), 400, "invalid_value", "tool_choice"),
    (CHAT, chat(functions=[{"name": "f"}]), 400, "unsupported_parameter", "functions"),
    (CHAT, chat(modalities=["audio"]), 400, "unsupported_parameter", "modalities"),
    (CHAT, chat(chat_template="{{ 1 }}"), 400, "unsupported_parameter", "chat_template"),
    (CHAT, chat(continue_final_message=True, add_generation_prompt=True), 400, "invalid_value", "continue_final_message"),
    (CHAT, chat(messages=[{"role": "user", "content": "a" * 5000}]), 400, "context_length_exceeded", "messages"),
    (CHAT, chat(max_completion_tokens=0), 400, "invalid_value", "max_completion_tokens"),
    (CHAT, chat(max_tokens=4096), 400, "context_length_exceeded", "max_tokens"),
    ("/tokenize", {}, 400, "invalid_value", "prompt"),
    ("/detokenize", {"tokens": ["a"]}, 400, "invalid_value", "tokens[0]"),
    ("/detokenize", {"tokens": [999]}, 400, "invalid_value", "tokens"),
    ("/detokenize", {"tokens": [-1]}, 400, "invalid_value", "tokens"),
    ("/detokenize", {"tokens": [97] * 5000}, 400, "context_length_exceeded", "tokens"),
    ("/tokenize", {"prompt": "1" * (1 << 20)}, 400, "context_length_exceeded", "prompt"),
    ("/tokenize", {"messages": [{"role": "user", "content": "1" * (1 << 20)}]}, 400, "context_length_exceeded", "messages"),
    ("/v1/nothing", {}, 404, "not_found", None),
    ("/v1/models", {}, 405, "method_not_allowed", None),
    ("/v1/requests/none/cancel", {}, 404, "not_found", None),
]


def described(case: tuple[str, Any, int, str, str | None]) -> str:
    return f"{case[0].rpartition('/')[2]}-{case[4]}-{str(case[1])[:40]}"


async def refusal(port: int, path: str, body: Any) -> tuple[int, dict[str, str], dict[str, Any]]:
    async with request(port, "POST", path, body) as response:
        if response.status == 200:
            return 200, response.headers, {"code": "accepted", "param": None}
        answer = json.loads(await response.body())
        assert set(answer) == {"error"}
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        return response.status, response.headers, answer["error"]


async def test_every_mistake_is_refused_by_name_before_anything_runs() -> None:
    engine = ScriptedEngine(reply=text_reply("a"))
    wrong = []
    async with live_server(engine) as server:
        for case in REFUSED:
            path, body, status, code, param = case
            streams_too = isinstance(body, dict) and not {"stream", "stream_options"} & body.keys()
            for variant in [body, {**body, "stream": True}] if streams_too else [body]:
                got, _, error = await refusal(server.port, path, variant)
                if (got, error["code"], error["param"]) != (status, code, param):
                    wrong.append((described(case), got, error))
    assert wrong == []
    assert engine.specs == {}


@pytest.mark.parametrize(
    ("error", "status", "retries"),
    [
        (QueueFull("too many wait", retry_after_s=1.5), 429, True),
        (PromptTooLarge("needs more blocks than there are"), 400, False),
        (ContextLengthExceeded("too long"), 400, False),
        (Unavailable("no engine"), 503, True),
        (EngineDead("gone"), 503, False),
    ],
)
async def test_what_the_engine_refuses_is_refused_before_the_200(error: StreamserveError, status: int, retries: bool) -> None:
    engine = ScriptedEngine()
    engine.refuse = error
    async with live_server(engine) as server:
        for body in (completion(), completion(stream=True)):
            got, headers, answer = await refusal(server.port, COMPLETIONS, body)
            assert (got, answer["code"], answer["message"]) == (status, error.code, error.message)
            assert ("retry-after" in headers, headers.get("x-should-retry")) == (retries, "true" if retries else None)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (COMPLETIONS, completion(guided_regex="("), "guided_regex"),
        (COMPLETIONS, completion(structured_outputs={"regex": "("}), "structured_outputs"),
        (CHAT, chat(response_format={"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}), "response_format"),
        (CHAT, chat(tools=[{"type": "function", "function": {"name": "f"}}], tool_choice="required"), "tools"),
        ("/v1/responses", {"input": "a", "text": {"format": {"type": "json_object"}}}, "text.format"),
    ],
)
async def test_a_grammar_that_can_not_be_compiled_is_refused_under_the_name_it_came_by(
    path: str, body: Any, param: str
) -> None:
    engine = ScriptedEngine()
    engine.refuse = InvalidParameter("structured_outputs", "can't be compiled: no such type")
    async with live_server(engine) as server:
        status, _, error = await refusal(server.port, path, body)
    assert (status, error["param"], error["message"]) == (400, param, f"{param}: can't be compiled: no such type")


@pytest.mark.parametrize("depth", [130, 300, 700, 950])
async def test_what_is_nested_too_deeply_is_refused_wherever_it_stands(depth: int) -> None:
    deep = '{"a":' * depth + "1" + "}" * depth
    function = f'"parameters":{{"type":"object","properties":{{"x":{deep}}}}}'
    arguments = json.dumps(deep)
    engine = ScriptedEngine(reply=text_reply("{}"))
    async with live_server(engine) as server:
        for path, body in (
            (CHAT, f'{{"messages":[{{"role":"user","content":"x","name":{deep}}}]}}'),
            (CHAT, f'{{"messages":[{{"role":"user","content":"x"}}],"chat_template_kwargs":{{"q":{deep}}}}}'),
            (CHAT, f'{{"messages":[],"tools":[{{"type":"function","function":{{"name":"f",{function}}}}}]}}'),
            (COMPLETIONS, f'{{"prompt":"x","guided_json":{deep}}}'),
            ("/v1/responses", f'{{"input":"x","tools":[{{"type":"function","name":"f",{function}}}]}}'),
            ("/tokenize", f'{{"messages":[{{"role":"user","content":"x","name":{deep}}}]}}'),
        ):
            status, _, error = await refusal(server.port, path, body.encode())
            assert (status, "nested too deeply" in error["message"]) == (400, True), path
        call = f'{{"id":"a","type":"function","function":{{"name":"f","arguments":{arguments}}}}}'
        said = f'{{"messages":[{{"role":"assistant","tool_calls":[{call}]}}]}}'
        status, _, error = await refusal(server.port, CHAT, said.encode())
        assert (status, error["param"]) == (400, "messages[0].tool_calls[0].function.arguments")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/v1/responses",
            {"input": "x", "text": {"format": {"type": "json_schema", "name": "a", "schema": {"maximum": 10**30}}}},
        ),
        (CHAT, chat(chat_template_kwargs={"list": [1, {"n": -(10**30)}]})),
        (COMPLETIONS, completion(guided_json={"enum": [2**64]})),
    ],
)
async def test_a_number_that_no_answer_could_hold_is_refused(path: str, body: Any) -> None:
    async with live_server(ScriptedEngine()) as server:
        status, _, error = await refusal(server.port, path, body)
    assert (status, error["message"]) == (400, "the body holds a whole number of more than 64 bits")


async def test_a_structure_too_complex_to_follow_is_the_requests_fault() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server:
        async with anyio.create_task_group() as tasks:

            async def fail() -> None:
                [sequence] = await engine.sequences()
                engine.fail(sequence, "structure_too_complex", "too many items")

            tasks.start_soon(fail)
            status, _, error = await refusal(server.port, COMPLETIONS, completion(guided_json={}))
    assert (status, error["code"], error["type"]) == (400, "structure_too_complex", "invalid_request_error")


async def test_a_wrong_type_is_reported_as_it_was_written() -> None:
    async with live_server(ScriptedEngine()) as server:
        _, _, error = await refusal(server.port, COMPLETIONS, completion(request_id="a b"))
    assert error["message"] == r"request_id: expected str matching regex '^[A-Za-z0-9._:-]+(?!\\n)$'"


async def test_a_refusal_carries_the_clients_request_id_unless_it_is_unsafe() -> None:
    async with live_server(ScriptedEngine()) as server:
        for sent, echoed in (("mine-1", "mine-1"), ("a b", None)):
            async with request(server.port, "POST", COMPLETIONS, {}, headers={"X-Request-Id": sent}) as response:
                assert (response.status, response.headers.get("x-request-id")) == (400, echoed)


async def test_a_plain_request_to_a_socket_is_told_to_upgrade() -> None:
    async with live_server(ScriptedEngine()) as server:
        async with request(server.port, "GET", "/v1/ws") as response:
            assert (response.status, response.headers["upgrade"]) == (426, "websocket")
            assert json.loads(await response.body())["error"]["code"] == "upgrade_required"


async def test_a_full_queue_says_when_to_come_back() -> None:
    engine = ScriptedEngine()
    engine.refuse = QueueFull("too many wait", retry_after_s=1.5)
    async with live_server(engine) as server:
        _, headers, _ = await refusal(server.port, COMPLETIONS, completion())
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("2", "1500")


async def test_a_request_that_waited_too_long_says_when_to_come_back() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server:
        async with request(server.port, "POST", COMPLETIONS, completion(stream=True)) as streamed:
            [first] = await engine.sequences()
            engine.fail(first, "queue_timeout", "the request waited for 5.0 s", retry_after_s=2.5)
            assert b'"code":"queue_timeout"' in await streamed.body()

        async def fail_next() -> None:
            [_, second] = await engine.sequences(2)
            engine.fail(second, "queue_timeout", "the request waited for 5.0 s", retry_after_s=2.5)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fail_next)
            status, headers, error = await refusal(server.port, COMPLETIONS, completion())
    assert (status, error["code"]) == (429, "queue_timeout")
    assert (headers["retry-after"], headers["retry-after-ms"], headers["x-should-retry"]) == ("3", "2500", "true")


async def test_a_body_over_the_limit_is_413() -> None:
    async with live_server(ScriptedEngine(), max_body_bytes=1000) as server:
        status, _, error = await refusal(server.port, COMPLETIONS, completion(prompt="a" * 1000))
    assert (status, error["code"]) == (413, "request_too_large")


async def test_two_running_requests_cannot_share_a_request_id() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server:
        async with request(server.port, "POST", COMPLETIONS, completion(request_id="one", stream=True)):
            await engine.sequences()
            status, _, error = await refusal(server.port, COMPLETIONS, completion(request_id="one"))
    assert (status, error["param"]) == (400, "request_id")


async def test_while_loading_live_answers_and_everything_else_is_503() -> None:
    async with live_server(ScriptedEngine(), ready=False) as server:
        async with request(server.port, "GET", "/live") as live:
            assert live.status == 200
        for method, path, body in [("POST", COMPLETIONS, completion()), ("POST", CHAT, chat()), ("POST", "/tokenize", {})]:
            async with request(server.port, method, path, body) as response:
                assert response.status == 503
                assert response.headers["x-should-retry"] == "true"
        for path in ("/health", "/ready", "/v1/models"):
            async with request(server.port, "GET", path) as response:
                assert response.status == 503


async def test_unknown_fields_are_ignored_with_a_warning() -> None:
    body = completion(zork=1, **{'quo"te\r\n': 2})
    async with live_server(ScriptedEngine(reply=text_reply("a"))) as server:
        async with request(server.port, "POST", COMPLETIONS, body) as response:
            assert response.status == 200
            assert response.headers["warning"] == '299 streamserve "parameters ignored: zork, quo?te??"'


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"response_format": {"type": "text", "zork": 1}}, "response_format.zork"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "zork": 1}}},
            "response_format.json_schema.zork",
        ),
        ({"stream": True, "stream_options": {"zork": 1}}, "stream_options.zork"),
        ({"structured_outputs": {"regex": "a", "zork": 1}}, "structured_outputs.zork"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"reasoning_effort": "xhigh"}, "reasoning_effort"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_fields_without_effect_are_named_at_every_level(fields: dict[str, Any], named: str) -> None:
    """Nested fields that nobody knew vanished without the warning that top-level ones got."""
    async with (
        live_server(ScriptedEngine(reply=text_reply("x"))) as server,
        request(server.port, "POST", CHAT, chat(**fields)) as response,
    ):
        assert response.status == 200
        assert response.headers["warning"] == f'299 streamserve "parameters ignored: {named}"'


async def test_the_schema_of_a_json_object_reaches_the_engine() -> None:
    """`response_format` of llama.cpp's clients: the schema was dropped, and any object came."""
    engine, schema = ScriptedEngine(reply=text_reply("{}")), {"type": "object", "maxProperties": 0}
    async with live_server(engine) as server:
        body = completion(response_format={"type": "json_object", "schema": schema})
        assert (await refusal(server.port, COMPLETIONS, body))[0] == 200
    [spec] = engine.specs.values()
    assert spec.structured_outputs is not None
    assert spec.structured_outputs.json == schema


async def test_an_unexpected_fault_is_a_500_that_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    engine = ScriptedEngine()
    engine.refuse = ValueError("secret")  # type: ignore[assignment]
    async with live_server(engine) as server:
        status, _, error = await refusal(server.port, COMPLETIONS, completion())
    assert (status, error["type"]) == (500, "internal_error")
    assert "secret" not in error["message"]
    assert "unexpected error" in caplog.text
