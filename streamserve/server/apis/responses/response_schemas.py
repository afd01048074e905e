"""Response bodies of the Responses API, for /openapi.json.

Types only: answers are encoded piece by piece on the way out and never built from these.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputLogprob(Struct, kw_only=True):
    """A token, its logprob and its UTF-8 bytes."""

    token: str
    logprob: float
    bytes: list[int]


class OutputTokenLogprob(OutputLogprob, kw_only=True):
    """A token of the output, and the likeliest ones in its place."""

    top_logprobs: list[OutputLogprob]


class OutputText(Struct, tag="output_text", kw_only=True):
    """The text of a message."""

    text: str
    annotations: list[Any]
    logprobs: list[OutputTokenLogprob]


class ReasoningText(Struct, tag="reasoning_text", kw_only=True):
    """The text of reasoning."""

    text: str


class OutputMessage(Struct, tag="message", kw_only=True):
    """An output item with text for the user."""

    id: str
    status: ItemStatus
    role: Literal["assistant"]
    content: list[OutputText]


class OutputReasoning(Struct, tag="reasoning", kw_only=True):
    """An output item with the model's reasoning."""

    id: str
    status: ItemStatus
    summary: list[Any]
    content: list[ReasoningText]


class OutputFunctionCall(Struct, tag="function_call", kw_only=True):
    """An output item that calls a function; `arguments` is JSON."""

    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


OutputItem = OutputMessage | OutputReasoning | OutputFunctionCall


class ResponseFailure(Struct, kw_only=True):
    """Why a response failed."""

    code: str
    message: str


class IncompleteDetails(Struct, kw_only=True):
    """Why a response is incomplete."""

    reason: str


class ReasoningSettings(Struct, kw_only=True):
    """How much the model may reason."""

    effort: str | None
    summary: None


class InputTokensDetails(Struct, kw_only=True):
    """Input tokens whose KV was found in the prefix cache."""

    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(Struct, kw_only=True):
    """Output tokens that were reasoning."""

    reasoning_tokens: int


class ResponseUsage(Struct, kw_only=True):
    """Tokens of a response."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class Response(Struct, kw_only=True):
    """A response as it stands; `usage` is null until it has ended."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "cancelled", "failed"]
    background: bool
    completed_at: int | None
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: ReasoningSettings
    safety_identifier: str | None
    service_tier: Literal["default"]
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    user: str | None
    metadata: dict[str, str]


class InputTokens(Struct, kw_only=True):
    """The number of tokens that a response would read."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class Compaction(Struct, tag="compaction", kw_only=True):
    """An item that stands for the conversation before it; only this server reads its content."""

    id: str
    encrypted_content: str


class KeptMessage(Struct, tag="message", kw_only=True):
    """A message that a compacted conversation keeps as it was."""

    id: str
    status: Literal["completed"]
    role: Literal["system", "developer"]
    content: list[dict[str, Any]]


class CompactedResponse(Struct, kw_only=True):
    """A conversation in place of a longer one: the `input` of what goes on."""

    id: str
    object: Literal["response.compaction"]
    created_at: int
    output: list[KeptMessage | Compaction]
    usage: ResponseUsage


class ResponseCancelled(Struct, kw_only=True):
    """A response that ran, was not stored, and has been cancelled."""

    id: str
    object: Literal["response"]
    status: Literal["cancelled"]
    output: list[OutputItem]


class ResponseStreamEvent(Struct, kw_only=True):
    """One event of a streamed response; what else it holds depends on its `type`."""

    type: str
    sequence_number: int


class ResponseDeleted(Struct, kw_only=True):
    """A response that is kept no longer."""

    id: str
    object: Literal["response"]
    deleted: bool


class InputItems(Struct, kw_only=True):
    """One page of a response's input."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str
    last_id: str
    has_more: bool
