"""A call of one tool that the request chose: a grammar makes the whole answer its arguments."""

from __future__ import annotations

from streamserve.text.parsing.pieces import Piece, ToolCallArguments, ToolCallStart


class ForcedCallParser:
    """Everything is the arguments of `name`."""

    is_plain = False

    def __init__(self, name: str) -> None:
        self._name = name
        self._is_announced = False

    def push(self, text: str) -> list[Piece]:
        if not text:
            return []
        pieces: list[Piece] = [] if self._is_announced else [ToolCallStart(0, self._name)]
        self._is_announced = True
        return [*pieces, ToolCallArguments(0, text)]

    def finish(self) -> list[Piece]:
        return []
