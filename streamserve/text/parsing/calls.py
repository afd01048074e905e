"""The tool calls of one answer: numbers them and turns their objects into pieces."""

from __future__ import annotations

from streamserve.text.parsing.call_object import CallObject, MalformedCall
from streamserve.text.parsing.pieces import Content, Piece, ToolCallArguments, ToolCallStart


class Calls:
    """The calls read so far, and the one being read. Text that turns out to be no call is returned as content."""

    def __init__(self) -> None:
        self._count = 0
        self._open: CallObject | None = None
        self._is_announced = False
        self._raw: list[str] = []

    @property
    def is_open(self) -> bool:
        return self._open is not None

    @property
    def count(self) -> int:
        return self._count

    def begin(self) -> None:
        """Begin a call; its object follows."""
        self._open, self._is_announced, self._raw = CallObject(), False, []

    def push(self, text: str) -> tuple[list[Piece], str]:
        """Pieces of the open call, and the text after its end."""
        assert self._open is not None
        if not self._is_announced:
            self._raw.append(text)
        try:
            rest = self._open.push(text)
        except MalformedCall:
            return self._give_up(), ""
        pieces = self._grown(self._open)
        if self._open.is_complete:
            self._close()
        return pieces, rest

    def finish(self) -> list[Piece]:
        """End inside a call: one that was announced stays incomplete, one that was not becomes content."""
        return self._give_up() if self._open is not None else []

    def _grown(self, call: CallObject) -> list[Piece]:
        pieces: list[Piece] = []
        if call.name is not None and not self._is_announced:
            self._is_announced = True
            pieces.append(ToolCallStart(self._count, call.name))
        arguments = call.take_arguments()
        if arguments:
            pieces.append(ToolCallArguments(self._count, arguments))
        return pieces

    def _close(self) -> None:
        self._count += 1
        self._open = None

    def _give_up(self) -> list[Piece]:
        was_announced, raw = self._is_announced, "".join(self._raw)
        if was_announced:
            self._count += 1
        self._open = None
        return [] if was_announced else [Content(raw)]
