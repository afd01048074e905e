"""References of a JSON schema as JSON pointers, which a part of it keeps wherever it is moved. Pure functions.

A schema may name itself and parts of it (`$id`, `$anchor`), and refer to those names relative to where it stands. What is named
and where references lead is in JSON Schema 2020-12 (sections 8.2 and 9.2), draft 7 (8.2) and RFC 6901 (6).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any
from urllib.parse import quote, unquote, urljoin

from streamserve.text.schemas.subschemas import subschemas, with_subschemas

_NAMES = ("$id", "$anchor", "$schema")
_UNQUOTED = "/~!$&'()*+,;=:@"
"""What a URI's fragment may hold besides letters and digits (RFC 3986, 3.5), but for a question mark."""


def with_local_references(schema: Mapping[str, Any], root: str = "#") -> dict[str, Any]:
    """The schema with each reference as a pointer from the document that has it at `root`, and without names.

    A reference that leads out of the schema stays as it is.
    """
    places = _Places({_base(schema, ""): root})
    places.add(schema, root, "")
    return places.rewritten(schema, "")


class _Places:
    """Where the named parts of a schema are.

    pointers  by URI: those of `$id` without a fragment, those of anchors with theirs
    """

    def __init__(self, pointers: dict[str, str]) -> None:
        self.pointers = pointers

    def add(self, schema: Mapping[str, Any], pointer: str, base: str) -> None:
        """Note the names in a schema at `pointer`, whose URI would be `base` if it had none of its own."""
        identifier, base = _identifier(schema), _base(schema, base)
        if identifier and not identifier.startswith("#"):
            self.pointers.setdefault(base, pointer)
        for name in (schema.get("$anchor"), identifier[1:] if identifier.startswith("#") else None):
            if isinstance(name, str) and name:
                self.pointers.setdefault(f"{base}#{name}", pointer)
        for path, each in subschemas(schema):
            self.add(each, "/".join((pointer, *map(_escaped, path))), base)

    def rewritten(self, schema: Mapping[str, Any], base: str) -> dict[str, Any]:
        base = _base(schema, base)
        copy = with_subschemas(schema, partial(self.rewritten, base=base))
        for name in _NAMES:
            if isinstance(copy.get(name), str):
                del copy[name]
        if isinstance(copy.get("$ref"), str):
            copy["$ref"] = self._pointer(base, copy["$ref"])
        return copy

    def _pointer(self, base: str, reference: str) -> str:
        target = _joined(base, reference)
        document, _, fragment = target.partition("#")
        if fragment and not fragment.startswith("/"):
            return self.pointers.get(target, reference)
        if document not in self.pointers:
            return reference
        # Programs leave names unquoted that are no ASCII, as pydantic does.
        return self.pointers[document] + quote(unquote(fragment), safe=_UNQUOTED)


def _identifier(schema: Mapping[str, Any]) -> str:
    identifier = schema.get("$id")
    return identifier if isinstance(identifier, str) else ""


def _base(schema: Mapping[str, Any], base: str) -> str:
    """The URI of a schema: that around it, unless it has one of its own; a fragment alone is draft 7's anchor."""
    identifier = _identifier(schema)
    return base if not identifier or identifier.startswith("#") else _joined(base, identifier).partition("#")[0]


def _joined(base: str, reference: str) -> str:
    # urljoin knows no fragments of URNs.
    return base + reference if reference.startswith("#") else urljoin(base, reference)


def _escaped(name: str) -> str:
    """A name in a JSON pointer that is a URI's fragment."""
    return quote(name.replace("~", "~0").replace("/", "~1"), safe=_UNQUOTED)
