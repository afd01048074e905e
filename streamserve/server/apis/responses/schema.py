"""The body of POST /v1/responses and of `response.create`, and what of it can't be done here.

Pure functions. What is left becomes a chat request, so that parameters are checked, defaulted and sampled in one place.
"""

from __future__ import annotations

from typing import Any

import msgspec

from streamserve.errors import InvalidParameter, UnsupportedParameter
from streamserve.server.apis.openai.requests.schemas import (
    ChatRequest,
    Count,
    JsonSchemaFormat,
    Priority,
    ReasoningInput,
    RequestId,
    ResponseFormat,
    Seed,
    StructuredOutputsInput,
)
from streamserve.server.apis.openai.requests.tools import ALLOWED

LOGPROBS = "message.output_text.logprobs"


class TextFormat(msgspec.Struct, kw_only=True):
    """`text.format`: text, json_object or json_schema."""

    type: str = "text"
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class TextConfig(msgspec.Struct, kw_only=True):
    """`text` of a request."""

    format: TextFormat | None = None
    verbosity: str | None = None


class ReasoningConfig(msgspec.Struct, kw_only=True):
    """`reasoning`: how much the model should think; `max_tokens` as `thinking_token_budget`."""

    effort: str | None = None
    max_tokens: Count | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ResponseStreamOptions(msgspec.Struct, kw_only=True):
    """include_obfuscation: random characters that hide the length of tokens."""

    include_obfuscation: bool | None = None


class ResponseRequest(msgspec.Struct, kw_only=True):
    """POST /v1/responses: OpenAI's fields, then the sampling parameters that this server adds."""

    input: str | list[dict[str, Any]] | None = None
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: Count | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: Count | None = None
    include: list[str] | None = None
    metadata: dict[str, str] | None = None
    text: TextConfig | None = None
    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    truncation: str | None = None
    service_tier: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    generate: bool | None = None

    reasoning: ReasoningConfig | None = None
    max_tool_calls: Count | None = None
    conversation: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    context_management: list[Any] | None = None
    moderation: dict[str, Any] | None = None
    prompt_cache_options: dict[str, Any] | None = None
    background_options: dict[str, Any] | None = None

    seed: Seed | None = None
    top_k: Count | None = None
    min_p: float | None = None
    min_tokens: Count | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[Count] | None = None
    bad_words: list[str] | None = None
    ignore_eos: bool | None = None
    max_time: float | None = None
    priority: Priority | None = None
    request_id: RequestId | None = None
    cache_salt: str | None = None
    structured_outputs: StructuredOutputsInput | None = None
    truncation_side: str | None = None
    logprob_token_ids: list[Count] | None = None
    thinking_token_budget: Count | None = None
    whitespace_pattern: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def is_stored(self) -> bool:
        return self.store is not False

    @property
    def generates(self) -> bool:
        """Whether it is answered; else its input is only computed, ahead of a request that continues it."""
        return self.generate is not False

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ()) or bool(self.top_logprobs)


_UNSUPPORTED = {
    "conversation": "continue with previous_response_id",
    "prompt": "this server keeps no prompt templates; send the text",
    "context_management": "send a shorter input",
    "moderation": "this server does not moderate",
    "background_options": "background responses run at once",
}
_SAMPLED = (
    "temperature",
    "top_p",
    "seed",
    "top_k",
    "min_p",
    "min_tokens",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "stop",
    "stop_token_ids",
    "bad_words",
    "ignore_eos",
    "max_time",
    "priority",
    "request_id",
    "cache_salt",
    "structured_outputs",
    "truncation_side",
    "logprob_token_ids",
    "thinking_token_budget",
    "whitespace_pattern",
    "chat_template_kwargs",
    "parallel_tool_calls",
    "user",
)


def as_chat(request: ResponseRequest, messages: list[dict[str, Any]]) -> ChatRequest:
    """The chat request that answers a response request.

    messages  of the conversation, this turn's input included

    Raises `InvalidParameter` or `UnsupportedParameter` by name.
    """
    if not messages and request.generates:
        raise InvalidParameter("input", "must hold at least one item")
    _refuse(request)
    if request.instructions is not None:
        messages = [{"role": "system", "content": request.instructions}, *messages]
    logprobs = request.wants_logprobs
    return ChatRequest(
        model=request.model,
        messages=messages,
        max_completion_tokens=request.max_output_tokens,
        stream=True,
        add_generation_prompt=request.generates,
        logprobs=logprobs or None,
        top_logprobs=request.top_logprobs if logprobs else None,
        response_format=_response_format(request.text),
        reasoning_effort=None if request.reasoning is None else request.reasoning.effort,
        reasoning=None if request.reasoning is None else ReasoningInput(max_tokens=request.reasoning.max_tokens),
        tools=None if request.tools is None else [_chat_tool(f"tools[{i}]", tool) for i, tool in enumerate(request.tools)],
        tool_choice=_chat_choice(request.tool_choice),
        **{name: getattr(request, name) for name in _SAMPLED},
    )


def _refuse(request: ResponseRequest) -> None:
    for name, reason in _UNSUPPORTED.items():
        if getattr(request, name):
            raise UnsupportedParameter(name, reason)
    if request.background and not request.is_stored:
        raise InvalidParameter("background", "needs store: the response could not be fetched otherwise")


def without_effect(request: ResponseRequest) -> list[str]:
    """Names of the hints that change nothing here: they are no orders, so that answers come and their headers name them."""
    reasoning, text, options = request.reasoning, request.text, request.stream_options
    hints = {
        "include": any(name != LOGPROBS for name in request.include or ()),
        "max_tool_calls": request.max_tool_calls is not None,
        "prompt_cache_options": bool(request.prompt_cache_options),
        "reasoning.summary": reasoning is not None and bool(reasoning.summary or reasoning.generate_summary),
        "service_tier": request.service_tier not in (None, "auto", "default"),
        "stream_options.include_obfuscation": options is not None and bool(options.include_obfuscation),
        "text.verbosity": text is not None and text.verbosity not in (None, "medium"),
        "truncation": request.truncation not in (None, "disabled"),
    }
    return [name for name, is_given in hints.items() if is_given]


def _chat_tool(where: str, tool: dict[str, Any]) -> dict[str, Any]:
    """A function as chats describe it: one level deeper."""
    kind = tool.get("type")
    if kind != "function":
        raise UnsupportedParameter(f"{where}.type", f"{kind!r}: the only type is function")
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _chat_choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    """The choice as chats describe it, where what is named lies one level deeper."""
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") == "function":
        return _chat_named(choice)
    if choice.get("type") == ALLOWED:
        named = choice.get("tools")
        tools = [_chat_named(tool) if isinstance(tool, dict) else tool for tool in named] if isinstance(named, list) else named
        return {"type": ALLOWED, ALLOWED: {"mode": choice.get("mode"), "tools": tools}}
    return choice


def _chat_named(named: dict[str, Any]) -> dict[str, Any]:
    return {"type": named.get("type", "function"), "function": {"name": named.get("name")}}


def _response_format(text: TextConfig | None) -> ResponseFormat | None:
    format = None if text is None else text.format
    if format is None:
        return None
    if format.type == "json_schema":
        return ResponseFormat(
            type="json_schema", json_schema=JsonSchemaFormat(name=format.name, schema=format.schema, strict=format.strict)
        )
    if format.type not in ("text", "json_object"):
        raise InvalidParameter("text.format.type", "must be text, json_object or json_schema")
    return ResponseFormat(type=format.type)
