"""Random JSON schemas, in the keywords that people use."""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any]


def random_schema(source: random.Random) -> Schema:
    """A schema whose texts are finite in structure: objects, arrays and unions to a small depth."""
    return _schema(source, depth=3)


def _schema(source: random.Random, depth: int) -> Schema:
    leaves = [_string, _integer, _number, _enum, lambda _: {"type": "boolean"}, lambda _: {"type": "null"}]
    if depth == 0 or source.random() < 0.3:
        return source.choice(leaves)(source)
    return source.choice([_object, _object, _array, _union])(source, depth - 1)


def _string(source: random.Random) -> Schema:
    kinds: list[Schema] = [
        {"maxLength": source.randrange(1, 12)},
        {"minLength": 2, "maxLength": 5},
        {"pattern": r"^[a-z]{1,4}\d$"},
        {"format": source.choice(["date", "uuid", "ipv4", "email"])},
        {"enum": ["秋天", 'a"b', "c\\d"]},
    ]
    return {"type": "string", **source.choice(kinds)}


def _integer(source: random.Random) -> Schema:
    low = source.randrange(-50, 50)
    return {"type": "integer", "minimum": low, "maximum": low + source.randrange(0, 200)}


def _number(source: random.Random) -> Schema:
    return {"type": "number", "minimum": 0, "exclusiveMaximum": source.choice([1, 7.5, 1000])}


def _enum(source: random.Random) -> Schema:
    return source.choice([{"const": "x"}, {"enum": [1, "two", None, True]}, {"enum": ["red", "green"]}])


def _object(source: random.Random, depth: int) -> Schema:
    names = source.sample(["name", "age", "tags", "城市", "nested", "a b"], source.randrange(1, 5))
    return {
        "type": "object",
        "properties": {name: _schema(source, depth) for name in names},
        "required": source.sample(names, source.randrange(0, len(names) + 1)),
        "additionalProperties": False,
    }


def _array(source: random.Random, depth: int) -> Schema:
    least = source.randrange(0, 3)
    return {"type": "array", "items": _schema(source, depth), "minItems": least, "maxItems": least + source.randrange(0, 3)}


def _union(source: random.Random, depth: int) -> Schema:
    return {"anyOf": [_schema(source, depth) for _ in range(source.randrange(1, 4))]}
