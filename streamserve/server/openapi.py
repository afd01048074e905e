"""/openapi.json: what is served, written from the same structs that requests are checked with.

Pure functions. The schemas of bodies come from `schemas`; paths, answers and examples are listed here.
"""

from __future__ import annotations

from typing import Any

import msgspec

import streamserve
from streamserve.server.responses.schema import ResponseRequest
from streamserve.server.schemas import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_ANSWER = {
    "type": "object",
    "required": ["id", "object"],
    "properties": {"id": {"type": "string"}, "object": {"type": "string"}},
}
_STATUS_TEXT = {
    "400": "The request is wrong; `param` names the parameter.",
    "401": "The API key is missing or wrong.",
    "404": "No such model, path or request.",
    "405": "The path does not answer to this method.",
    "413": "The body is too large.",
    "429": "Too many requests wait; try again after `Retry-After`.",
    "500": "The server failed.",
    "503": "Loading, draining or without an engine.",
}


def document(root_path: str = "") -> dict[str, Any]:
    """The OpenAPI 3.1 description of this server."""
    bodies = [CompletionRequest, ChatRequest, ResponseRequest, TokenizeRequest, DetokenizeRequest]
    _, schemas = msgspec.json.schema_components(bodies, ref_template="#/components/schemas/{name}")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "streamserve",
            "version": streamserve.__version__,
            "description": "An OpenAI-compatible server that streams open-weight language models.",
        },
        "servers": [{"url": root_path or "/"}],
        "paths": _paths(),
        "components": {
            "schemas": {**schemas, "Error": _ERROR, "Answer": _ANSWER},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _paths() -> dict[str, dict[str, Any]]:
    return {
        "/v1/models": {"get": _operation("listModels", "The served models.", _json({"type": "object"}), secured=True)},
        "/v1/models/{name}": {
            "get": _operation("showModel", "One served model.", _json({"type": "object"}), secured=True, parameter="name")
        },
        "/v1/completions": {
            "post": _operation(
                "createCompletion",
                "Continue one or several prompts; server-sent events with `stream: true`.",
                _generated(),
                body="CompletionRequest",
                example={"model": "demo", "prompt": "The capital of France is", "max_tokens": 16, "stream": True},
                secured=True,
            )
        },
        "/v1/chat/completions": {
            "post": _operation(
                "createChatCompletion",
                "The next message of a conversation; server-sent events with `stream: true`.",
                _generated(),
                body="ChatRequest",
                example={"model": "demo", "messages": [{"role": "user", "content": "Hello!"}], "stream": True},
                secured=True,
            )
        },
        "/v1/responses": {
            "post": _operation(
                "createResponse",
                "Answer an input; server-sent events with `stream: true`.",
                _generated(),
                body="ResponseRequest",
                example={"model": "demo", "input": "Hello!", "stream": True},
                secured=True,
            )
        },
        "/v1/responses/{response_id}": {
            "get": _response(
                "showResponse", "A response as it stands; its events from `starting_after` on with `stream=true`.", _generated()
            ),
            "delete": _response("deleteResponse", "Forget a response."),
        },
        "/v1/responses/{response_id}/cancel": {"post": _response("cancelResponse", "End a response, keeping its text.")},
        "/v1/responses/{response_id}/input_items": {"get": _response("listInputItems", "What a response was asked.")},
        "/v1/requests/{request_id}/cancel": {
            "post": _operation(
                "cancelRequest", "End a running request.", _json({"type": "object"}), secured=True, parameter="request_id"
            )
        },
        "/tokenize": {
            "post": _operation(
                "tokenize",
                "The token ids of a prompt or conversation.",
                _json({"type": "object"}),
                body="TokenizeRequest",
                example={"prompt": "Hello!"},
            )
        },
        "/detokenize": {
            "post": _operation(
                "detokenize",
                "The text of token ids.",
                _json({"type": "object"}),
                body="DetokenizeRequest",
                example={"tokens": [1, 2, 3]},
            )
        },
        "/health": {"get": _operation("health", "200 while the process is alive.", {"text/plain": {}})},
        "/ready": {"get": _operation("ready", "200 while requests are taken.", _json({"type": "object"}))},
        "/version": {"get": _operation("version", "The server's version.", _json({"type": "object"}))},
        "/load": {"get": _operation("load", "How busy the server is.", _json({"type": "object"}))},
        "/metrics": {"get": _operation("metrics", "Prometheus' text format.", {"text/plain": {}})},
        "/openapi.json": {"get": _operation("openapi", "This document.", _json({"type": "object"}))},
    }


def _response(operation_id: str, summary: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
    """An operation on one response."""
    return _operation(operation_id, summary, content or _json({"type": "object"}), secured=True, parameter="response_id")


def _operation(
    operation_id: str,
    summary: str,
    content: dict[str, Any],
    *,
    body: str | None = None,
    example: dict[str, Any] | None = None,
    secured: bool = False,
    parameter: str | None = None,
) -> dict[str, Any]:
    errors = {
        status: {"description": text, "content": _json({"$ref": "#/components/schemas/Error"})}
        for status, text in _STATUS_TEXT.items()
    }
    operation: dict[str, Any] = {
        "operationId": operation_id,
        "summary": summary,
        "responses": {"200": {"description": summary, "content": content}, **errors},
    }
    if body is not None:
        schema = {"$ref": f"#/components/schemas/{body}"}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}
    if secured:
        operation["security"] = [{"bearer": []}, {}]
    if parameter is not None:
        operation["parameters"] = [{"name": parameter, "in": "path", "required": True, "schema": {"type": "string"}}]
    return operation


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _generated() -> dict[str, Any]:
    return {**_json({"$ref": "#/components/schemas/Answer"}), "text/event-stream": {"schema": {"type": "string"}}}
