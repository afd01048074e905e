"""What of a JSON schema a grammar can't say, left out. Pure functions.

Formats that nobody checks are annotations (JSON Schema 2020-12 validation, 7.2.1). The schemas of tools are weakened
further, since agents send what their languages' types become: a call that follows the rest is better than no answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from streamserve.text.schemas.subschemas import with_subschemas

_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown"})
"""Those that the grammars' library enforces."""

_KEYWORDS = frozenset(
    {
        "if", "then", "else", "not", "contains", "minContains", "maxContains", "uniqueItems", "propertyNames", "dependencies",
        "dependentRequired", "dependentSchemas", "unevaluatedItems", "unevaluatedProperties", "$dynamicRef", "$recursiveRef",
    }
)  # fmt: skip
"""Those that it can't."""

_IRREGULAR = re.compile(r"\(\?(?:[=!]|<[=!])|(?<!\\)(?:\\\\)*\\(?:[1-9]|k<)")
"""Look-around and references to groups, of which there are no automata."""


def without_annotations(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema without formats that constrain nothing."""
    copy = with_subschemas(schema, without_annotations)
    if isinstance(copy.get("format"), str) and copy["format"] not in _FORMATS:
        del copy["format"]
    return copy


def weakened(schema: Mapping[str, Any]) -> tuple[dict[str, Any], frozenset[str]]:
    """A schema of all that this one allows, and more where a grammar can't say it; the keywords that were left out."""
    left_out: set[str] = set()

    def weaken(part: Mapping[str, Any]) -> dict[str, Any]:
        dropped = {key for key in _KEYWORDS & part.keys() if part[key] is not False}
        copy = {key: value for key, value in part.items() if key not in _KEYWORDS}
        if isinstance(copy.get("pattern"), str) and _IRREGULAR.search(copy["pattern"]):
            dropped.add("pattern")
            del copy["pattern"]
        patterns = copy.get("patternProperties")
        if isinstance(patterns, Mapping) and any(_IRREGULAR.search(pattern) for pattern in patterns):
            # A name that such a pattern matches would count as an additional one.
            dropped.add("patternProperties")
            copy["patternProperties"] = {key: each for key, each in patterns.items() if not _IRREGULAR.search(key)}
            copy.pop("additionalProperties", None)
        if "oneOf" in copy and "anyOf" not in copy:
            dropped.add("oneOf")
            copy["anyOf"] = copy.pop("oneOf")
        left_out.update(dropped)
        return with_subschemas(copy, weaken)

    return weaken(schema), frozenset(left_out)
