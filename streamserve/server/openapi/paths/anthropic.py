"""Paths of Anthropic's messages."""

from __future__ import annotations

from streamserve.server.apis.anthropic.response_schemas import AnthropicError, AnthropicMessage, MessageStreamEvent, TokenCount
from streamserve.server.apis.anthropic.schema import CountRequest, MessagesRequest
from streamserve.server.openapi.examples import QUESTION
from streamserve.server.openapi.operations import (
    RESUMING,
    Body,
    Paths,
    json_content,
    operation,
    streamed_content,
    with_body,
    with_errors,
)

_MESSAGES = {
    "whole": {"model": "demo", "messages": QUESTION, "max_tokens": 16},
    "streamed": {"model": "demo", "messages": QUESTION, "max_tokens": 16, "stream": True},
}


REQUESTS: list[Body] = [CountRequest, MessagesRequest]
RESPONSES: list[Body] = [AnthropicError, AnthropicMessage, MessageStreamEvent, TokenCount]


def message_paths() -> Paths:
    """Messages, and the tokens that one would read."""
    answer = operation(
        "createMessage",
        "The next message, in Anthropic's API.",
        streamed_content(AnthropicMessage, MessageStreamEvent),
        *RESUMING,
    )
    count = operation("countTokens", "The number of tokens that a message would read.", json_content(TokenCount))
    counted = {"whole": {"model": "demo", "messages": QUESTION}}
    return with_errors(
        {
            "/v1/messages": {"post": with_body(answer, MessagesRequest, _MESSAGES)},
            "/v1/messages/count_tokens": {"post": with_body(count, CountRequest, counted)},
        },
        AnthropicError,
    )
