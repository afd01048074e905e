"""Response bodies of Anthropic's API, for /openapi.json. Types only."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType


class TextBlock(Struct, kw_only=True, tag="text"):
    """Text of a message."""

    text: str


class ThinkingBlock(Struct, kw_only=True, tag="thinking"):
    """What the model wrote before its answer."""

    thinking: str
    signature: str


class ToolUseBlock(Struct, kw_only=True, tag="tool_use"):
    """A call of a tool, which a `tool_result` answers."""

    id: str
    name: str
    input: dict[str, Any]


ContentBlock = TextBlock | ThinkingBlock | ToolUseBlock


class MessageUsage(Struct, kw_only=True):
    """Tokens of a message and of what it answers; `input_tokens` are those that were not cached."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class AnthropicMessage(Struct, kw_only=True):
    """The answer of /v1/messages."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[ContentBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "abort"] | None
    stop_sequence: str | None
    usage: MessageUsage


class MessageStreamEvent(Struct, kw_only=True):
    """One event of a streamed message; which fields it has depends on its type."""

    type: str
    message: AnthropicMessage | UnsetType = UNSET
    index: int | UnsetType = UNSET
    content_block: ContentBlock | UnsetType = UNSET
    delta: dict[str, Any] | UnsetType = UNSET
    usage: MessageUsage | UnsetType = UNSET
    error: dict[str, str] | UnsetType = UNSET


class TokenCount(Struct, kw_only=True):
    """The answer of /v1/messages/count_tokens."""

    input_tokens: int


class AnthropicErrorObject(Struct, kw_only=True):
    """What is wrong."""

    type: str
    message: str


class AnthropicError(Struct, kw_only=True):
    """The body of every error of Anthropic's API."""

    type: Literal["error"]
    error: AnthropicErrorObject
