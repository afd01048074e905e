"""Reads a call that is a JSON object, whatever the order of its keys: `{"name": …, "arguments": {…}}`."""

from __future__ import annotations

from collections.abc import Callable

from streamserve.text.parsing.formats import ObjectCall
from streamserve.text.parsing.json_text import JsonText, read_arguments, read_string, skip_value
from streamserve.text.parsing.output import NotACall, Output
from streamserve.text.parsing.source import Reading, Source

_ARGUMENT_KEYS = ("arguments", "parameters")


class ObjectCallReader:
    """Reads one.

    announce  begins the call of this name; raises `NotACall` when there is no such function
    """

    def __init__(self, source: Source, output: Output, call: ObjectCall, announce: Callable[[str], None]) -> None:
        self._source = source
        self._output = output
        self._call = call
        self._announce = announce
        self._is_announced = False
        self._has_arguments = False
        self._early: list[str] = []

    def read(self) -> Reading[None]:
        """Raises `NotACall` unless it has a name; once that has been shown, what follows a fault is no part of the call."""
        source = self._source
        source.take(1)
        unfinished: JsonText | None = None
        is_closed = False
        while unfinished is None and not is_closed:
            yield from source.blanks()
            character = yield from source.peek()
            if character == "}":
                source.take(1)
                is_closed = True
            elif character == '"':
                is_sound, unfinished = yield from self._field()
                if not is_sound:
                    break
            else:
                break
        if not self._is_announced:
            raise NotACall
        missing = "" if unfinished is None or source.is_cut else unfinished.missing
        if is_closed or not (source.is_cut or (unfinished is not None and not missing)):
            self._output.end_call(missing)

    def _field(self) -> Reading[tuple[bool, JsonText | None]]:
        """One key with its value and the comma after it: whether it was sound, and arguments that were left unfinished."""
        source = self._source
        key = yield from read_string(source)
        yield from source.blanks()
        if key is None or (yield from source.peek()) != ":":
            return False, None
        source.take(1)
        yield from source.blanks()
        unfinished = None
        if key == self._call.name_key and not self._is_announced:
            name = (yield from read_string(source)) if (yield from source.peek()) == '"' else None
            if not name:
                return False, None
            self._begin(name)
        elif key in (self._call.arguments_key, *_ARGUMENT_KEYS) and not self._has_arguments:
            self._has_arguments = True
            unfinished = yield from read_arguments(source, self._take_arguments)
        elif not (yield from skip_value(source)):
            return False, None
        if unfinished is not None:
            return True, unfinished
        yield from source.blanks()
        following = yield from source.peek()
        if following == ",":
            source.take(1)
        return following in (",", "}"), None

    def _begin(self, name: str) -> None:
        self._announce(name)
        self._is_announced = True
        self._output.arguments("".join(self._early))

    def _take_arguments(self, text: str) -> None:
        if self._is_announced:
            self._output.arguments(text)
        else:
            self._early.append(text)
