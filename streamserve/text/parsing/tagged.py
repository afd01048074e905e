"""Tool calls between tags, one JSON object each, as Hermes and Qwen write them: `<tool_call>{…}</tool_call>`."""

from __future__ import annotations

from streamserve.text.parsing.calls import Calls, NoCall
from streamserve.text.parsing.marker import split_at
from streamserve.text.parsing.pieces import Content, Piece

START = "<tool_call>"
END = "</tool_call>"
_BLANKS = " \t\r\n"


class TaggedCallParser:
    """Content until a start tag; a call until the end tag; and so on."""

    passes_through = False

    def __init__(self) -> None:
        self._calls = Calls()
        self._mark = ""
        self._held = ""
        self._awaits_end = False
        self._is_between_calls = False

    def push(self, text: str) -> list[Piece]:
        text, self._held = self._held + text, ""
        pieces: list[Piece] = []
        while text:
            if self._calls.is_open:
                text = self._read_call(text, pieces)
            elif self._awaits_end:
                text = self._read_end(text)
            else:
                text = self._read_content(text, pieces)
        return pieces

    def finish(self, *, is_cut: bool = False) -> list[Piece]:
        held, self._held = self._held, ""
        if self._calls.is_open:
            try:
                return self._calls.finish(is_cut=is_cut)
            except NoCall as none:
                held = self._mark + none.text
        elif self._awaits_end:
            return []
        return [Content(held)] if held.strip() else []

    def _read_call(self, text: str, pieces: list[Piece]) -> str:
        try:
            found, rest = self._calls.push(text)
        except NoCall as none:  # The mark was part of a sentence, and another one may be in what was read since.
            pieces.append(Content(self._mark))
            self._is_between_calls = False
            return none.text
        pieces += found
        self._awaits_end = self._is_between_calls = not self._calls.is_open
        return rest

    def _read_end(self, text: str) -> str:
        """What follows a call's object: its end tag, perhaps after a bracket too many; without one, content."""
        begun = text.lstrip(" \t\r\n}")
        if not begun.startswith(END) and END.startswith(begun):
            self._held = text
            return ""
        self._awaits_end = False
        return begun.removeprefix(END) if begun.startswith(END) else text

    def _read_content(self, text: str, pieces: list[Piece]) -> str:
        content, rest, found = split_at(text, START)
        # Newlines before a tag belong to the markup, and so do all blanks between two calls: they wait for what follows.
        shown = "" if self._is_between_calls and not content.strip(_BLANKS) else content.rstrip("\n")
        if shown:
            pieces.append(Content(shown))
            self._is_between_calls = False
        if not found:
            self._held = content[len(shown) :] + rest
            return ""
        self._calls.begin()
        self._mark = content[len(shown) :] + START
        return rest
