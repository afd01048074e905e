"""Which parts of a JSON schema are schemas: keywords, names of properties and plain data look alike. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

_DATA = frozenset({"const", "enum", "default", "examples"})
_BY_NAME = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"})

Path = tuple[str, ...]
"""Keywords, names and places in lists, from a schema to one in it."""


def subschemas(schema: Mapping[str, Any]) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """The schemas directly inside of one."""
    for key, value in schema.items():
        if key in _DATA:
            continue
        found: list[tuple[Path, Any]]
        if key in _BY_NAME and isinstance(value, Mapping):
            found = [((key, name), each) for name, each in value.items()]
        elif isinstance(value, list):
            found = [((key, str(place)), each) for place, each in enumerate(value)]
        else:
            found = [((key,), value)]
        yield from ((path, each) for path, each in found if isinstance(each, Mapping))


def with_subschemas(schema: Mapping[str, Any], change: Callable[[Mapping[str, Any]], Any]) -> dict[str, Any]:
    """A copy in which each schema directly inside is what `change` makes of it."""

    def changed(value: Any) -> Any:
        return change(value) if isinstance(value, Mapping) else value

    copy: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _DATA:
            copy[key] = value
        elif key in _BY_NAME and isinstance(value, Mapping):
            copy[key] = {name: changed(each) for name, each in value.items()}
        else:
            copy[key] = [changed(each) for each in value] if isinstance(value, list) else changed(value)
    return copy


def walk(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A schema and all inside it."""
    yield schema
    for _, each in subschemas(schema):
        yield from walk(each)
