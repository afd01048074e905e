"""Tool calls after `[TOOL_CALLS]`, as Mistral writes them: a JSON array, or (since Tekken v11) `name{…}` or `name[ARGS]{…}`."""

from __future__ import annotations

import re

from streamserve.text.parsing.call_object import JsonValue
from streamserve.text.parsing.calls import Calls, NoCall
from streamserve.text.parsing.marker import split_at
from streamserve.text.parsing.pieces import Content, Piece, ToolCallArguments, ToolCallStart

MARKER = "[TOOL_CALLS]"
ARGS = "[ARGS]"
_BEGINS_ARRAY = re.compile(r"\[\s*[\]{]")
_BEGINS_NAMED = re.compile(r"[\w.:/-]+\s*(\[ARGS\])?\s*\{")
_MAY_BEGIN = re.compile(r"(\[\s*)?|[\w.:/-]{1,128}\s*(\[(A(R(G(S(\]\s*)?)?)?)?)?)?")


class MistralParser:
    """Content until the marker; then calls in whichever of the two forms."""

    passes_through = False

    def __init__(self) -> None:
        self._held = ""
        self._array: ArrayParser | None = None
        self._named: _NamedCalls | None = None
        self._has_marker = False

    def push(self, text: str) -> list[Piece]:
        if self._array is not None:
            return self._array.push(text)
        if self._named is not None:
            return self._named.push(text)
        text, self._held = self._held + text, ""
        if self._has_marker:
            return self._choose_form(text)
        content, rest, self._has_marker = split_at(text, MARKER)
        pieces: list[Piece] = [Content(content)] if content else []
        if not self._has_marker:
            self._held = rest
            return pieces
        return pieces + self._choose_form(rest)

    def finish(self, *, is_cut: bool = False) -> list[Piece]:
        if self._array is not None:
            return self._array.finish(is_cut=is_cut)
        if self._named is not None:
            return self._named.finish(is_cut=is_cut)
        held, self._held = self._held, ""
        if self._has_marker and (held.strip() or not is_cut):
            held = MARKER + held
        return [Content(held)] if held else []

    def _choose_form(self, text: str) -> list[Piece]:
        """After a mark: an array of objects, a function's name, or a sentence that the mark was part of."""
        begun = text.lstrip()
        if _BEGINS_ARRAY.match(begun):
            self._array = ArrayParser()
            return self._array.push(begun)
        if _BEGINS_NAMED.match(begun):
            self._named = _NamedCalls()
            return self._named.push(begun)
        if _MAY_BEGIN.fullmatch(begun):
            self._held = text
            return []
        self._has_marker = False
        return [Content(MARKER), *self.push(text)]


class ArrayParser:
    """A JSON array of calls; also the base of the parser of required calls."""

    passes_through = False

    def __init__(self) -> None:
        self._calls = Calls()

    def push(self, text: str) -> list[Piece]:
        pieces: list[Piece] = []
        while text:
            if self._calls.is_open:
                try:
                    found, text = self._calls.push(text)
                except NoCall as none:
                    found, text = [Content(none.text)], ""
                pieces += found
                continue
            at = text.find("{")
            if at < 0:
                break  # brackets, commas and blanks between the objects
            self._calls.begin()
            text = text[at:]
        return pieces

    def finish(self, *, is_cut: bool = False) -> list[Piece]:
        try:
            return self._calls.finish(is_cut=is_cut)
        except NoCall as none:
            return [Content(none.text)]


class _NamedCalls:
    """`name{…}` one after another, each again after a marker."""

    def __init__(self) -> None:
        self._index = 0
        self._name = ""
        self._value: JsonValue | None = None

    def push(self, text: str) -> list[Piece]:
        pieces: list[Piece] = []
        start = 0
        for at, character in enumerate(text):
            if self._value is None:
                if character != "{":
                    self._name += character
                    continue
                pieces.append(ToolCallStart(self._index, self._name.replace(MARKER, "").removesuffix(ARGS).strip()))
                self._name, self._value, start = "", JsonValue(), at
            self._value.push(character)
            if self._value.is_complete:
                pieces.append(ToolCallArguments(self._index, text[start : at + 1]))
                self._value = None
                self._index += 1
        if self._value is not None:
            pieces.append(ToolCallArguments(self._index, text[start:]))
        return pieces

    def finish(self, *, is_cut: bool = False) -> list[Piece]:
        if is_cut:
            return []
        if self._value is None:
            return [Content(self._name)] if self._name.strip() else []
        missing = self._value.missing
        return [ToolCallArguments(self._index, missing)] if missing else []
