"""Arguments that stand between marks, one after another, as JSON: texts as they come, other values by the function's schema."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from streamserve.text.parsing.formats import Parameters
from streamserve.text.parsing.output import NotACall, Output
from streamserve.text.parsing.source import MarkSet, Reading, Source

_NAME = re.compile(r"[^<>\"\n]*")
_NAME_LIMIT = 512
_ALTERNATIVES = ("anyOf", "oneOf", "allOf")


class ParametersReader:
    """Reads the arguments of one call.

    ends  marks that end a call without arguments
    """

    def __init__(self, source: Source, output: Output, format: Parameters, ends: MarkSet) -> None:
        self._source = source
        self._output = output
        self._format = format
        self._opens = MarkSet((format.opens,))
        self._middle = [MarkSet((mark,)) for mark in format.middle]
        self._closes = MarkSet((format.closes,))
        self._ends = ends
        self._count = 0

    def begin(self) -> Reading[None]:
        """Raises `NotACall` when neither an argument follows nor the end of the call."""
        yield from self._source.blanks()
        if not (yield from self._source.sees(self._opens)) and not (yield from self._source.sees(self._ends)):
            raise NotACall

    def read(self, schema: Mapping[str, Any]) -> Reading[str]:
        """Read all of them; returns the blanks that follow."""
        properties = schema.get("properties")
        properties = properties if isinstance(properties, Mapping) else {}
        blanks = ""
        while (yield from self._source.accept(self._opens)):
            name = yield from self._name()
            if name is None or not (yield from self._value(name, properties.get(name, schema.get("additionalProperties")))):
                return ""
            blanks = yield from self._source.blanks()
        if not self._source.is_cut or (yield from self._source.peek()):
            self._output.arguments("}" if self._count else "")
            self._output.end_call()
        return blanks

    def _name(self) -> Reading[str | None]:
        name = yield from self._source.whole_run(_NAME, _NAME_LIMIT)
        for mark in self._middle:
            if mark is not self._middle[0]:
                yield from self._source.blanks()
            if not (yield from self._source.accept(mark)):
                return None
        return name.strip()

    def _value(self, name: str, schema: Any) -> Reading[bool]:
        """One value; False when its end is missing."""
        self._output.arguments(("{" if self._count == 0 else ", ") + json.dumps(name, ensure_ascii=False) + ": ")
        self._count += 1
        if not _is_text(schema):
            pieces: list[str] = []
            is_whole = yield from self._text(pieces.append)
            if is_whole:
                self._output.arguments(_converted("".join(pieces), schema))
            return is_whole
        self._output.arguments('"')
        is_whole = yield from self._text(lambda text: self._output.arguments(json.dumps(text, ensure_ascii=False)[1:-1]))
        if is_whole:
            self._output.arguments('"')
        return is_whole

    def _text(self, sink: Any) -> Reading[bool]:
        """The text up to the mark that closes it."""
        source, held = self._source, ""
        if self._format.padded and (yield from source.peek()) == "\n":
            source.take(1)
        while True:
            text, mark = source.up_to(self._closes)
            text, held = held + text, ""
            if self._format.padded and text.endswith("\n"):
                text, held = text[:-1], "\n"
            if text:
                sink(text)
            if mark:
                return True
            if not (yield from source.more()):
                if held:
                    sink(held)
                return False


def types_of(schema: Any) -> set[str]:
    """The types that a value may have; none when the schema doesn't tell."""
    if not isinstance(schema, Mapping):
        return set()
    declared = schema.get("type")
    types = {declared} if isinstance(declared, str) else set(declared) if isinstance(declared, list) else set()
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    if not types and isinstance(values, list):
        types = {_type_of(value) for value in values}
    for word in _ALTERNATIVES:
        for each in schema.get(word) or () if not types else ():
            types |= types_of(each)
    return types


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    return {str: "string", int: "integer", float: "number", list: "array", dict: "object"}.get(type(value), "null")


def _is_text(schema: Any) -> bool:
    """Whether nothing but text may be meant, which then can be shown while it comes."""
    return types_of(schema) == {"string"}


def _converted(text: str, schema: Any) -> str:
    """The JSON of a value: the text itself where it is JSON of a type that the schema allows, else a string."""
    types = types_of(schema)
    stripped = text.strip()
    stripped = {"True": "true", "False": "false", "None": "null"}.get(stripped, stripped)
    try:
        kind = _type_of(json.loads(stripped, parse_constant=_refuse))
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    if "string" in types and kind not in types - {"string"}:
        return json.dumps(text, ensure_ascii=False)
    return stripped


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON")
