"""JSON values read while they are written: the text comes out unchanged and piece by piece.

A scanner and not a JSON library, because none returns the text of an incomplete value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from streamserve.text.parsing.source import Reading, Source

_PLAIN = re.compile(r'[^"\\]*')
_BETWEEN = re.compile(r'[^"{}\[\]<]*')
_WORD = re.compile(r'[^\s,:"{}\[\]<]*')
_CLOSERS = {"{": "}", "[": "]"}


class JsonText:
    """One value, an object, array or string, whose text goes to `sink`.

    missing  the brackets that would end it; "" inside a string
    """

    def __init__(self, source: Source, sink: Callable[[str], None]) -> None:
        self._source = source
        self._sink = sink
        self._open: list[str] = []
        self._is_inside_string = False

    @property
    def missing(self) -> str:
        return "" if self._is_inside_string else "".join(reversed(self._open))

    def read(self) -> Reading[bool]:
        """Read it; False when the text ends before, or goes on with what can't belong to it."""
        source = self._source
        while True:
            self._sink(source.run(_PLAIN if self._is_inside_string else _BETWEEN))
            character = yield from source.peek()
            if not character:
                return False
            if self._is_inside_string:
                if (yield from self._end_of_run(character)):
                    return True
            elif character == '"':
                self._sink(source.take(1))
                self._is_inside_string = True
            elif character in _CLOSERS:
                self._sink(source.take(1))
                self._open.append(_CLOSERS[character])
            elif self._open and character == self._open[-1]:
                self._sink(source.take(1))
                self._open.pop()
                if not self._open:
                    return True
            elif character in "}]<":
                return False  # A model that leaves out a bracket goes on with a tag.

    def _end_of_run(self, character: str) -> Reading[bool]:
        """A quote or an escape in a string; True when it ends the value."""
        source = self._source
        if character == '"':
            self._sink(source.take(1))
            self._is_inside_string = False
            return not self._open
        if character == "\\":
            self._sink(source.take(1))
            if (yield from source.peek()):
                self._sink(source.take(1))
        return False


def read_string(source: Source) -> Reading[str | None]:
    """The string whose quote is next; None when it is none."""
    pieces: list[str] = []
    if not (yield from JsonText(source, pieces.append).read()):
        return None
    try:
        value = json.loads("".join(pieces), strict=False)
    except ValueError:
        return None
    return value if isinstance(value, str) else None


def read_word(source: Source) -> Reading[str]:
    """A number, true, false or null; "" for anything else."""
    return (yield from source.whole_run(_WORD))


def skip_value(source: Source) -> Reading[bool]:
    """Read past any value; False when there is none."""
    if (yield from source.peek()) in ("{", "[", '"'):
        return (yield from JsonText(source, _drop).read())
    return bool((yield from read_word(source)))


def _drop(text: str) -> None:
    """A sink of what nobody asks for."""


def read_arguments(source: Source, sink: Callable[[str], None]) -> Reading[JsonText | None]:
    """The JSON text of arguments to `sink`: an object, or a string that holds one; nothing for null and what is no value.

    Returns the value where it was left unfinished.
    """
    character = yield from source.peek()
    if character == '"':
        pieces: list[str] = []
        value = JsonText(source, pieces.append)
        if not (yield from value.read()):
            sink("".join(pieces))
            return value
        sink(_decoded("".join(pieces)))
        return None
    if character in _CLOSERS:
        value = JsonText(source, sink)
        return None if (yield from value.read()) else value
    word = yield from read_word(source)
    sink("" if word == "null" else word)
    return None


def _decoded(text: str) -> str:
    try:
        decoded = str(json.loads(text, strict=False))
    except ValueError:
        return text
    return "" if decoded.strip() == "null" else decoded


def is_json(text: str) -> bool:
    """Whether a text is one whole JSON value; control characters inside its strings are forgiven."""
    try:
        json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return False
    return True
