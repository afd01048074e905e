"""Paths of OpenAI's responses."""

from __future__ import annotations

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
from streamserve.server.openapi.examples import QUESTION
from streamserve.server.openapi.operations import (
    Body,
    Paths,
    json_content,
    operation,
    path_parameter,
    query_parameter,
    secured,
    streamed_content,
    with_body,
)

_RESPONSES = {
    "whole": {"model": "demo", "input": "Hello!", "max_output_tokens": 16},
    "streamed": {"model": "demo", "input": QUESTION, "instructions": "Answer in one word.", "stream": True},
}


REQUESTS: list[Body] = [CompactRequest, ResponseRequest]
RESPONSES: list[Body] = [
    CompactedResponse,
    InputItems,
    InputTokens,
    Response,
    ResponseCancelled,
    ResponseDeleted,
    ResponseStreamEvent,
]


def response_paths() -> Paths:
    """Responses, and what is kept of them."""
    one = path_parameter("response_id", "resp_1")
    events = streamed_content(Response, ResponseStreamEvent)
    return {
        "/v1/responses": {
            "post": with_body(operation("createResponse", "Answer an input.", events), ResponseRequest, _RESPONSES)
        },
        "/v1/responses/input_tokens": {
            "post": with_body(
                operation("countInputTokens", "The number of tokens that a response would read.", json_content(InputTokens)),
                ResponseRequest,
                {"whole": {"model": "demo", "input": "Hello!"}},
            )
        },
        "/v1/responses/compact": {
            "post": with_body(
                operation("compactResponse", "A shorter conversation in place of a long one.", json_content(CompactedResponse)),
                CompactRequest,
                {"whole": {"model": "demo", "input": QUESTION}},
            )
        },
        "/v1/responses/{response_id}": {
            "get": secured(
                operation(
                    "showResponse",
                    "A response as it stands; with `stream=true` its events after number `starting_after`.",
                    events,
                    one,
                    query_parameter("stream", {"type": "boolean"}),
                    query_parameter("starting_after", {"type": "integer"}),
                )
            ),
            "delete": secured(operation("deleteResponse", "Forget a response.", json_content(ResponseDeleted), one)),
        },
        "/v1/responses/{response_id}/cancel": {
            "post": secured(
                operation(
                    "cancelResponse", "End a response; it keeps its text.", json_content(Response, ResponseCancelled), one
                )
            )
        },
        "/v1/responses/{response_id}/input_items": {
            "get": secured(
                operation(
                    "listInputItems",
                    "The input of a response.",
                    json_content(InputItems),
                    one,
                    query_parameter("order", {"type": "string", "enum": ["asc", "desc"]}),
                    query_parameter("after", {"type": "string"}),
                    query_parameter("limit", {"type": "integer", "minimum": 1, "maximum": 100}),
                )
            )
        },
    }
