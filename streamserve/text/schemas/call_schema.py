"""JSON schemas of tool calls: one call of several functions, each with the schema of its own arguments. Pure functions.

Also how all constrained JSON is laid out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from streamserve.text.schemas.references import with_local_references

JSON_STYLE: Any = {"whitespace_pattern": r"[ \t\n\r]{0,24}"}
"""llguidance's JSON options: white space between tokens. Unbounded, a model may generate nothing else until it is stopped."""

ANY_ARGUMENTS: Mapping[str, Any] = {"type": "object"}

_TYPE_WORDS = ("type", "$ref", "anyOf", "oneOf", "allOf")


class Function(NamedTuple):
    """A function that may be called; `arguments` is a JSON schema."""

    name: str
    arguments: Mapping[str, Any]


def arguments_schema(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a function's arguments: an object, also where its parameters name no type."""
    has_type = any(word in parameters for word in _TYPE_WORDS)
    return dict(parameters) if has_type else {"type": "object", **parameters}


def call_schema(
    functions: Sequence[Function], arguments_key: str, name_key: str = "name", id_key: str = ""
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The schema of one call, and the `$defs` it refers to: each function's arguments, whose own references move along."""
    id = {id_key: {"type": "string", "pattern": "^[0-9]{1,4}$"}} if id_key else {}
    calls = [
        _one_call({**id, name_key: {"const": function.name}}, arguments_key, f"#/$defs/{place}")
        for place, function in enumerate(functions)
    ]
    definitions = {
        str(place): with_local_references(function.arguments, f"#/$defs/{place}") for place, function in enumerate(functions)
    }
    return {"anyOf": calls}, definitions


def _one_call(name: dict[str, Any], arguments_key: str, reference: str) -> dict[str, Any]:
    # The name comes first, so that a client gets it before the arguments.
    return {
        "type": "object",
        "properties": {**name, arguments_key: {"$ref": reference}},
        "required": [*name, arguments_key],
        "additionalProperties": False,
    }
