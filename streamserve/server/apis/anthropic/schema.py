"""The body of POST /v1/messages, and the chat request that answers it.

Pure functions. Parameters are checked, defaulted and sampled as those of a chat. https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

from typing import Any

import msgspec

from streamserve.errors import InvalidParameter, UnsupportedParameter
from streamserve.server.apis.anthropic.conversation import as_chat_messages, ends_in_answer
from streamserve.server.apis.openai.requests.schemas import (
    ChatRequest,
    Count,
    JsonSchemaFormat,
    ReasoningInput,
    ResponseFormat,
)

NO_THINKING = "none"
BUDGET = "thinking.budget_tokens"

_UNSUPPORTED = {
    "container": "this server runs no code",
    "context_management": "send the messages that the model is to read",
    "mcp_servers": "this server calls no tools of its own",
}


class Thinking(msgspec.Struct, kw_only=True):
    """`thinking`: whether the model reasons before it answers."""

    type: str
    budget_tokens: Count | None = None
    display: str | None = None


class ToolChoice(msgspec.Struct, kw_only=True):
    """`tool_choice`."""

    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class OutputFormat(msgspec.Struct, kw_only=True):
    """`output_config.format`: what the answer's text must conform to."""

    type: str
    schema: dict[str, Any] | None = None


class OutputConfig(msgspec.Struct, kw_only=True):
    """`output_config`."""

    effort: str | None = None
    format: OutputFormat | None = None


class CountRequest(msgspec.Struct, kw_only=True):
    """POST /v1/messages/count_tokens; null means not given."""

    messages: list[dict[str, Any]]
    model: str | None = None
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: dict[str, Any] | None = None
    container: Any = None
    context_management: dict[str, Any] | None = None
    mcp_servers: list[Any] | None = None

    @property
    def thinks(self) -> bool:
        """Whether reasoning is asked for: without `thinking` it is not."""
        return self.thinking is not None and self.thinking.type != "disabled"


class MessagesRequest(CountRequest, kw_only=True):
    """POST /v1/messages."""

    max_tokens: Count
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None


def as_chat(request: CountRequest) -> ChatRequest:
    """The chat that a request means. Raises `InvalidParameter` or `UnsupportedParameter` by name."""
    for name, reason in _UNSUPPORTED.items():
        if getattr(request, name):
            raise UnsupportedParameter(name, reason)
    if request.thinking is not None and request.thinking.type not in ("enabled", "disabled", "adaptive"):
        raise InvalidParameter("thinking.type", "must be enabled, disabled or adaptive")
    continues = ends_in_answer(request.messages)
    effort = None if request.output_config is None else request.output_config.effort
    choice, parallel = _tool_choice(request.tool_choice)
    return ChatRequest(
        model=request.model,
        messages=as_chat_messages(request.system, request.messages),
        add_generation_prompt=not continues,
        continue_final_message=continues,
        include_reasoning=request.thinks,
        reasoning_effort=effort if request.thinks else NO_THINKING,
        reasoning=_budget(request.thinking),
        tools=None if not request.tools else [_tool(f"tools[{i}]", tool) for i, tool in enumerate(request.tools)],
        tool_choice=choice,
        parallel_tool_calls=parallel,
        response_format=_response_format(request.output_config),
        **(_sampled(request) if isinstance(request, MessagesRequest) else {}),
    )


def without_effect(request: MessagesRequest, ignored: list[str]) -> list[str]:
    """Names of the parameters that change nothing here, by the names that they have in this API.

    ignored  those of the chat
    """
    names = [BUDGET if name == "thinking_token_budget" else name for name in ignored if name != "reasoning_effort"]
    if request.output_config is not None and request.output_config.effort and "reasoning_effort" in ignored:
        names.append("output_config.effort")
    if request.thinking is not None and request.thinking.display is not None:
        names.append("thinking.display")
    if request.service_tier not in (None, "auto", "standard_only"):
        names.append("service_tier")
    return names


def _budget(thinking: Thinking | None) -> ReasoningInput | None:
    if thinking is None or thinking.type != "enabled":
        return None
    return ReasoningInput(max_tokens=thinking.budget_tokens)


def _sampled(request: MessagesRequest) -> dict[str, Any]:
    if request.max_tokens < 1:
        raise InvalidParameter("max_tokens", "must be at least 1")
    names = ("temperature", "top_p", "top_k")
    return {**{name: getattr(request, name) for name in names}, "stop": request.stop_sequences or None}


def _tool(where: str, tool: dict[str, Any]) -> dict[str, Any]:
    kind = tool.get("type") or "custom"
    if kind != "custom":
        raise UnsupportedParameter(f"{where}.type", f"{kind!r}: describe a tool of yours with a schema; the server has none")
    if not isinstance(tool.get("input_schema"), dict):
        raise InvalidParameter(f"{where}.input_schema", "must be a JSON schema")
    given = {name: tool[name] for name in ("name", "description", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": {**given, "parameters": tool["input_schema"]}}


def _tool_choice(choice: ToolChoice | None) -> tuple[str | dict[str, Any] | None, bool | None]:
    """`tool_choice` and `parallel_tool_calls` of the chat."""
    if choice is None:
        return None, None
    parallel = None if choice.disable_parallel_tool_use is None else not choice.disable_parallel_tool_use
    match choice.type:
        case "auto" | "none":
            return choice.type, parallel
        case "any":
            return "required", parallel
        case "tool" if choice.name:
            return {"type": "function", "function": {"name": choice.name}}, parallel
        case "tool":
            raise InvalidParameter("tool_choice.name", "is required")
        case _:
            raise InvalidParameter("tool_choice.type", "must be auto, any, tool or none")


def _response_format(config: OutputConfig | None) -> ResponseFormat | None:
    if config is None or config.format is None:
        return None
    if config.format.type != "json_schema":
        raise UnsupportedParameter("output_config.format.type", f"{config.format.type!r}: the only type is json_schema")
    if config.format.schema is None:
        raise InvalidParameter("output_config.format.schema", "is required")
    schema = JsonSchemaFormat(name="output", schema=config.format.schema, strict=True)
    return ResponseFormat(type="json_schema", json_schema=schema)
