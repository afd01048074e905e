"""Grammars of chat answers: text or a JSON value, after reasoning or not, or tool calls whose arguments follow their schemas.

Pure text, in Lark as llguidance reads it (https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md). Each dialect's
grammar generates the calls that its parser reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from streamserve.text.parsing import bare, mistral, reasoning, tagged
from streamserve.text.schemas.call_schema import JSON_STYLE, Function, call_schema
from streamserve.text.schemas.references import with_local_references

MARKED_DIALECTS = ("hermes", "mistral")
"""Dialects whose calls can't be mistaken for a JSON answer."""

_SPACE = r"SPACE: /[ \t\n\r]{0,8}/"


@dataclass(frozen=True, kw_only=True)
class AnswerForm:
    """The forms that an answer may take.

    dialect    name of the parser of calls, None without calls
    functions  what may be called
    parallel   whether several times
    answer     JSON schema of an answer that is no call; free text when None
    thinks     whether reasoning precedes a JSON answer: True when it has begun, False when it may begin, None when it can't
    special    ids of the marks that are special tokens of the vocabulary
    """

    dialect: str | None
    functions: Sequence[Function] = ()
    parallel: bool = True
    answer: Mapping[str, Any] | None = None
    thinks: bool | None = None
    special: Mapping[str, int] = field(default_factory=dict)

    def lark(self) -> str:
        """The grammar's source."""
        if self.answer is not None:
            return "\n".join([*self._before_json(), f"answer: {_json(self.answer)}", _SPACE, *self._call_rules()])
        return "\n".join([*_FREE[self.dialect or ""](self), _SPACE, *self._call_rules()])

    def mark(self, text: str) -> str:
        """A mark as a term of a rule."""
        return f"<[{self.special[text]}]>" if text in self.special else json.dumps(text)

    def up_to(self, name: str, mark: str) -> str:
        """Rule `name`: anything that ends with its first `mark`."""
        if mark in self.special:
            return f"{name}: {name.upper()} {self.mark(mark)}\n{name.upper()}: /(?s:.*)/"
        pattern = _pattern(mark)
        return f"{name}: {name.upper()}\n{name.upper()}: /(?s:.*){pattern}/ & ~/(?s:.*){pattern}(?s:.+)/"

    def text_without(self, mark: str) -> str:
        """Rule TEXT: anything without `mark`."""
        return "TEXT: /(?s:.*)/" if mark in self.special else f"TEXT: /(?s:.*)/ & ~/(?s:.*){_pattern(mark)}(?s:.*)/"

    def _before_json(self) -> list[str]:
        body = "(answer | calls)" if self.functions else "answer"
        if self.thinks is None:
            return [f"start: {body}"]
        begin = "" if self.thinks else f"{self.mark(reasoning.START)} "
        thought = f"{begin}thought SPACE"
        return [
            f"start: {thought} {body}" if self.thinks else f"start: ({thought})? {body}",
            self.up_to("thought", reasoning.END),
        ]

    def _call_rules(self) -> list[str]:
        if not self.functions or self.dialect is None:
            return []
        return _CALLS[self.dialect](self)

    def object(self, arguments_key: str) -> str:
        """Rule `object`: a call as a JSON object."""
        schema, definitions = call_schema(self.functions, arguments_key)
        return f"object: {_json({**schema, '$defs': definitions})}"

    def repeated(self, separator: str, rule: str) -> str:
        """`rule`, once or, where calls may be parallel, any number of times."""
        return f"{rule} ({separator} {rule})*" if self.parallel else rule


def _free_hermes(form: AnswerForm) -> list[str]:
    turns = "*" if form.parallel else "?"
    return [
        f"start: (to_call call_end){turns} TEXT",
        form.up_to("to_call", tagged.START),
        form.text_without(tagged.START),
    ]


def _hermes_calls(form: AnswerForm) -> list[str]:
    return [
        f"calls: {form.repeated('SPACE', 'call')}",
        f"call: {form.mark(tagged.START)} call_end",
        f"call_end: SPACE object SPACE {form.mark(tagged.END)}",
        form.object("arguments"),
    ]


def _free_bare(form: AnswerForm) -> list[str]:
    begin = r"[ \t\n\r]*\{(?s:.*)"
    if bare.PYTHON_TAG not in form.special:
        begin = rf"[ \t\n\r]*(\{{|{_pattern(bare.PYTHON_TAG)})(?s:.*)"
    return ["start: TEXT | calls", f"TEXT: /(?s:.*)/ & ~/{begin}/"]


def _bare_calls(form: AnswerForm) -> list[str]:
    return [
        f"calls: {form.mark(bare.PYTHON_TAG)}? SPACE {form.repeated('SEPARATOR', 'object')}",
        r"SEPARATOR: /[ \n]{0,4};[ \n]{0,4}/",
        form.object("parameters"),
    ]


def _free_mistral(form: AnswerForm) -> list[str]:
    return [
        "start: TEXT | to_calls calls_end",
        form.up_to("to_calls", mistral.MARKER),
        form.text_without(mistral.MARKER),
    ]


def _mistral_calls(form: AnswerForm) -> list[str]:
    marker = form.mark(mistral.MARKER)
    named = [
        f"{json.dumps(function.name)} {form.mark(mistral.ARGS)}? {_json(function.arguments)}" for function in form.functions
    ]
    separator = '"," SPACE'
    return [
        f"calls: {marker} calls_end",
        f"calls_end: SPACE (array | {form.repeated(marker, 'named')})",
        f'array: "[" {form.repeated(separator, "object")} "]"',
        f"named: {' | '.join(named)}",
        form.object("arguments"),
    ]


_FREE: Mapping[str, Callable[[AnswerForm], list[str]]] = {
    "hermes": _free_hermes,
    "llama3_json": _free_bare,
    "mistral": _free_mistral,
}
_CALLS: Mapping[str, Callable[[AnswerForm], list[str]]] = {
    "hermes": _hermes_calls,
    "llama3_json": _bare_calls,
    "mistral": _mistral_calls,
}


def _json(schema: Mapping[str, Any]) -> str:
    return f"%json {json.dumps({**with_local_references(schema), 'x-guidance': JSON_STYLE})}"


def _pattern(text: str) -> str:
    return re.escape(text).replace("/", r"\/")
