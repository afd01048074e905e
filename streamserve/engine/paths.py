"""Structs that hold paths, as JSON between our own processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


def encode_with_paths(value: msgspec.Struct) -> bytes:
    """`value` as one line of JSON, paths as text."""
    return msgspec.json.encode(value, enc_hook=_to_text)


def decode_with_paths(line: bytes, kind: type[T]) -> T:
    """The inverse of `encode_with_paths`."""
    return msgspec.json.decode(line, type=kind, dec_hook=_from_text)


def _to_text(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} can't cross to another process")


def _from_text(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise NotImplementedError(f"{kind.__name__} can't cross to another process")
