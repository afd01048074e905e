"""Structural tags: free text in which tagged parts follow a schema, an expression or other parts; as vLLM and SGLang take them.

Pure text, from the JSON of XGrammar's structural tags (https://xgrammar.mlc.ai/docs/tutorials/structural_tag.html) to Lark as
llguidance reads it. What may go on for ever, free text and repeated tags, must come last: nothing would say where it ends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from streamserve.errors import UnsupportedParameter
from streamserve.text.grammars.lark_rules import json_rule

Format = Mapping[str, Any]


def structural_tag_lark(tag: str | Format, special: Mapping[str, int]) -> str:
    """The grammar of a structural tag.

    tag      an object of type "structural_tag" with a `format`, or with the earlier `structures` and `triggers`; or its text
    special  ids of special tokens by their text

    Raises `ValueError` naming what is wrong, or `UnsupportedParameter`.
    """
    value = json.loads(tag) if isinstance(tag, str) else tag
    if not isinstance(value, dict):
        raise ValueError("structural_tag must be an object")
    return _Grammar(special).source(_upgraded(value) if "structures" in value else _field(value, "format", dict))


def _upgraded(value: Format) -> Format:
    """The earlier form in the words of the later one."""
    tags = [
        {
            "begin": _field(each, "begin", str),
            "content": {"type": "json_schema", "json_schema": _field(each, "schema", dict, {})},
            "end": _field(each, "end", str),
        }
        for each in _field(value, "structures", list)
    ]
    return {"type": "triggered_tags", "triggers": _field(value, "triggers", list), "tags": tags}


class _Grammar:
    """Rules and terminals while a structural tag is written out."""

    def __init__(self, special: Mapping[str, int]) -> None:
        self._special = special
        self._split = (
            re.compile("(" + "|".join(map(re.escape, sorted(special, key=len, reverse=True))) + ")") if special else None
        )
        self._lines: list[str] = []

    def source(self, format: Format) -> str:
        start = self._write(format, is_last=True)
        return "\n".join([f"start: {start}", *self._lines])

    def _write(self, format: Format, *, is_last: bool = False) -> str:
        """A format as a term of a rule; `is_last` when nothing follows it."""
        if not isinstance(format, dict):
            raise ValueError("each format of the structural tag must be an object")
        kind = format.get("type", "tag" if "begin" in format else None)
        if not isinstance(kind, str) or kind not in _FORMATS:
            raise UnsupportedParameter("structural_tag", f"formats of type {kind!r}: those known are {', '.join(_FORMATS)}")
        return _FORMATS[kind](self, format, is_last)

    def _const(self, format: Format, is_last: bool) -> str:
        return self._text(_field(format, "value", str))

    def _schema(self, format: Format, is_last: bool) -> str:
        schema = format.get("json_schema")
        if schema is True:
            schema = {}
        if not isinstance(schema, dict):
            raise ValueError("json_schema must be an object")
        return self._rule(json_rule(schema))

    def _regex(self, format: Format, is_last: bool) -> str:
        pattern = _field(format, "pattern", str).replace("/", r"\/")
        return self._terminal(f"/{pattern}/")

    def _any_text(self, format: Format, is_last: bool) -> str:
        _require_last("any_text", is_last)
        return self._terminal(_without(_field(format, "excludes", list, [])))

    def _sequence(self, format: Format, is_last: bool) -> str:
        elements = _field(format, "elements", list)
        last = len(elements) - 1
        return self._rule(" ".join(self._write(each, is_last=is_last and i == last) for i, each in enumerate(elements)))

    def _or(self, format: Format, is_last: bool) -> str:
        return self._rule(" | ".join(self._write(each, is_last=is_last) for each in _field(format, "elements", list)))

    def _tag(self, format: Format, is_last: bool) -> str:
        return self._rule(f"{self._text(_field(format, 'begin', str))} {self._tag_rest(format, is_last)}")

    def _tag_rest(self, format: Format, is_last: bool) -> str:
        """A tag behind its `begin`."""
        content, end = _field(format, "content", dict), format.get("end", "")
        ends = [end] if isinstance(end, str) else end
        if content.get("type") == "any_text" and ends != [""]:
            return self._up_to(ends)
        closing = " | ".join(self._text(each) for each in ends)
        return f"{self._write(content, is_last=is_last and ends == [''])} ({closing})"

    def _triggered(self, format: Format, is_last: bool) -> str:
        triggers, tags = _field(format, "triggers", list), _field(format, "tags", list)
        stops = bool(format.get("stop_after_first"))
        _require_last("triggered_tags", is_last)
        branches = []
        for trigger in triggers:
            triggered = [tag for tag in tags if _field(tag, "begin", str).startswith(trigger)]
            rests = [f"{self._text(tag['begin'][len(trigger) :])} {self._tag_rest(tag, False)}" for tag in triggered]
            if rests:
                branches.append(f"{self._up_to([trigger], triggers)} ({' | '.join(rests)})")
        if not branches or not all(any(tag["begin"].startswith(trigger) for trigger in triggers) for tag in tags):
            raise ValueError("each tag must begin with one of the triggers")
        one, text = (
            self._rule(" | ".join(branches)),
            self._terminal(_without([each for each in triggers if each not in self._special])),
        )
        if format.get("at_least_one"):
            return one if stops else self._rule(f"{one}+ {text}")
        return self._rule(f"{one} | {text}" if stops else f"{one}* {text}")

    def _separated(self, format: Format, is_last: bool) -> str:
        tags, separator = _field(format, "tags", list), self._text(_field(format, "separator", str))
        one = self._rule(" | ".join(self._tag(tag, False) for tag in tags))
        several = one if format.get("stop_after_first") else self._rule(f"{one} ({separator} {one})*")
        return several if format.get("at_least_one") else self._rule(f"{several}?")

    def _up_to(self, ends: Sequence[str], marks: Sequence[str] = ()) -> str:
        """Text that ends with its first of `marks`, which is one of `ends`."""
        marks = marks or ends
        spelled = [mark for mark in marks if mark not in self._special]
        terms = []
        for end in ends:
            if end in self._special:
                terms.append(f"{self._terminal(_without(spelled))} {self._text(end)}")
            else:
                terms.append(self._terminal(f"/(?s:.*){_pattern([end])}/ & ~/(?s:.*){_pattern(spelled)}(?s:.+)/"))
        return self._rule(" | ".join(terms))

    def _text(self, text: str) -> str:
        """A text as terms, special tokens in it by their ids."""
        parts = [text] if self._split is None else self._split.split(text)
        return (
            " ".join(f"<[{self._special[part]}]>" if part in self._special else json.dumps(part) for part in parts if part)
            or '""'
        )

    def _rule(self, body: str) -> str:
        name = f"r{len(self._lines)}"
        self._lines.append(f"{name}: {body}")
        return name

    def _terminal(self, body: str) -> str:
        name = f"T{len(self._lines)}"
        self._lines.append(f"{name}: {body}")
        return name


_FORMATS: Mapping[str, Callable[[_Grammar, Format, bool], str]] = {
    "const_string": _Grammar._const,
    "json_schema": _Grammar._schema,
    "regex": _Grammar._regex,
    "any_text": _Grammar._any_text,
    "sequence": _Grammar._sequence,
    "or": _Grammar._or,
    "tag": _Grammar._tag,
    "triggered_tags": _Grammar._triggered,
    "tags_with_separator": _Grammar._separated,
}


_KINDS: Mapping[Any, str] = {str: "a string", dict: "an object", list: "a list that is not empty"}


def _field(value: Any, name: str, kind: type, default: Any = None) -> Any:
    found = value.get(name) if isinstance(value, dict) else None
    found = default if found is None else found
    if not isinstance(found, kind) or (kind is list and default is None and not found):
        raise ValueError(f"{name} must be {_KINDS[kind]} in the structural tag")
    return found


def _require_last(kind: str, is_last: bool) -> None:
    if not is_last:
        raise UnsupportedParameter("structural_tag", f"{kind} is only known at the end, or as what a tag with an end holds")


def _without(marks: Sequence[str]) -> str:
    """The expression of a text without any of `marks`."""
    return f"/(?s:.*)/ & ~/(?s:.*){_pattern(marks)}(?s:.*)/" if marks else "/(?s:.*)/"


def _pattern(marks: Sequence[str]) -> str:
    return "(" + "|".join(re.escape(mark).replace("/", r"\/") for mark in marks) + ")"
