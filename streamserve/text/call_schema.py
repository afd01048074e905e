"""JSON schemas of tool calls: one call of several functions, each with the schema of its own arguments. Pure functions.

Also how all constrained JSON is laid out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

JSON_STYLE: Any = {"whitespace_pattern": r"[ \t\n\r]{0,24}"}
"""llguidance's JSON options: white space between tokens. Unbounded, a model may generate nothing else until it is stopped."""

ANY_ARGUMENTS: Mapping[str, Any] = {"type": "object"}

_TYPE_WORDS = ("type", "$ref", "anyOf", "oneOf", "allOf")
_DATA_WORDS = ("const", "enum", "default", "examples")
_MAPS_OF_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


class Function(NamedTuple):
    """A function that may be called; `arguments` is a JSON schema."""

    name: str
    arguments: Mapping[str, Any]


def arguments_schema(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a function's arguments: an object, also where its parameters name no type."""
    has_type = any(word in parameters for word in _TYPE_WORDS)
    return dict(parameters) if has_type else {"type": "object", **parameters}


def call_schema(functions: Sequence[Function], arguments_key: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The schema of one call, and the `$defs` it refers to: each function's arguments, whose own references move along."""
    calls = [_one_call(function.name, arguments_key, f"#/$defs/{place}") for place, function in enumerate(functions)]
    definitions = {str(place): _moved_to(f"#/$defs/{place}", function.arguments) for place, function in enumerate(functions)}
    return {"anyOf": calls}, definitions


def _one_call(name: str, arguments_key: str, reference: str) -> dict[str, Any]:
    # The name comes first, so that a client gets it before the arguments.
    return {
        "type": "object",
        "properties": {"name": {"const": name}, arguments_key: {"$ref": reference}},
        "required": ["name", arguments_key],
        "additionalProperties": False,
    }


def _moved_to(root: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema as part of another one, at the JSON pointer `root`: its references, identifier and anchors become pointers."""
    base = schema.get("$id")
    targets = {f"#{name}": pointer for name, pointer in _anchors(schema, root)}
    moved: dict[str, Any] = _Move(root, base if isinstance(base, str) else "", targets).schema(schema)
    return moved


class _Move(NamedTuple):
    """Where references lead after a move.

    root     the pointer of the schema's new place
    base     its `$id`, by which references may name it
    targets  new pointers by reference to an anchor
    """

    root: str
    base: str
    targets: Mapping[str, str]

    def schema(self, schema: Any) -> Any:
        """One schema, or a list of them; what is data stays unchanged."""
        if isinstance(schema, list):
            return [self.schema(item) for item in schema]
        if not isinstance(schema, Mapping):
            return schema
        return {
            key: self._value(key, value)
            for key, value in schema.items()
            if not (key in ("$id", "$anchor", "$schema") and isinstance(value, str))
        }

    def _value(self, key: str, value: Any) -> Any:
        if key in _DATA_WORDS:
            return value
        if key in _MAPS_OF_SCHEMAS and isinstance(value, Mapping):
            return {name: self.schema(item) for name, item in value.items()}
        if key == "$ref" and isinstance(value, str):
            return self._reference(value)
        return self.schema(value)

    def _reference(self, reference: str) -> str:
        local = reference.removeprefix(self.base) if self.base else reference
        if local in self.targets:
            return self.targets[local]
        return self.root + local[1:] if local.startswith("#") or not local else reference


def _anchors(schema: Any, pointer: str) -> Iterator[tuple[str, str]]:
    """The anchors in a schema, each with the pointer that leads to it."""
    if isinstance(schema, list):
        for at, item in enumerate(schema):
            yield from _anchors(item, f"{pointer}/{at}")
    if not isinstance(schema, Mapping):
        return
    if isinstance(schema.get("$anchor"), str):
        yield schema["$anchor"], pointer
    for key, value in schema.items():
        below = f"{pointer}/{_escaped(key)}"
        if key in _MAPS_OF_SCHEMAS and isinstance(value, Mapping):
            for name, item in value.items():
                yield from _anchors(item, f"{below}/{_escaped(name)}")
        elif key not in _DATA_WORDS:
            yield from _anchors(value, below)


def _escaped(name: str) -> str:
    """A name in a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")
