"""Which parser reads which model, by the names vLLM gives them; chosen by a flag or by what the chat template writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from streamserve.errors import ConfigError
from streamserve.text.parsing.bare import BareCallParser
from streamserve.text.parsing.mistral import MARKER, MistralParser
from streamserve.text.parsing.pieces import Parser
from streamserve.text.parsing.reasoning import END as END_OF_REASONING
from streamserve.text.parsing.tagged import START as TOOL_CALL_TAG
from streamserve.text.parsing.tagged import TaggedCallParser

TOOL_CALL_PARSERS: Mapping[str, Callable[[], Parser]] = {
    "hermes": TaggedCallParser,
    "llama3_json": BareCallParser,
    "mistral": MistralParser,
}
REASONING_PARSERS = ("deepseek_r1", "qwen3")


def tool_call_parser(name: str | None, chat_template: str) -> str | None:
    """The name of the parser to use: the one asked for, else the one whose marks the template holds, else None.

    Raises `ConfigError` for a name that is not in the registry.
    """
    if name is not None:
        if name not in TOOL_CALL_PARSERS:
            raise ConfigError(f"--tool-call-parser {name}: choose one of {', '.join(TOOL_CALL_PARSERS)}")
        return name
    if TOOL_CALL_TAG in chat_template:
        return "hermes"
    if MARKER in chat_template:
        return "mistral"
    if "<|python_tag|>" in chat_template or '"parameters": ' in chat_template:
        return "llama3_json"
    return None


def has_reasoning(name: str | None, chat_template: str) -> bool:
    """Whether answers may begin with reasoning: asked for, or written into the template.

    Raises `ConfigError` for a name that is not in the registry.
    """
    if name is not None and name not in REASONING_PARSERS:
        raise ConfigError(f"--reasoning-parser {name}: choose one of {', '.join(REASONING_PARSERS)}")
    return name is not None or END_OF_REASONING in chat_template
