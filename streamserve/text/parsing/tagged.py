"""Tool calls between tags, one JSON object each, as Hermes and Qwen write them: `<tool_call>{…}</tool_call>`."""

from __future__ import annotations

from streamserve.text.parsing.calls import Calls
from streamserve.text.parsing.marker import split_at
from streamserve.text.parsing.pieces import Content, Piece

START = "<tool_call>"
END = "</tool_call>"


class TaggedCallParser:
    """Content until a start tag; a call until the end tag; and so on."""

    passes_through = False

    def __init__(self) -> None:
        self._calls = Calls()
        self._held = ""
        self._awaits_end = False

    def push(self, text: str) -> list[Piece]:
        text, self._held = self._held + text, ""
        pieces: list[Piece] = []
        while text:
            if self._calls.is_open:
                found, text = self._calls.push(text)
                pieces += found
                was_call = not any(isinstance(piece, Content) for piece in found)
                self._awaits_end = was_call and not self._calls.is_open
            elif self._awaits_end:
                _, text, ended = split_at(text, END)
                self._awaits_end = not ended
                if not ended:
                    self._held, text = text, ""
            else:
                text = self._read_content(text, pieces)
        return pieces

    def finish(self) -> list[Piece]:
        held, self._held = self._held, ""
        if self._calls.is_open:
            return self._calls.finish()
        return [Content(held)] if held.strip() and not self._awaits_end else []

    def _read_content(self, text: str, pieces: list[Piece]) -> str:
        content, rest, found = split_at(text, START)
        # Newlines before a tag belong to the markup, so they wait for what follows.
        shown = content.rstrip("\n")
        if self._calls.count and not shown.strip():
            shown = ""  # the blank between two calls
        if shown:
            pieces.append(Content(shown))
        if not found:
            self._held = content[len(content.rstrip("\n")) :] + rest
            return ""
        self._calls.begin()
        return rest
