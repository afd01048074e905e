"""The parsers by vLLM's names, chosen by a flag or by the marks in the chat template."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from streamserve.errors import ConfigError
from streamserve.text.parsing.bare import PYTHON_TAG, BareCallParser
from streamserve.text.parsing.dialect import Dialect
from streamserve.text.parsing.mistral import ARGS as MISTRAL_ARGS
from streamserve.text.parsing.mistral import MARKER as MISTRAL_MARKER
from streamserve.text.parsing.mistral import MistralParser
from streamserve.text.parsing.pieces import Parser
from streamserve.text.parsing.reasoning import END as END_OF_REASONING
from streamserve.text.parsing.reasoning import START as START_OF_REASONING
from streamserve.text.parsing.tagged import END as END_OF_CALL
from streamserve.text.parsing.tagged import START as START_OF_CALL
from streamserve.text.parsing.tagged import TaggedCallParser

TOOL_CALL_PARSERS: Mapping[str, tuple[Callable[[Collection[str]], Parser], tuple[str, ...]]] = {
    "hermes": (lambda _: TaggedCallParser(), (START_OF_CALL, END_OF_CALL)),
    "llama3_json": (BareCallParser, (PYTHON_TAG,)),
    "mistral": (lambda _: MistralParser(), (MISTRAL_MARKER, MISTRAL_ARGS)),
}
"""By name: what makes a parser for functions of these names, and the marks it looks for. Marked calls may name any function."""

REASONING_PARSERS: Mapping[str, bool] = {"deepseek_r1": True, "qwen3": False}
"""By name: whether an answer begins with reasoning even without an opening mark."""


def dialect_of(chat_template: str, *, tool_call_parser: str | None = None, reasoning_parser: str | None = None) -> Dialect:
    """A model's dialect: by the flags, else by its chat template.

    Raises `ConfigError` for a name that is not in the registry.
    """
    calls = _known("--tool-call-parser", tool_call_parser, TOOL_CALL_PARSERS) or _calls_in(chat_template)
    reasoning = _known("--reasoning-parser", reasoning_parser, REASONING_PARSERS)
    if reasoning is None and END_OF_REASONING in chat_template:
        reasoning = "qwen3"
    new_call_parser, marks = TOOL_CALL_PARSERS[calls] if calls is not None else (None, ())
    return Dialect(
        tool_calls=calls,
        new_call_parser=new_call_parser,
        call_marks=marks,
        reasons=reasoning is not None,
        always_reasons=reasoning is not None and REASONING_PARSERS[reasoning],
        reasoning_marks=(START_OF_REASONING, END_OF_REASONING) if reasoning is not None else (),
    )


def _known(flag: str, name: str | None, parsers: Mapping[str, object]) -> str | None:
    if name is not None and name not in parsers:
        raise ConfigError(f"{flag} {name}: choose one of {', '.join(parsers)}")
    return name


def _calls_in(chat_template: str) -> str | None:
    """The parser whose marks a template writes."""
    if START_OF_CALL in chat_template:
        return "hermes"
    if MISTRAL_MARKER in chat_template:
        return "mistral"
    if PYTHON_TAG in chat_template or '"parameters": ' in chat_template:
        return "llama3_json"
    return None
