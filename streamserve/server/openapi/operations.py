"""Operations of the OpenAPI document, and what they are made of: parameters, bodies, errors. Pure functions."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from streamserve.server.openapi.response_schemas import Error

Schema: TypeAlias = dict[str, Any]
Operation: TypeAlias = dict[str, Any]
Paths: TypeAlias = dict[str, dict[str, Operation]]
"""Operations by path and method."""
Body: TypeAlias = type[msgspec.Struct]

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

LAST_EVENT_ID: Schema = {"name": "Last-Event-ID", "in": "header", "schema": {"type": "string"}}

RESUMING: tuple[Schema, ...] = (
    {"name": "X-Stream-Resume", "in": "header", "schema": {"type": "string", "enum": ["0", "1"]}},
    LAST_EVENT_ID,
)
"""Headers of what streams events that can be continued."""


def operation(operation_id: str, summary: str, content: Schema, *parameters: Schema) -> Operation:
    """One that answers 200 with `content`, or with an error."""
    statuses = [known for known in _STATUS_TEXT if known not in (*_BODY_ERRORS, "401")]
    answer = {"description": summary, **({"content": content} if content else {})}
    described = {
        "operationId": operation_id,
        "summary": summary,
        "responses": {"200": answer, **{error: _error(error) for error in statuses}},
    }
    return {**described, "parameters": list(parameters)} if parameters else described


def secured(operation: Operation) -> Operation:
    """An operation that requires a key when the server has any."""
    return {**operation, "security": [{"bearer": []}, {}], "responses": {**operation["responses"], "401": _error("401")}}


def with_body(operation: Operation, body: Body, examples: dict[str, Any]) -> Operation:
    """An operation that reads `body`, and requires a key when the server has any; examples are by name."""
    content = {"schema": _ref(body), "examples": {name: {"value": value} for name, value in examples.items()}}
    responses = {**operation["responses"], **{status: _error(status) for status in _BODY_ERRORS}}
    return secured(
        {
            **operation,
            "requestBody": {"required": True, "content": {"application/json": content}},
            "responses": responses,
        }
    )


def with_errors(paths: Paths, error: Body) -> Paths:
    """The paths of an API whose errors have a shape of their own."""
    for operations in paths.values():
        for operation in operations.values():
            answers = operation["responses"]
            answers |= {status: {**answers[status], "content": json_content(error)} for status in answers if status >= "400"}
    return paths


def with_heads(paths: Paths) -> Paths:
    """The paths, each that answers GET with HEAD, too."""
    return {path: each | {"head": _head(each["get"])} if "get" in each else each for path, each in paths.items()}


def path_parameter(name: str, example: str) -> Schema:
    """A part of the path."""
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}, "example": example}


def query_parameter(name: str, schema: Schema) -> Schema:
    """An optional parameter behind the `?`."""
    return {"name": name, "in": "query", "schema": schema}


def json_content(*bodies: Body) -> Schema:
    """One of these objects."""
    refs = [_ref(body) for body in bodies]
    return {"application/json": {"schema": refs[0] if len(refs) == 1 else {"anyOf": refs}}}


def streamed_content(whole: Body, event: Body) -> Schema:
    """One object, or server-sent events whose data are objects of their own kind."""
    return {**json_content(whole), **events_content(event)}


def events_content(*kinds: Body) -> Schema:
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


def _head(operation: Operation) -> Operation:
    """The operation without bodies."""
    answers = {status: {"description": answer["description"]} for status, answer in operation["responses"].items()}
    return {**operation, "operationId": f"{operation['operationId']}Head", "summary": "As GET.", "responses": answers}


def _error(status: str) -> Schema:
    return {"description": _STATUS_TEXT[status], "content": json_content(Error)}


def _ref(body: Body) -> Schema:
    return {"$ref": f"#/components/schemas/{body.__name__}"}
