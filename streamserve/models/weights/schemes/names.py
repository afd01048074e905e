"""Lists of modules in a `quantization_config`, in the ways that the tools write them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

HEADS = ("lm_head",)
"""Linears that a method quantizes only where it says so."""


def is_listed(name: str, entries: Iterable[str]) -> bool:
    """Whether a linear is one of these: by its name, by a part of that between dots, "re:" and a pattern, or with asterisks."""
    return any(_matches(name, entry) for entry in entries)


def _matches(name: str, entry: str) -> bool:
    if entry.startswith("re:"):
        return re.match(entry.removeprefix("re:"), name) is not None
    if "*" in entry:
        return fnmatchcase(name, entry)
    return f".{entry}." in f".{name}."
