"""/openapi.json is true: every route is in it, and its examples, sent to a server, are answered as it says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from litestar.routes import HTTPRoute

from streamserve.server.openapi.document import document
from streamserve.types import SequenceSpec, TokenDelta
from streamserve.types.progress import PrefillProgress, QueueProgress
from tests.server.apis.openai.tool_chats import CLOCK, TEMPLATE, TWO_CALLS, WEATHER
from tests.support.live_server import LiveServer, live_server
from tests.support.raw_http import request
from tests.support.scripted_engine import ScriptedEngine, text_reply

pytestmark = pytest.mark.anyio

MESSAGES = {"messages": [{"role": "user", "content": "hi"}]}
USAGE = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
DETAILED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": "hi", "logprobs": 2, "return_token_ids": True}),
    ("/v1/completions", {"prompt": "hi", "logprobs": 2, "echo": True, "n": 2}),
    ("/v1/completions", {"prompt": "hi", "prompt_logprobs": 1}),
    ("/v1/chat/completions", {**MESSAGES, "logprobs": True, "top_logprobs": 2, "return_token_ids": True}),
    ("/v1/chat/completions", {**MESSAGES, "tools": [WEATHER, CLOCK]}),
    ("/v1/responses", {"input": "hi", "top_logprobs": 2, "include": ["message.output_text.logprobs"], "metadata": {"a": "b"}}),
    ("/v1/responses", {"input": "hi", "tools": [{"type": "function", **WEATHER["function"]}]}),
]

DOCUMENT = document()
EXAMPLES = [
    (path, example["value"])
    for path, operations in DOCUMENT["paths"].items()
    for operation in operations.values()
    for content in operation.get("requestBody", {}).get("content", {}).values()
    for example in content["examples"].values()
]
WITHOUT_ARGUMENTS = [path for path, operations in DOCUMENT["paths"].items() if "get" in operations and "{" not in path]


def closed(schema: Any) -> Any:
    """The schema, and all in it, with no fields but those that it lists."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {name: closed(part) for name, part in schema.items()}
    is_record = schema.get("type") == "object" and isinstance(schema.get("properties"), dict)
    return {"additionalProperties": False, **parts} if is_record else parts


SCHEMAS = DOCUMENT["components"]["schemas"]
# An event's fields depend on its type; all other answers hold what their schema lists and nothing else.
CLOSED_SCHEMAS = {**closed(SCHEMAS), "ResponseStreamEvent": SCHEMAS["ResponseStreamEvent"]}


def validate(value: Any, schema: dict[str, Any], schemas: dict[str, Any] = SCHEMAS) -> None:
    Draft202012Validator({**schema, "components": {"schemas": schemas}}).validate(value)


def responses(path: str, method: str) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["paths"][path][method]["responses"]
    return found


async def ask(server: LiveServer, path: str, method: str = "get", body: Any = None, **names: str) -> Any:
    """Ask as the document says, and check that the answer is one it lists. Returns the answer: an object, text or events."""
    async with request(server.port, method.upper(), path.format(**names), body) as response:
        answer = responses(path, method)[str(response.status)]
        media_type = response.headers["content-type"].split(";")[0]
        content = answer["content"].get(media_type) or answer["content"]["*/*"]
        text = (await response.body()).decode()
    if media_type == "application/json":
        validate(json.loads(text), content["schema"], CLOSED_SCHEMAS)
        return json.loads(text)
    if media_type != "text/event-stream":
        return text
    lines = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    events = [json.loads(line) for line in lines if line != "[DONE]"]
    for event in events:
        validate(event, content["schema"]["x-event"], CLOSED_SCHEMAS)
    return events


async def test_every_route_is_in_it_with_its_methods_and_no_other() -> None:
    async with live_server(ScriptedEngine()) as server:
        served = {
            (route.path_format, method.lower())
            for route in server.app.routes
            if isinstance(route, HTTPRoute)
            for method in route.methods
            if method != "OPTIONS"
        }
    served |= {(path, "head") for path, method in served if method == "get"}
    assert {(path, method) for path, operations in DOCUMENT["paths"].items() for method in operations} == served


def test_the_document_is_well_formed() -> None:
    operations = [operation for each in DOCUMENT["paths"].values() for operation in each.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    for name, schema in SCHEMAS.items():
        Draft202012Validator.check_schema(schema)
        assert name.isalnum(), "two structs share a name"
    for path, operation in ((path, operation) for path, each in DOCUMENT["paths"].items() for operation in each.values()):
        assert {part["name"] for part in operation.get("parameters", []) if part["in"] == "path"} == {
            part.strip("{}") for part in path.split("/") if part.startswith("{")
        }
        errors = [answer for status, answer in operation["responses"].items() if status >= "400" and "content" in answer]
        shapes = {error["content"]["application/json"]["schema"]["$ref"] for error in errors}
        assert len(shapes) <= 1, "an API's errors have one shape"
        assert all(shape.endswith("Error") for shape in shapes)


def test_bodies_are_those_that_requests_are_checked_with() -> None:
    completion = DOCUMENT["components"]["schemas"]["CompletionRequest"]
    assert completion["required"] == ["prompt"]
    assert {"temperature", "logit_bias", "max_time"} <= set(completion["properties"])


@pytest.mark.parametrize(("path", "example"), EXAMPLES)
async def test_each_example_validates_and_is_answered(path: str, example: dict[str, Any]) -> None:
    content = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    validate(example, content["schema"])
    async with live_server(ScriptedEngine(reply=text_reply('{"city": "x"}')), model_names=["demo"]) as server:
        answer = await ask(server, path, "post", example)
    assert "error" not in answer or answer["error"] is None
    assert isinstance(answer, list) == bool(example.get("stream"))


@pytest.mark.parametrize(
    ("path", "fields", "stream"),
    [(*each, stream) for each in DETAILED for stream in (False, True) if not (stream and "prompt_logprobs" in each[1])],
)
async def test_answers_with_everything_that_can_be_requested_are_described(
    path: str, fields: dict[str, Any], stream: bool
) -> None:
    engine = ScriptedEngine(reply=text_reply("<think>Hm.</think>" + TWO_CALLS))
    async with live_server(engine, chat_template=TEMPLATE, model_names=["demo"]) as server:
        usage = USAGE if stream and path != "/v1/responses" else {}
        answer = await ask(server, path, "post", {**fields, **usage, "stream": stream})
    assert isinstance(answer, list) == stream, answer
    assert stream or answer.get("error") is None, answer


@pytest.mark.parametrize("path", WITHOUT_ARGUMENTS)
async def test_what_takes_no_argument_answers_as_it_says(path: str) -> None:
    async with live_server(ScriptedEngine(), model_names=["demo"]) as server:
        answer = await ask(server, path)
    assert isinstance(answer, str) or "error" not in answer


async def test_models_and_responses_answer_as_it_says() -> None:
    async with live_server(ScriptedEngine(reply=text_reply("abc")), model_names=["demo"]) as server:
        assert (await ask(server, "/v1/models/{name}", name="demo"))["id"] == "demo"
        created = await ask(server, "/v1/responses", "post", {"input": "hi", "background": True})
        for path, method in (
            ("/v1/responses/{response_id}", "get"),
            ("/v1/responses/{response_id}/input_items", "get"),
            ("/v1/responses/{response_id}/cancel", "post"),
            ("/v1/responses/{response_id}", "delete"),
        ):
            answer = await ask(server, path, method, response_id=created["id"])
            assert "error" not in answer or answer["error"] is None
        gone = await ask(server, "/v1/responses/{response_id}", response_id=created["id"])
    assert gone["error"]["code"] == "not_found"


async def test_cancelling_answers_as_it_says() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server:
        body = {"prompt": "a", "stream": True, "request_id": "one"}
        async with request(server.port, "POST", "/v1/completions", body) as stream:
            await engine.sequences()
            answer = await ask(server, "/v1/requests/{request_id}/cancel", "post", request_id="one")
            await stream.body()
        missing = await ask(server, "/v1/requests/{request_id}/cancel", "post", request_id="one")
    assert answer["cancelled"] is True
    assert missing["error"]["code"] == "not_found"


async def test_progress_and_partial_json_are_as_it_says() -> None:
    def reply(spec: SequenceSpec) -> list[TokenDelta]:
        progress = [QueueProgress(1), PrefillProgress(9, 0, 9, 1.0)]
        return [*(TokenDelta([], progress=each) for each in progress), *text_reply('{"city": ["x"]}')(spec)]

    options = {"stream_options": {"include_progress": True, "include_partial_json": True}, "stream": True}
    async with live_server(ScriptedEngine(reply=reply)) as server:
        for path, body in (("/v1/completions", {"prompt": "hi"}), ("/v1/chat/completions", MESSAGES)):
            chunks = await ask(server, path, "post", {**body, **options, "response_format": {"type": "json_object"}})
            assert [kind for chunk in chunks for kind in ("progress", "partial_json") if kind in chunk] == [
                "progress", "progress", "partial_json", "partial_json",
            ]  # fmt: skip


async def test_a_stream_is_continued_as_it_says() -> None:
    async with live_server(ScriptedEngine(reply=text_reply("abc"))) as server:
        body = {"prompt": "a", "stream": True, "request_id": "one", "resumable": True}
        events = await ask(server, "/v1/completions", "post", body)
        assert await ask(server, "/v1/streams/{stream_id}", stream_id="one") == events
        gone = await ask(server, "/v1/streams/{stream_id}", stream_id="two")
    assert gone["error"]["code"] == "resume_gap"


@pytest.mark.parametrize(("path", "method", "allow"), [("/v1/models", "post", {"GET"}), ("/v1/responses", "get", {"POST"})])
async def test_a_wrong_method_is_told_the_right_ones(path: str, method: str, allow: set[str]) -> None:
    async with live_server(ScriptedEngine()) as server, request(server.port, method.upper(), path, {}) as response:
        assert response.status == 405
        validate(json.loads(await response.body()), {"$ref": "#/components/schemas/Error"})
    assert allow <= set(response.headers["allow"].split(", ")) <= allow | {"OPTIONS", "HEAD"}
