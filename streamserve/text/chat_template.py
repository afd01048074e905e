"""Chat templates: a conversation rendered as the prompt that a model was trained on.

Templates are Jinja programs that come with a model, so they run in a sandbox; whatever fails inside one is the request's
error, not the server's. Runs on an API event loop. Knows no model and no tokens. What templates may expect is what Hugging
Face's documentation says (https://huggingface.co/docs/transformers/chat_templating_writing).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import jinja2
from jinja2 import meta

from streamserve.errors import ConfigError, InvalidParameter
from streamserve.text.templates.arguments import arguments_as_text, parse_arguments
from streamserve.text.templates.json_copy import json_copy
from streamserve.text.templates.marks import Marks, SpecialTexts
from streamserve.text.templates.sandbox import sandbox
from streamserve.text.templates.syntax import iterates_over_content, tests_content_for_none

ChatMessage = Mapping[str, Any]

_RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"})
# Put at the end of the message to continue. When the space at its end is missing from the prompt, the template trims messages.
_CONTINUATION = "CONTINUE-FINAL-MESSAGE-HERE "
_REASONING_NAMES = ("reasoning_content", "reasoning", "thinking")


class ChatTemplate:
    """One compiled template.

    special_tokens  by role (`bos_token`, `eos_token`, …), as variables of the template
    kept_out        texts of special tokens that are plain text where the conversation has them, not the template
    variables       names that the template reads and does not set

    Raises `ConfigError` when the source is no valid template.
    """

    def __init__(
        self, source: str, special_tokens: Mapping[str, str] | None = None, kept_out: Collection[str] = frozenset()
    ) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens or {})
        self._kept_out = SpecialTexts(kept_out) if kept_out else None
        try:
            self._template = sandbox().from_string(source)
            syntax = sandbox().parse(source)
            self._takes_parts = iterates_over_content(syntax)
            self._absent_content = None if tests_content_for_none(syntax) else ""
            self.variables = frozenset(meta.find_undeclared_variables(syntax))
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(f"the chat template has a syntax error in line {error.lineno}: {error.message}") from error
        except (SyntaxError, RecursionError, ValueError, ArithmeticError) as error:  # of the Python it is compiled to
            raise ConfigError(f"the chat template can't be compiled: {error}") from error

    def render(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
        reasoning_effort: str | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for a conversation; a `RenderedText` when special tokens were kept out of it.

        messages                role and content each; content is a string, a list of text parts, or None
        add_generation_prompt   end with the start of an assistant's turn
        continue_final_message  end inside the last message instead, for the model to continue it
        variables               more names for the template, as `enable_thinking`
        reasoning_effort        "none", "low", …: passed under the variable that the template has for it
        defaults                variables that neither of the two sets

        Raises `InvalidParameter` for messages that the template refuses or that hold anything but text, `UnsupportedParameter`
        for an effort that it has no variable for.
        """
        if continue_final_message and add_generation_prompt:
            raise InvalidParameter("continue_final_message", "needs add_generation_prompt=false")
        if taken := reserved(variables or {}):
            raise InvalidParameter("chat_template_kwargs", f"can't set {', '.join(taken)}")
        marks = None if self._kept_out is None else Marks(self._kept_out)

        def copied(value: Any) -> Any:
            copy = json_copy(value)
            return copy if marks is None else marks.put(copy)

        conversation = [self._prepared(place, message) for place, message in enumerate(messages)]
        if marks is not None:
            conversation = marks.put(conversation)
        if continue_final_message:
            _mark_continuation(conversation)
        text = self._run(
            conversation,
            tools=copied(tools) or None,
            documents=copied(documents) or None,
            add_generation_prompt=add_generation_prompt,
            **copied({**(defaults or {}), **self._effort(reasoning_effort), **(variables or {})}),
        )
        if continue_final_message:
            text = _cut_at_continuation(text)
        return text if marks is None else marks.take(text)

    def _run(self, conversation: list[dict[str, Any]], **variables: Any) -> str:
        try:
            return self._rendered(conversation, variables)
        except InvalidParameter:
            texts = arguments_as_text(conversation)
            if texts is not None:
                with suppress(InvalidParameter):
                    return self._rendered(texts, variables)
            raise

    def _rendered(self, conversation: Sequence[ChatMessage], variables: Mapping[str, Any]) -> str:
        try:
            return self._template.render({**self._special_tokens, **variables, "messages": conversation})
        except jinja2.TemplateError as error:
            raise InvalidParameter("messages", f"the chat template refused them: {error}") from error
        except MemoryError:
            raise
        except Exception as error:  # a program: it may raise whatever Python does
            raise InvalidParameter("messages", f"the chat template failed on them: {error}") from error

    def knows_effort(self, effort: str) -> bool:
        """Whether a reasoning effort changes the prompt."""
        return bool(self._effort(effort))

    def _effort(self, effort: str | None) -> dict[str, Any]:
        if effort is None:
            return {}
        values = {"reasoning_effort": effort, "enable_thinking": effort != "none"}
        return {name: value for name, value in values.items() if name in self.variables}

    def _prepared(self, place: int, message: Any) -> dict[str, Any]:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InvalidParameter("messages", f"message {place} must be an object with a role")
        prepared = json_copy(dict(message))
        prepared["content"] = self._content(place, message.get("content"))
        reasoning = next((prepared[name] for name in _REASONING_NAMES if prepared.get(name) is not None), None)
        if reasoning is not None:
            prepared |= {"reasoning_content": reasoning, "thinking": reasoning}
        if prepared.get("tool_calls"):
            prepared["tool_calls"] = [_with_parsed_arguments(call) for call in prepared["tool_calls"]]
        return prepared  # type: ignore[no-any-return]

    def _content(self, place: int, content: Any) -> str | list[dict[str, str]] | None:
        if content is None:
            return self._absent_content
        if isinstance(content, str):
            return content
        if not isinstance(content, list):
            raise InvalidParameter("messages", f"the content of message {place} must be a string or a list of parts")
        texts = [_text_of_part(place, part) for part in content]
        return [{"type": "text", "text": text} for text in texts] if self._takes_parts else "\n".join(texts)


class ModelTemplates:
    """The chat templates of one model.

    sources         by name: "default", "tool_use" for conversations with tools, others to be named by requests
    special_tokens  as of `ChatTemplate`
    override        a source, or the name of one, in place of the default ones
    kept_out        as of `ChatTemplate`

    Raises `ConfigError` when one of those that are chosen without being named is no valid template.
    """

    def __init__(
        self,
        sources: Mapping[str, str],
        special_tokens: Mapping[str, str],
        override: str | None = None,
        kept_out: Collection[str] = frozenset(),
    ) -> None:
        self._sources = sources
        self._special_tokens = special_tokens
        self._kept_out = kept_out
        default = sources.get("default") if override is None else sources.get(override, override)
        with_tools = sources.get("tool_use", default) if override is None else default
        self._default = self._compiled(default)
        self._with_tools = self._default if with_tools == default else self._compiled(with_tools)

    def choose(self, *, has_tools: bool = False) -> ChatTemplate | None:
        """The template of a conversation with or without tools, as transformers chooses; None when the model has none."""
        return self._with_tools if has_tools else self._default

    def override(self, source: str) -> ChatTemplate:
        """The template that a request brings or names. Raises `InvalidParameter` where `ChatTemplate` raises `ConfigError`."""
        return compile_override(self._sources.get(source, source), self._special_tokens, self._kept_out)

    def _compiled(self, source: str | None) -> ChatTemplate | None:
        return None if source is None else ChatTemplate(source, self._special_tokens, self._kept_out)


def compile_override(source: str, special_tokens: Mapping[str, str], kept_out: Collection[str]) -> ChatTemplate:
    """Compile a template of a request. Raises `InvalidParameter` where `ChatTemplate` raises `ConfigError`."""
    try:
        return ChatTemplate(source, special_tokens, kept_out)
    except ConfigError as error:
        raise InvalidParameter("chat_template", error.message) from error


def _text_of_part(place: int, part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    text = part.get("text") if isinstance(part, Mapping) else None
    if isinstance(text, str) and kind in (None, "text", "input_text", "output_text"):
        return text
    raise InvalidParameter("messages", f"message {place} has a content part of type {kind!r}; only text parts are supported")


def _with_parsed_arguments(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or "arguments" not in function:
        return call
    try:
        arguments = parse_arguments(function["arguments"])
    except (ValueError, RecursionError) as error:
        raise InvalidParameter("messages", f"the arguments of a tool call are not JSON: {error}") from error
    return {**call, "function": {**function, "arguments": arguments}}


def _mark_continuation(conversation: list[dict[str, Any]]) -> None:
    if not conversation:
        raise InvalidParameter("continue_final_message", "there is no message to continue")
    content = conversation[-1]["content"] or ""
    if isinstance(content, list):
        if not content:
            raise InvalidParameter("continue_final_message", "the last message is empty")
        content[-1]["text"] += _CONTINUATION
    else:
        conversation[-1]["content"] = content + _CONTINUATION


def _cut_at_continuation(text: str) -> str:
    at = text.rfind(_CONTINUATION.rstrip())
    if at < 0:
        raise InvalidParameter("continue_final_message", "the chat template does not print the last message as it is")
    return text[:at] if text.startswith(_CONTINUATION, at) else text[:at].rstrip()


def reserved(variables: Mapping[str, Any]) -> list[str]:
    """Those of the variables that every conversation sets by itself."""
    return sorted(_RESERVED & variables.keys())
