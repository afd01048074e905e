"""A model's dialect: by vLLM's names of parsers, or by the marks that its chat template writes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from streamserve.errors import ConfigError
from streamserve.text.parsing.dialects.dialect import Dialect
from streamserve.text.parsing.dialects.known import (
    CALL_FORMATS,
    CHANNEL_CALLS,
    CHANNEL_REASONING,
    CHANNELS,
    REASONING_FORMATS,
    REASONING_PARSERS,
    TOOL_CALL_PARSERS,
)
from streamserve.text.parsing.dialects.response_template import formats_of

RESPONSE_TEMPLATE = "response_template"
"""The name of a dialect that a checkpoint describes itself."""

_CALLS_BY_TEXT = (
    ("<|channel|>", "<|message|>", CHANNEL_CALLS),
    ("<|tool_calls_section_begin|>", "", "kimi_k2"),
    ("<minimax:tool_call>", "", "minimax_m2"),
    ("<seed:tool_call>", "", "seed_oss"),
    ("<longcat_tool_call>", "", "longcat"),
    ("<arg_key>", "<tool_call>", "glm45"),
    ("<function=", "<tool_call>", "qwen3_coder"),
    ("<｜tool▁calls▁begin｜>", "```json", "deepseek_v3"),
    ("<｜tool▁calls▁begin｜>", "", "deepseek_v31"),
    ("<｜tool_calls_begin｜>", "", "step3"),
    ("<|START_ACTION|>", "", "cohere_command3"),
    ("<start_function_call>", "", "functiongemma"),
    ("<|tool_call>", "", "gemma4"),
    ("<|tool_call_start|>", "", "lfm2"),
    ("<tool_calls>", "", "jamba"),
    ("<function_calls>", "", "olmo3"),
    ("<tool_call>", "", "hermes"),
    ("[TOOL_CALLS]", "", "mistral"),
    ("<|/tool_call|>", "", "phi4_mini_json"),
    ("functools[", "", "phi4_mini_json"),
    ("<|tool_call|>", "", "granite"),
    ("<function_call>", "", "granite-20b-fc"),
    ("<|python_start|>", "", "llama4_pythonic"),
    ("<|python_tag|>", "", "llama3_json"),
    ('"parameters": ', "", "llama3_json"),
)
"""Two texts that a template holds, and the name of the parser for it; the first that fits."""

_REASONING_BY_TEXT = (
    ("<|channel|>", "<|message|>", CHANNEL_REASONING),
    ("[/THINK]", "", "mistral"),
    ("<|END_THINKING|>", "", "cohere_command3"),
    ("</seed:think>", "", "seed_oss"),
    ("<channel|>", "", "gemma4"),
    ("</think>", "<|tool_calls_section_begin|>", "kimi_k2"),
    ("</think>", "", "qwen3"),
    ("Here is my thought process:", "Here is my response:", "granite"),
)


def dialect_of(
    chat_template: str,
    *,
    tool_call_parser: str | None = None,
    reasoning_parser: str | None = None,
    response_template: Any = None,
) -> Dialect:
    """A model's dialect: by the flags, else by its response template, else by its chat template.

    Raises `ConfigError` for a name that is not known.
    """
    own_calls, own_reasoning = formats_of(response_template)
    calls = _known("--tool-call-parser", tool_call_parser, TOOL_CALL_PARSERS) or _by_text(chat_template, _CALLS_BY_TEXT)
    reasoning = _known("--reasoning-parser", reasoning_parser, REASONING_PARSERS) or _by_text(chat_template, _REASONING_BY_TEXT)
    if own_calls is not None and tool_call_parser is None:
        calls = RESPONSE_TEMPLATE
    if own_reasoning is not None and reasoning_parser is None:
        reasoning = RESPONSE_TEMPLATE
    has_channels = calls == CHANNEL_CALLS or reasoning == CHANNEL_REASONING
    return Dialect(
        tool_calls=calls,
        calls=None if has_channels else {**CALL_FORMATS, RESPONSE_TEMPLATE: own_calls}.get(calls or ""),
        reasoning=None if has_channels else {**REASONING_FORMATS, RESPONSE_TEMPLATE: own_reasoning}.get(reasoning or ""),
        channels=CHANNELS if has_channels else None,
    )


def _known(flag: str, name: str | None, parsers: Collection[str]) -> str | None:
    if name is not None and name not in parsers:
        raise ConfigError(f"{flag} {name}: choose one of {', '.join(parsers)}")
    return name


def _by_text(chat_template: str, table: tuple[tuple[str, str, str], ...]) -> str | None:
    return next((name for one, other, name in table if one in chat_template and other in chat_template), None)
