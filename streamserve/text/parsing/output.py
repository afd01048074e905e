"""What has been read of one answer, as pieces: numbers its calls, and keeps what tells whether the arguments are whole."""

from __future__ import annotations

import re

from streamserve.text.parsing.json_text import is_json
from streamserve.text.parsing.pieces import Content, Piece, Reasoning, ToolCallArguments, ToolCallStart

_NO_ARGUMENTS = "{}"


class NotACall(Exception):
    """What was begun as a call is none, before anything of it was shown."""


class Output:
    """Collects the pieces of one answer; neighbours of one kind become one piece.

    quiet  set while nothing is held back: text in which this doesn't match is of the kind named, whole, and need not be read
    """

    def __init__(self) -> None:
        self.quiet: tuple[re.Pattern[str], type[Content | Reasoning]] | None = None
        self._pieces: list[Piece] = []
        self._kind: type[Content | Reasoning | ToolCallArguments] = Content
        self._texts: list[str] = []
        self._count = 0
        self._arguments: list[str] = []

    def take(self) -> list[Piece]:
        """The pieces since the last call."""
        self._close_piece()
        pieces, self._pieces = self._pieces, []
        return pieces

    def content(self, text: str) -> None:
        self._add(Content, text)

    def reasoning(self, text: str) -> None:
        self._add(Reasoning, text)

    def begin_call(self, name: str, id: str | None = None) -> None:
        self._close_piece()
        self._arguments = []
        self._pieces.append(ToolCallStart(self._count, name, id))
        self._count += 1

    def arguments(self, text: str) -> None:
        """More of the arguments of the call that was begun last."""
        if text:
            self._arguments.append(text)
            self._add(ToolCallArguments, text)

    def end_call(self, missing: str = "") -> None:
        """End the call: with an empty object where it has no arguments, or the brackets that they lack.

        missing  those brackets; added only where that makes a JSON value
        """
        if not self._arguments:
            self.arguments(_NO_ARGUMENTS)
        elif missing and is_json("".join(self._arguments) + missing):
            self.arguments(missing)

    def _add(self, kind: type[Content | Reasoning | ToolCallArguments], text: str) -> None:
        if not text:
            return
        if kind is not self._kind:
            self._close_piece()
            self._kind = kind
        self._texts.append(text)

    def _close_piece(self) -> None:
        if not self._texts:
            return
        text, self._texts = "".join(self._texts), []
        if self._kind is ToolCallArguments:
            self._pieces.append(ToolCallArguments(self._count - 1, text))
        else:
            self._pieces.append(Content(text) if self._kind is Content else Reasoning(text))
