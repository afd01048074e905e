"""The values inside a JSON text that is still being written, each as soon as it is complete.

A scanner and not a library: incremental parsers (ijson, json-stream) give objects, which would have to be written as JSON anew,
with other numbers; here a value is a piece of the text. Pure. Linear in the text: values in more than `MAX_DEPTH` others,
or at a long path, are part of those only.
"""

from __future__ import annotations

import io
import re
from typing import NamedTuple

import orjson

MAX_DEPTH = 8
"""Objects and arrays around a value that is given on its own."""

MAX_PATH_CHARS = 512
"""Of the path of such a value, as JSON."""

_TOKEN = re.compile(r'\s+|[{}\[\],:"]|[^\s{}\[\],:"]+')
_STRING_RUN = re.compile(r'[^"\\]*')


class JsonValue(NamedTuple):
    """A complete member of an object, or element of an array.

    path  from the outermost value: keys and indices, a JSON array
    text  its own JSON, in one line: without blanks between its tokens
    """

    path: str
    text: str


class JsonValues:
    """Reads one JSON text; what follows its end, or is no JSON, makes no values that are worth anything."""

    def __init__(self) -> None:
        self._text = io.StringIO()
        self._num_chars = 0
        self._open: list[tuple[bool, int]] = []  # Of each object or array around: whether it is an object; where it began.
        self._path: list[str] = []  # In each of them the key, as JSON, or the index.
        self._expects_key = False
        self._string_at: int | None = None
        self._is_escaped = False
        self._word_at: int | None = None
        self._found: list[JsonValue] = []

    def push(self, piece: str) -> list[JsonValue]:
        """The values that a piece of the text completes, in the order in which they end."""
        at = 0
        while at < len(piece):
            if self._string_at is not None:
                at = self._read_string(piece, at)
            else:
                match = _TOKEN.match(piece, at)
                assert match is not None, "every character begins a token"
                self._take(match[0])
                at = match.end()
        found, self._found = self._found, []
        return found

    def _read_string(self, piece: str, at: int) -> int:
        """Read on from a place in a string; returns where that ends, if only for now."""
        if self._is_escaped:
            self._is_escaped = False
            self._keep(piece[at])
            return at + 1
        match = _STRING_RUN.match(piece, at)
        assert match is not None
        end = match.end()
        has_ended = end < len(piece) and piece[end] == '"'
        self._is_escaped = end < len(piece) and not has_ended
        end += has_ended or self._is_escaped
        self._keep(piece[at:end])
        if has_ended:
            self._end_string(self._num_chars)
        return end

    def _keep(self, text: str) -> None:
        self._text.write(text)
        self._num_chars += len(text)

    def _take(self, token: str) -> None:
        """A token outside of strings; a word may be continued by the next piece."""
        kind, at = token[0], self._num_chars
        if not kind.isspace():
            self._keep(token)
        if kind not in '{}[],:" \t\n\r':
            self._word_at = at if self._word_at is None else self._word_at
            return
        if self._word_at is not None:
            start, self._word_at = self._word_at, None
            self._complete(start, at)
        if kind == '"':
            self._string_at = at
        elif kind in "{[":
            self._open.append((kind == "{", at))
            self._path.append("0")
            self._expects_key = kind == "{"
        elif kind in "}]" and self._open:
            _, start = self._open.pop()
            self._path.pop()
            self._expects_key = False
            self._complete(start, at + 1)
        elif kind == "," and self._open:
            self._expects_key = self._open[-1][0]
            if not self._expects_key:
                self._path[-1] = str(int(self._path[-1]) + 1)
        elif kind == ":":
            self._expects_key = False

    def _end_string(self, end: int) -> None:
        assert self._string_at is not None
        start, self._string_at = self._string_at, None
        if not self._expects_key:
            self._complete(start, end)
        elif self._path:
            self._path[-1] = self._slice(start, end) if end - start <= MAX_PATH_CHARS else " " * MAX_PATH_CHARS

    def _complete(self, start: int, end: int) -> None:
        if not 0 < len(self._path) <= MAX_DEPTH:
            return
        path = f"[{','.join(self._path)}]"
        if len(path) > MAX_PATH_CHARS:
            return
        text = self._slice(start, end)
        if _is_suspect(path) or _is_suspect(text):
            try:
                orjson.loads(f"[{path},{text}]")
            except ValueError:
                return
        self._found.append(JsonValue(path, text))

    def _slice(self, start: int, end: int) -> str:
        self._text.seek(start)
        text = self._text.read(end - start)
        self._text.seek(0, io.SEEK_END)
        return text


def _is_suspect(text: str) -> bool:
    """Whether a text may be no JSON to parsers: half of a surrogate pair is escaped in it, or a line break is not."""
    return "\\ud" in text or "\\uD" in text or "\n" in text or "\r" in text


__all__ = ["MAX_DEPTH", "MAX_PATH_CHARS", "JsonValue", "JsonValues"]
