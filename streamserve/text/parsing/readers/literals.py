"""Arguments that are literals of a programming language: `(city="Bern", days=[1, 2])`, `{city:<escape>Bern<escape>}`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from streamserve.text.parsing.formats import Literals
from streamserve.text.parsing.output import NotACall, Output
from streamserve.text.parsing.source import MarkSet, Reading, Source

MAX_DEPTH = 64
"""How deep values may be nested."""

_NAME = re.compile(r"[^\s:=,(){}\[\]'\"<|]*")
_WORD = re.compile(r"[^\s,(){}\[\]'\"<|]*")
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_NAME_LIMIT = 512
_ESCAPES = {"n": "\\n", "t": "\\t", "r": "\\r", "b": "\\b", "f": "\\f", "\\": "\\\\", '"': '\\"', "'": "'", "/": "/", "\n": ""}
_HEXADECIMAL = re.compile(r"[0-9a-fA-F]*")
_DIGITS = {"x": 2, "u": 4}

_COMMA, _COLON = MarkSet((",",)), MarkSet((":",))
_LIST, _OBJECT, _TUPLE = MarkSet(("]",)), MarkSet(("}",)), MarkSet((")",))


class _Malformed(Exception):
    """What was read is no literal, or ended before."""


class LiteralsReader:
    """Reads the arguments of one call."""

    def __init__(self, source: Source, output: Output, format: Literals) -> None:
        self._source = source
        self._output = output
        self._format = format
        self._opens, self._closes = MarkSet((format.opens,)), MarkSet((format.closes,))
        self._assigns = MarkSet((format.assigns,))
        self._first_name: str | None = None

    def begin(self) -> Reading[None]:
        """Read up to the first value. Raises `NotACall` when neither a name follows nor the end."""
        yield from self._source.blanks()
        if not (yield from self._source.accept(self._opens)):
            raise NotACall
        yield from self._source.blanks()
        if (yield from self._source.sees(self._closes)):
            return
        try:
            self._first_name = yield from self._name(self._assigns)
        except _Malformed:
            raise NotACall from None

    def read(self) -> Reading[None]:
        """Read the values, and the end; nothing is added to arguments that end before."""
        try:
            yield from self._fields(self._closes, self._assigns, self._first_name, 0)
        except _Malformed:
            return
        self._output.end_call()

    def _fields(self, closes: MarkSet, assigns: MarkSet, name: str | None, depth: int) -> Reading[None]:
        """Names and values up to `closes`, after the first name if that was read before."""
        source, emit = self._source, self._output.arguments
        emit("{")
        count = 0
        while True:
            if name is None:
                yield from source.blanks()
                if (yield from source.accept(closes)):
                    break
                name = yield from self._name(assigns)
            emit((", " if count else "") + json.dumps(name, ensure_ascii=False) + ": ")
            name, count = None, count + 1
            yield from self._value(depth)
            yield from self._separator(closes)
        emit("}")

    def _items(self, closes: MarkSet, depth: int) -> Reading[None]:
        source, emit = self._source, self._output.arguments
        emit("[")
        count = 0
        while True:
            yield from source.blanks()
            if (yield from source.accept(closes)):
                break
            emit(", " if count else "")
            count += 1
            yield from self._value(depth)
            yield from self._separator(closes)
        emit("]")

    def _separator(self, closes: MarkSet) -> Reading[None]:
        yield from self._source.blanks()
        if not (yield from self._source.accept(_COMMA)) and not (yield from self._source.sees(closes)):
            raise _Malformed

    def _name(self, assigns: MarkSet) -> Reading[str]:
        source = self._source
        quote = yield from source.accept(self._format.quote_set)
        if quote:
            pieces: list[str] = []
            yield from self._text(quote, pieces.append)
            name = str(json.loads('"' + "".join(pieces) + '"'))
        else:
            name = yield from source.whole_run(_NAME, _NAME_LIMIT)
        yield from source.blanks()
        if not name or not (yield from source.accept(assigns)):
            raise _Malformed
        return name

    def _value(self, depth: int) -> Reading[None]:
        if depth == MAX_DEPTH:
            raise _Malformed
        source, emit = self._source, self._output.arguments
        yield from source.blanks()
        quote = yield from source.accept(self._format.quote_set)
        if quote:
            emit('"')
            yield from self._text(quote, emit)
            emit('"')
            return
        character = yield from source.peek()
        if character in ("[", "(", "{"):
            source.take(1)
            if character == "{":
                yield from self._fields(_OBJECT, _COLON, None, depth + 1)
            else:
                yield from self._items(_LIST if character == "[" else _TUPLE, depth + 1)
            return
        word = yield from source.whole_run(_WORD)
        if not word or not (yield from source.peek()):
            raise _Malformed
        emit(self._json_of(word))

    def _text(self, quote: str, sink: Callable[[str], None]) -> Reading[None]:
        """A text as the inside of a JSON string, up to the quote."""
        ends = MarkSet((quote, "\\") if self._format.escapes else (quote,))
        while True:
            text, mark = self._source.up_to(ends)
            if text:
                sink(json.dumps(text, ensure_ascii=False)[1:-1])
            if mark == quote:
                return
            if mark:
                sink((yield from self._escape()))
            elif not (yield from self._source.more()):
                raise _Malformed

    def _escape(self) -> Reading[str]:
        character = yield from self._source.peek()
        if not character:
            raise _Malformed
        self._source.take(1)
        digits = ""
        if character in _DIGITS:
            digits = yield from self._source.whole_run(_HEXADECIMAL, _DIGITS[character])
            if len(digits) == _DIGITS[character]:
                return f"\\u{digits:0>4}"
        return _ESCAPES.get(character, json.dumps("\\" + character, ensure_ascii=False)[1:-1]) + digits

    def _json_of(self, word: str) -> str:
        if _NUMBER.fullmatch(word):
            return word
        known = self._format.words.get(word, word)
        if known in ("true", "false", "null"):
            return known
        try:
            number = float(word)
            return json.dumps(int(word) if word.lstrip("+-").replace("_", "").isdigit() else number, allow_nan=False)
        except ValueError:
            return json.dumps(word, ensure_ascii=False)
