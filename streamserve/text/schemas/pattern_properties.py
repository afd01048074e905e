"""Declared properties that a pattern of their object makes impossible, which llguidance finds out in the middle of a text.

Pure functions over JSON schemas; they run on the threads that compile.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from streamserve.text.schemas.references import with_local_references
from streamserve.text.schemas.subschemas import walk

_UNSATISFIABLE = re.compile(r"required property '(.*?)' is unsatisfiable")
_PLACE = "#/$defs/schema"


def impossible_property(tokenizer: LLTokenizer, schema: Mapping[str, Any]) -> str | None:
    """The name of a property whose schema contradicts that of a pattern its name matches; None when there is none."""
    local = with_local_references(schema, _PLACE)
    for owner in walk(local):
        if not isinstance(owner.get("properties"), Mapping) or not isinstance(owner.get("patternProperties"), Mapping):
            continue
        declared = {name: each for name, each in owner["properties"].items() if each is not False}
        alone = {"type": "object", "properties": declared, "patternProperties": owner["patternProperties"]}
        # Required, they are all checked by compiling once.
        checked = {**alone, "required": list(declared), "$defs": {"schema": local}}
        matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(checked), log_level=0)
        found = _UNSATISFIABLE.search(matcher.get_error()) if matcher.is_error() else None
        if found is not None:
            return found[1]
    return None
