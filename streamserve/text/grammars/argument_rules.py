"""Rules of one function's arguments, in the syntax of its dialect: JSON, parameters between marks, or literals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote as quoted
from urllib.parse import unquote

from streamserve.text.grammars.lark_rules import LarkRules, json_rule
from streamserve.text.parsing.formats import Arguments, JsonArguments, Literals, Parameters
from streamserve.text.parsing.readers.parameters import types_of
from streamserve.text.schemas.call_schema import Function
from streamserve.text.schemas.references import with_local_references

_ANY: Mapping[str, Any] = {}
_MAX_DEPTH = 16
"""How deep values of literals keep to their schemas."""


def argument_rules(form: Arguments, function: Function, rules: LarkRules) -> str:
    """The term for a function's arguments."""
    if isinstance(form, JsonArguments):
        return rules.rule(json_rule(function.arguments))
    if isinstance(form, Parameters):
        return _ParameterRules(form, function.arguments, rules).term()
    return _LiteralRules(form, function.arguments, rules).term()


class _ParameterRules:
    """Parameters in the order of the schema."""

    def __init__(self, form: Parameters, schema: Mapping[str, Any], rules: LarkRules) -> None:
        self._form = form
        self._schema = schema
        self._rules = rules
        self._padding = '"\\n"' if form.padded else ""

    def term(self) -> str:
        properties, required = _members(self._schema)
        if not properties:
            return self._rules.rule(f"({self._any_parameter()} {self._rules.space})*")
        terms = [
            f"({self._parameter(name, schema)} {self._rules.space}){'' if name in required else '?'}"
            for name, schema in properties.items()
        ]
        return self._rules.rule(" ".join(terms))

    def _parameter(self, name: str, schema: Any) -> str:
        value = self._value(name, schema)
        return self._rules.rule(f"{self._opened(self._rules.literal(name))} {self._padding} {value}")

    def _any_parameter(self) -> str:
        name = self._rules.terminal(r"/[\w.-]{1,64}/")
        return self._rules.rule(f"{self._opened(name)} {self._padding} {self._text()}")

    def _opened(self, name: str) -> str:
        first, *others = (self._rules.one_of((mark,)) for mark in self._form.middle)
        middle = " ".join([first, *(f"{self._rules.space} {other}" for other in others)])
        return f"{self._rules.one_of((self._form.opens,))} {name} {middle}"

    def _value(self, name: str, schema: Any) -> str:
        """The value and the mark that closes it."""
        closes = f"{self._padding} {self._rules.one_of((self._form.closes,))}"
        types = types_of(schema)
        values = _choices(schema)
        if values and all(isinstance(value, str) for value in values):
            return f"({' | '.join(map(self._rules.literal, values))}) {closes}"
        if "string" in types or not (types or (isinstance(schema, Mapping) and "$ref" in schema)):
            return self._text()
        place = f"#/$defs/f/properties/{_escaped(name)}"
        definitions = {"f": with_local_references(self._schema, "#/$defs/f")}
        return f"{self._rules.rule(json_rule({'$ref': place, '$defs': definitions}))} {closes}"

    def _text(self) -> str:
        return self._rules.up_to((self._form.closes,))


class _LiteralRules:
    """Values as literals: of the types that the schema names, in the order of its properties."""

    def __init__(self, form: Literals, schema: Mapping[str, Any], rules: LarkRules) -> None:
        self._form = form
        self._schema = with_local_references(schema)
        self._rules = rules
        self._words = {word: name for name, word in form.words.items()}

    def term(self) -> str:
        return self._fields(self._schema, self._form.opens, self._form.closes, self._form.assigns, 0)

    def _fields(self, schema: Mapping[str, Any], opens: str, closes: str, assigns: str, depth: int) -> str:
        properties, required = _members(schema)
        space = self._rules.space
        if not properties:
            name = self._name_pattern(is_argument=depth == 0)
            inside = self._separated(f'{name} "{assigns}" {space} {self._value(_ANY, depth + 1)}')
            return self._rules.rule(f'"{opens}" {space} ({inside})? {space} "{closes}"')
        fields = {
            name: self._rules.rule(
                f'{self._name(name, is_argument=depth == 0)} "{assigns}" {space} {self._value(each, depth + 1)}'
            )
            for name, each in properties.items()
        }
        return self._rules.rule(f'"{opens}" {space} {self._in_order(fields, required)} {space} "{closes}"')

    def _in_order(self, fields: Mapping[str, str], required: frozenset[str]) -> str:
        """Some of the fields, all that are required, with commas between them."""
        comma = f'{self._rules.space} "," {self._rules.space}'
        first = after = '""'
        for name, field in reversed(list(fields.items())):
            first, after = (
                self._rules.rule(f"{field} {after}" + ("" if name in required else f" | {first}")),
                self._rules.rule(f"{comma} {field} {after}" + ("" if name in required else f" | {after}")),
            )
        return first

    def _value(self, schema: Any, depth: int) -> str:
        if not isinstance(schema, Mapping):
            schema = _ANY
        if "$ref" in schema:
            schema = self._referenced(schema["$ref"])
        if depth > _MAX_DEPTH:
            return self._any()
        choices = _choices(schema)
        if choices:
            return self._rules.rule(" | ".join(self._spelled(choice) for choice in choices))
        for word in ("anyOf", "oneOf"):
            if isinstance(schema.get(word), list) and schema[word]:
                return self._rules.rule(" | ".join(self._value(each, depth + 1) for each in schema[word]))
        types = sorted(types_of(schema))
        return self._rules.rule(" | ".join(self._typed(kind, schema, depth) for kind in types)) if types else self._any()

    def _typed(self, kind: str, schema: Mapping[str, Any], depth: int) -> str:
        if kind == "object":
            return self._fields(schema, "{", "}", ":", depth)
        if kind == "array":
            inside = self._separated(self._value(schema.get("items"), depth + 1))
            return self._rules.rule(f'"[" {self._rules.space} ({inside})? {self._rules.space} "]"')
        return self._scalar(kind)

    def _scalar(self, kind: str) -> str:
        if kind == "string":
            return self._rules.rule(" | ".join(self._quoted(quote) for quote in self._form.quotes))
        if kind == "integer":
            return self._rules.terminal(r"/-?(0|[1-9][0-9]{0,18})/")
        if kind == "number":
            return self._rules.terminal(r"/-?(0|[1-9][0-9]{0,18})(\.[0-9]{1,18})?([eE][+-]?[0-9]{1,3})?/")
        if kind == "boolean":
            return f"({self._word('true')} | {self._word('false')})"
        return self._word("null")

    def _any(self) -> str:
        """Any value: a rule that refers to itself, by a name that no other has."""
        kinds = [self._scalar(kind) for kind in ("string", "number", "boolean", "null")]
        comma = f'{self._rules.space} "," {self._rules.space}'
        items = f'"[" {self._rules.space} (anything ({comma} anything)*)? {self._rules.space} "]"'
        field = f'{self._name_pattern(is_argument=False)} ":" {self._rules.space} anything'
        fields = f'"{{" {self._rules.space} ({field} ({comma} {field})*)? {self._rules.space} "}}"'
        return self._rules.named("anything", " | ".join([*kinds, items, fields]))

    def _quoted(self, quote: str) -> str:
        if not self._form.escapes:
            return f"{self._rules.one_of((quote,))} {self._rules.up_to((quote,))}"
        return self._rules.terminal(rf"/{quote}([^{quote}\\\n]|\\.){{0,}}{quote}/")

    def _spelled(self, value: Any) -> str:
        """One value as a literal."""
        if isinstance(value, str):
            quote = self._form.quotes[-1]
            text = json.dumps(value, ensure_ascii=False)[1:-1] if self._form.escapes else value
            return f"{self._rules.one_of((quote,))} {self._rules.literal(text)} {self._rules.one_of((quote,))}"
        if value is None or isinstance(value, bool):
            return self._word(json.dumps(value))
        return self._rules.literal(json.dumps(value)) if isinstance(value, int | float) else self._any()

    def _word(self, word: str) -> str:
        return self._rules.literal(self._words.get(word, word))

    def _name(self, name: str, *, is_argument: bool) -> str:
        return self._spelled(name) if self._form.escapes and not is_argument else self._rules.literal(name)

    def _name_pattern(self, *, is_argument: bool) -> str:
        if self._form.escapes and not is_argument:
            return self._scalar("string")
        return self._rules.terminal(r"/[a-zA-Z_][\w-]{0,63}/")

    def _separated(self, term: str) -> str:
        return f'{term} ({self._rules.space} "," {self._rules.space} {term})*'

    def _referenced(self, reference: Any) -> Mapping[str, Any]:
        found: Any = self._schema
        for step in str(reference).removeprefix("#").split("/")[1:]:
            key = unquote(step).replace("~1", "/").replace("~0", "~")
            found = found.get(key) if isinstance(found, Mapping) else None
        return found if isinstance(found, Mapping) and "$ref" not in found else _ANY


def _members(schema: Mapping[str, Any]) -> tuple[Mapping[str, Any], frozenset[str]]:
    """The properties of an object, and which must be there."""
    properties, required = schema.get("properties"), schema.get("required")
    return (
        properties if isinstance(properties, Mapping) else {},
        frozenset(required) if isinstance(required, list) else frozenset(),
    )


def _choices(schema: Any) -> list[Any]:
    if not isinstance(schema, Mapping):
        return []
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) else []


def _escaped(name: str) -> str:
    return quoted(name.replace("~", "~0").replace("/", "~1"))
