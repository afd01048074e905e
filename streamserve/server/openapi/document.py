"""The OpenAPI document: paths and examples, listed here, and schemas, derived from structs.

Pure functions. The structs of request bodies are those that requests are decoded into; the structs of response bodies
describe what the endpoints encode, and tests hold each endpoint to them.
"""

from __future__ import annotations

from typing import Any

import msgspec

import streamserve
from streamserve.server.apis.anthropic.response_schemas import AnthropicError, AnthropicMessage, MessageStreamEvent, TokenCount
from streamserve.server.apis.anthropic.schema import CountRequest, MessagesRequest
from streamserve.server.apis.openai.response_schemas import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    EmbeddingList,
    Text,
    Tokens,
)
from streamserve.server.apis.openai.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeRequest,
)
from streamserve.server.apis.responses.compaction import CompactRequest
from streamserve.server.apis.responses.response_schemas import (
    CompactedResponse,
    InputItems,
    InputTokens,
    Response,
    ResponseCancelled,
    ResponseDeleted,
    ResponseStreamEvent,
)
from streamserve.server.apis.responses.schema import ResponseRequest
from streamserve.server.openapi.response_schemas import (
    Error,
    Model,
    ModelList,
    ReadyStatus,
    RequestAnswering,
    RequestCancelled,
    ServerLoad,
    Version,
)

Schema = dict[str, Any]
Operation = dict[str, Any]
Body = type[msgspec.Struct]

REQUESTS: list[Body] = [
    ChatRequest,
    CompactRequest,
    CompletionRequest,
    CountRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    MessagesRequest,
    ResponseRequest,
    TokenizeRequest,
]
RESPONSES: list[Body] = [
    AnthropicError,
    AnthropicMessage,
    ChatCompletion,
    ChatCompletionChunk,
    CompactedResponse,
    Completion,
    CompletionChunk,
    EmbeddingList,
    Error,
    InputItems,
    InputTokens,
    MessageStreamEvent,
    Model,
    ModelList,
    ReadyStatus,
    RequestAnswering,
    RequestCancelled,
    Response,
    ResponseCancelled,
    ResponseDeleted,
    ResponseStreamEvent,
    ServerLoad,
    Text,
    TokenCount,
    Tokens,
    Version,
]

DESCRIPTION = """\
An OpenAI-compatible server that streams open-weight language models.

With `"stream": true` an answer is `text/event-stream`: each event is `data: ` and one JSON object, the last one `data: [DONE]`;
those of `/v1/responses` also carry an `event:` line and end with their terminal event. A blank line says that the server is
still at it. An error after the 200 is an event `{"error": …}`. Fields that no one here knows are named in a `Warning` header.
With `X-Stream-Resume: 1` or `"resumable": true` the events of a completion or chat have ids: send the last one seen as
`Last-Event-ID`, to the same path or to `/v1/streams/{stream_id}`, to go on after a dropped connection.

`/v1/ws` and `/v1/responses` also take WebSocket upgrades. One socket carries many streams: send
`{"type": "chat.completion.create" | "completion.create" | "response.create", "stream_id": …}` with the fields of the POST body;
receive the objects that the SSE stream would carry, each with its `stream_id` and a `sequence_number`. `response.cancel` ends a
stream, `response.resume` goes on with one after a dropped connection, `ping` is answered with `pong`. Upgrades are refused with
an HTTP status and an error body. A browser may send its key as the subprotocol `openai-insecure-api-key.<key>`.
"""

_STATUS_TEXT = {
    "400": "The request is wrong; `param` names the parameter.",
    "401": "The API key is missing or wrong.",
    "404": "No such model, path or request.",
    "405": "The path does not answer to this method; `Allow` names those it does.",
    "410": "These events are kept no longer.",
    "413": "The body is too large.",
    "429": "Too many requests wait; try again after `Retry-After`.",
    "500": "The server failed.",
    "503": "Loading, draining or without an engine.",
}
_BODY_ERRORS = ("413", "429")
_QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
_CITY: Schema = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}
_WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
_COMPLETIONS = {
    "whole": {"model": "demo", "prompt": "The capital of France is", "max_tokens": 16},
    "streamed": {"model": "demo", "prompt": "Once upon a time", "max_tokens": 16, "stream": True},
    "several": {"model": "demo", "prompt": ["One", "Two"], "n": 2, "seed": 1, "logprobs": 2, "max_tokens": 4},
}
_CHATS = {
    "whole": {"model": "demo", "messages": _QUESTION, "max_tokens": 16},
    "streamed": {"model": "demo", "messages": _QUESTION, "stream": True, "stream_options": {"include_usage": True}},
    "tools": {"model": "demo", "messages": _QUESTION, "tools": [_WEATHER], "tool_choice": "none", "max_tokens": 16},
    "structured": {
        "model": "demo",
        "messages": _QUESTION,
        "response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": _CITY}},
    },
}
_EMBEDDINGS = {
    "whole": {"model": "demo", "input": "The capital of France is Paris."},
    "several": {"model": "demo", "input": ["One", "Two"], "encoding_format": "base64", "dimensions": 8},
}
_MESSAGES = {
    "whole": {"model": "demo", "messages": _QUESTION, "max_tokens": 16},
    "streamed": {"model": "demo", "messages": _QUESTION, "max_tokens": 16, "stream": True},
}
_RESPONSES = {
    "whole": {"model": "demo", "input": "Hello!", "max_output_tokens": 16},
    "streamed": {"model": "demo", "input": _QUESTION, "instructions": "Answer in one word.", "stream": True},
}


_LAST_EVENT_ID: Schema = {"name": "Last-Event-ID", "in": "header", "schema": {"type": "string"}}
_RESUMING: tuple[Schema, ...] = (
    {"name": "X-Stream-Resume", "in": "header", "schema": {"type": "string", "enum": ["0", "1"]}},
    _LAST_EVENT_ID,
)


def document(root_path: str = "") -> dict[str, Any]:
    """The OpenAPI 3.1 description of this server."""
    _, schemas = msgspec.json.schema_components([*REQUESTS, *RESPONSES], ref_template="#/components/schemas/{name}")
    return {
        "openapi": "3.1.0",
        "info": {"title": "streamserve", "version": streamserve.__version__, "description": DESCRIPTION},
        "servers": [{"url": root_path or "/"}],
        "paths": _with_heads({**_generation(), **_messages(), **_responses(), **_tokenizer(), **_state(), **_page()}),
        "components": {
            "schemas": schemas,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _generation() -> dict[str, dict[str, Operation]]:
    return {
        "/v1/models": {"get": _secured(_operation("listModels", "The served models.", _json(ModelList)))},
        "/v1/models/{name}": {
            "get": _secured(_operation("showModel", "One served model.", _json(Model), _path("name", "demo")))
        },
        "/v1/completions": {
            "post": _with_body(
                _operation(
                    "createCompletion",
                    "Continue one or several prompts.",
                    _streamed(Completion, CompletionChunk),
                    *_RESUMING,
                ),
                CompletionRequest,
                _COMPLETIONS,
            )
        },
        "/v1/chat/completions": {
            "post": _with_body(
                _operation(
                    "createChatCompletion",
                    "The next message of a conversation.",
                    _streamed(ChatCompletion, ChatCompletionChunk),
                    *_RESUMING,
                ),
                ChatRequest,
                _CHATS,
            )
        },
        "/invocations": {
            "post": _with_body(
                _operation(
                    "invoke",
                    "SageMaker's path for chats, which have `messages`, and completions, which have a `prompt`.",
                    _streamed(ChatCompletion, ChatCompletionChunk),
                ),
                ChatRequest,
                {"whole": _CHATS["whole"], "streamed": _CHATS["streamed"]},
            )
        },
        "/v1/streams/{stream_id}": {"get": _continued()},
        "/v1/embeddings": {
            "post": _with_body(
                _operation("createEmbedding", "A vector for each of one or several prompts.", _json(EmbeddingList)),
                EmbeddingRequest,
                _EMBEDDINGS,
            )
        },
        "/v1/requests/{request_id}/cancel": {
            "post": _secured(
                _operation(
                    "cancelRequest",
                    'End a running request; its stream ends with finish_reason "abort" and keeps its text.',
                    _json(RequestCancelled),
                    _path("request_id", "cmpl-1"),
                )
            )
        },
        "/v1/requests/{request_id}/answer": {
            "post": _secured(
                _operation(
                    "answerNow",
                    "End the reasoning of a running request within one step; its answer goes on in the same stream.",
                    _json(RequestAnswering),
                    _path("request_id", "chatcmpl-1"),
                )
            )
        },
    }


def _continued() -> Operation:
    operation = _operation(
        "continueStream",
        "The events of a stream behind the one that `Last-Event-ID` names, or from the first, and those to come.",
        _events(CompletionChunk, ChatCompletionChunk, ResponseStreamEvent),
        _path("stream_id", "chatcmpl-1"),
        _LAST_EVENT_ID,
    )
    everything_read = {"204": {"description": "That event was the last."}}
    return _secured({**operation, "responses": {**operation["responses"], **everything_read}})


def _messages() -> dict[str, dict[str, Operation]]:
    answer = _operation(
        "createMessage", "The next message, in Anthropic's API.", _streamed(AnthropicMessage, MessageStreamEvent)
    )
    count = _operation("countTokens", "The number of tokens that a message would read.", _json(TokenCount))
    counted = {"whole": {"model": "demo", "messages": _QUESTION}}
    return _with_errors(
        {
            "/v1/messages": {"post": _with_body(answer, MessagesRequest, _MESSAGES)},
            "/v1/messages/count_tokens": {"post": _with_body(count, CountRequest, counted)},
        },
        AnthropicError,
    )


def _responses() -> dict[str, dict[str, Operation]]:
    one = _path("response_id", "resp_1")
    events = _streamed(Response, ResponseStreamEvent)
    return {
        "/v1/responses": {
            "post": _with_body(_operation("createResponse", "Answer an input.", events), ResponseRequest, _RESPONSES)
        },
        "/v1/responses/input_tokens": {
            "post": _with_body(
                _operation("countInputTokens", "The number of tokens that a response would read.", _json(InputTokens)),
                ResponseRequest,
                {"whole": {"model": "demo", "input": "Hello!"}},
            )
        },
        "/v1/responses/compact": {
            "post": _with_body(
                _operation("compactResponse", "A shorter conversation in place of a long one.", _json(CompactedResponse)),
                CompactRequest,
                {"whole": {"model": "demo", "input": _QUESTION}},
            )
        },
        "/v1/responses/{response_id}": {
            "get": _secured(
                _operation(
                    "showResponse",
                    "A response as it stands; with `stream=true` its events after number `starting_after`.",
                    events,
                    one,
                    _query("stream", {"type": "boolean"}),
                    _query("starting_after", {"type": "integer"}),
                )
            ),
            "delete": _secured(_operation("deleteResponse", "Forget a response.", _json(ResponseDeleted), one)),
        },
        "/v1/responses/{response_id}/cancel": {
            "post": _secured(
                _operation("cancelResponse", "End a response; it keeps its text.", _json(Response, ResponseCancelled), one)
            )
        },
        "/v1/responses/{response_id}/input_items": {
            "get": _secured(
                _operation(
                    "listInputItems",
                    "The input of a response.",
                    _json(InputItems),
                    one,
                    _query("order", {"type": "string", "enum": ["asc", "desc"]}),
                    _query("after", {"type": "string"}),
                    _query("limit", {"type": "integer", "minimum": 1, "maximum": 100}),
                )
            )
        },
    }


def _tokenizer() -> dict[str, dict[str, Operation]]:
    tokenize = _operation("tokenize", "The token ids of a prompt or of a conversation.", _json(Tokens))
    detokenize = _operation("detokenize", "The text of token ids.", _json(Text))
    prompts = {"prompt": {"model": "demo", "prompt": "Hello!"}, "chat": {"model": "demo", "messages": _QUESTION}}
    return {
        "/tokenize": {"post": _with_body(tokenize, TokenizeRequest, prompts)},
        "/detokenize": {"post": _with_body(detokenize, DetokenizeRequest, {"whole": {"tokens": [104, 105]}})},
    }


def _state() -> dict[str, dict[str, Operation]]:
    text = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "/live": {"get": _operation("live", "200 while the process answers: for liveness probes.", text)},
        "/health": {
            "get": _operation(
                "health", "200 while requests are taken: 503 while loading or draining, and once the engine is gone.", text
            )
        },
        "/ping": {
            "get": _operation("ping", "As /health, under SageMaker's name.", text),
            "post": _operation("pingByPost", "As GET.", text),
        },
        "/ready": {
            "get": _operation("ready", "As /health, and 503 while the engine's loop stands still, too.", _json(ReadyStatus))
        },
        "/version": {"get": _operation("version", "The server's version.", _json(Version))},
        "/load": {"get": _secured(_operation("load", "How busy the server is.", _json(ServerLoad)))},
        "/metrics": {"get": _secured(_operation("metrics", "Prometheus' text format.", text))},
        "/openapi.json": {
            "get": _secured(_operation("openapi", "This document.", {"application/json": {"schema": {"type": "object"}}}))
        },
    }


def _page() -> dict[str, dict[str, Operation]]:
    html = {"text/html": {"schema": {"type": "string"}}}
    return {
        "/": {"get": _operation("page", "The chat page.", html)},
        "/chat/{name}": {
            "get": _operation("pageFile", "A file that the chat page loads.", {"*/*": {}}, _path("name", "chat.css"))
        },
    }


def _operation(operation_id: str, summary: str, content: Schema, *parameters: Schema) -> Operation:
    statuses = [known for known in _STATUS_TEXT if known not in (*_BODY_ERRORS, "401")]
    answer = {"description": summary, **({"content": content} if content else {})}
    operation = {
        "operationId": operation_id,
        "summary": summary,
        "responses": {"200": answer, **{error: _error(error) for error in statuses}},
    }
    return {**operation, "parameters": list(parameters)} if parameters else operation


def _secured(operation: Operation) -> Operation:
    """An operation that requires a key when the server has any."""
    return {**operation, "security": [{"bearer": []}, {}], "responses": {**operation["responses"], "401": _error("401")}}


def _with_heads(paths: dict[str, dict[str, Operation]]) -> dict[str, dict[str, Operation]]:
    """The paths, each that answers GET with HEAD, too."""
    return {path: each | {"head": _head(each["get"])} if "get" in each else each for path, each in paths.items()}


def _head(operation: Operation) -> Operation:
    """The operation without bodies."""
    answers = {status: {"description": answer["description"]} for status, answer in operation["responses"].items()}
    return {**operation, "operationId": f"{operation['operationId']}Head", "summary": "As GET.", "responses": answers}


def _with_body(operation: Operation, body: Body, examples: dict[str, Any]) -> Operation:
    content = {"schema": _ref(body), "examples": {name: {"value": value} for name, value in examples.items()}}
    responses = {**operation["responses"], **{status: _error(status) for status in _BODY_ERRORS}}
    return _secured(
        {
            **operation,
            "requestBody": {"required": True, "content": {"application/json": content}},
            "responses": responses,
        }
    )


def _error(status: str) -> Schema:
    return {"description": _STATUS_TEXT[status], "content": _json(Error)}


def _with_errors(paths: dict[str, dict[str, Operation]], error: Body) -> dict[str, dict[str, Operation]]:
    """The paths of an API whose errors have a shape of their own."""
    for operations in paths.values():
        for operation in operations.values():
            answers = operation["responses"]
            answers |= {status: {**answers[status], "content": _json(error)} for status in answers if status >= "400"}
    return paths


def _path(name: str, example: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}, "example": example}


def _query(name: str, schema: Schema) -> Schema:
    return {"name": name, "in": "query", "schema": schema}


def _ref(body: Body) -> Schema:
    return {"$ref": f"#/components/schemas/{body.__name__}"}


def _json(*bodies: Body) -> Schema:
    """One of these objects."""
    refs = [_ref(body) for body in bodies]
    return {"application/json": {"schema": refs[0] if len(refs) == 1 else {"anyOf": refs}}}


def _streamed(whole: Body, event: Body) -> Schema:
    """One object, or server-sent events whose data are objects of their own kind."""
    return {**_json(whole), **_events(event)}


def _events(*kinds: Body) -> Schema:
    """Server-sent events whose data are objects of these kinds."""
    refs = [_ref(kind) for kind in kinds]
    # OpenAPI 3.1 has no word for the items of a stream; by custom the schema describes each event.
    described = {
        "type": "object",
        "description": f"Server-sent events, each with a {' or '.join(kind.__name__ for kind in kinds)} as its data.",
        "required": ["data"],
        "properties": {"data": {"type": "string"}, "event": {"type": "string"}, "id": {"type": "string"}},
        "x-event": refs[0] if len(refs) == 1 else {"anyOf": refs},
    }
    return {"text/event-stream": {"schema": described}}
