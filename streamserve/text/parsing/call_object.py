"""One tool call written as a JSON object, read while it is being written: `{"name": …, "arguments": {…}}`.

The arguments' JSON text is returned unchanged and piece by piece, so that a client can show it grow. A scanner and not a JSON
library, because none returns the text of an incomplete value.
"""

from __future__ import annotations

import json
from enum import Enum

NAME_KEYS = ("name",)
ARGUMENT_KEYS = ("arguments", "parameters")
_SPACE = " \t\r\n"


class MalformedCall(ValueError):
    """The text is no tool call.

    rest  the text from the character on that can't be part of one
    """

    rest: str = ""


class _Expect(Enum):
    OPEN = "{"
    KEY = "key"
    COLON = ":"
    VALUE = "value"
    INSIDE = "inside a value"
    COMMA = ", or }"
    END = "end"


class CallObject:
    """Scans one object. `name` is None until it has been read; the arguments come out of `take_arguments`."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._expect = _Expect.OPEN
        self._key = ""
        self._value = JsonValue()
        self._arguments: list[str] = []
        self._has_arguments = False
        self._takes_value = False
        self._is_held = False
        self._reads_key = False

    @property
    def is_complete(self) -> bool:
        return self._expect is _Expect.END

    def push(self, text: str) -> str:
        """Scan on; returns what follows the object's end. Raises `MalformedCall`, what precedes the fault having been taken."""
        at = 0
        while at < len(text):
            if self._expect is _Expect.END:
                return text[at:]
            end = self._value.end_of_run(text, at) if self._expect is _Expect.INSIDE else at
            if end > at:
                self._take_run(text[at:end])
            else:
                end = at + 1
                try:
                    self._scan(text[at])
                except MalformedCall as error:
                    error.rest = text[at:]
                    raise
            at = end
        return ""

    def take_arguments(self) -> str:
        """The arguments' text since the last call; nothing before the name is known, nor of a value that may stand for none."""
        if self.name is None or self._is_held:
            return ""
        text, self._arguments = "".join(self._arguments), []
        return text

    @property
    def is_inside_arguments(self) -> bool:
        return self._takes_value and self._expect is _Expect.INSIDE

    @property
    def missing(self) -> str:
        """The brackets that the arguments lack at this place; "" inside a string and outside of arguments."""
        return self._value.missing if self.is_inside_arguments else ""

    def _take_run(self, text: str) -> None:
        self._value.take_run(text)
        if self._takes_value:
            self._arguments.append(text)

    def _scan(self, character: str) -> None:
        if self._expect is _Expect.INSIDE:
            self._scan_value(character)
        elif character not in _SPACE:
            self._scan_mark(character)

    def _scan_mark(self, character: str) -> None:
        expect = self._expect
        if expect is _Expect.OPEN and character == "{":
            self._expect = _Expect.KEY
        elif expect is _Expect.KEY and character == '"':
            self._begin_value(character, is_key=True)
        elif expect is _Expect.COLON and character == ":":
            self._expect = _Expect.VALUE
        elif expect is _Expect.VALUE:
            self._begin_value(character, is_key=False)
        elif expect is _Expect.COMMA and character == ",":
            self._expect = _Expect.KEY
        elif character == "}" and expect in (_Expect.COMMA, _Expect.KEY):
            self._end()
        else:
            raise MalformedCall(f"expected {expect.value}")

    def _begin_value(self, character: str, *, is_key: bool) -> None:
        self._expect = _Expect.INSIDE
        self._reads_key = is_key
        self._value = JsonValue()
        self._takes_value = not is_key and self._key in ARGUMENT_KEYS and not self._has_arguments
        if self._takes_value:
            self._has_arguments = True
            self._is_held = character not in "{["
        self._scan_value(character)

    def _scan_value(self, character: str) -> None:
        if character == "<" and not self._value.is_inside_string:
            raise MalformedCall("a tag inside a value")  # A model that leaves out a bracket ends its call so.
        belongs = self._value.push(character)
        if belongs and self._takes_value:
            self._arguments.append(character)
        if self._value.is_complete:
            self._close_value()
            if not belongs:
                self._scan_mark_after_scalar(character)

    def _scan_mark_after_scalar(self, character: str) -> None:
        if character not in _SPACE:
            self._scan_mark(character)

    def _close_value(self) -> None:
        if self._reads_key:
            self._key = _string(self._value.text)
            self._expect = _Expect.COLON
            return
        if self._key in NAME_KEYS:
            self.name = _string(self._value.text)
        if self._takes_value and self._is_held:
            self._arguments, self._is_held = [_plain(self._value.text)], False
        self._expect = _Expect.COMMA

    def _end(self) -> None:
        if self.name is None:
            raise MalformedCall("a call without a name")
        self._expect = _Expect.END


class JsonValue:
    """Finds the end of one JSON value."""

    def __init__(self) -> None:
        self.is_complete = False
        self._characters: list[str] = []
        self._open: list[str] = []
        self._in_string = False
        self._escaped = False

    @property
    def text(self) -> str:
        return "".join(self._characters)

    @property
    def is_inside_string(self) -> bool:
        return self._in_string

    @property
    def missing(self) -> str:
        """The brackets that would end the value; "" inside a string."""
        return "" if self._in_string else "".join(reversed(self._open))

    def push(self, character: str) -> bool:
        """Whether `character` belongs to the value; a number, true, false or null ends with the character after it."""
        if self._in_string:
            self._scan_string(character)
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._open.append("}" if character == "{" else "]")
        elif character in "}]" and self._open:
            self._open.pop()
            self.is_complete = not self._open
        elif not self._open and character in ",}]" + _SPACE:
            self.is_complete = True
            return False
        self._characters.append(character)
        return True

    def end_of_run(self, text: str, at: int) -> int:
        """Where the characters from `at` on end that are nothing but the inside of a string; `at` when there are none."""
        if not self._in_string or self._escaped:
            return at
        ends = [end for end in (text.find('"', at), text.find("\\", at)) if end >= 0]
        return min(ends, default=len(text))

    def take_run(self, text: str) -> None:
        """Take characters that `end_of_run` has found."""
        self._characters.append(text)

    def _scan_string(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self._in_string = False
            self.is_complete = not self._open


def _string(text: str) -> str:
    try:
        value = json.loads(text, strict=False)
    except ValueError as error:
        raise MalformedCall("not a JSON string") from error
    if not isinstance(value, str):
        raise MalformedCall("not a string")
    return value


def _plain(text: str) -> str:
    """Arguments that a model wrote as a string of JSON, or as null for none."""
    decoded = _string(text) if text.startswith('"') else text
    return "" if decoded.strip() == "null" else decoded
