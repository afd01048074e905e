"""Required tool calls: a grammar makes the whole answer the arguments of one function, or an array of calls."""

from __future__ import annotations

from streamserve.text.parsing.mistral import ArrayParser
from streamserve.text.parsing.pieces import Content, Piece, ToolCallArguments, ToolCallStart


class ForcedCallParser:
    """Everything is the arguments of `name`."""

    passes_through = False

    def __init__(self, name: str) -> None:
        self._name = name
        self._is_announced = False

    def push(self, text: str) -> list[Piece]:
        if not text:
            return []
        pieces: list[Piece] = [] if self._is_announced else [ToolCallStart(0, self._name)]
        self._is_announced = True
        return [*pieces, ToolCallArguments(0, text)]

    def finish(self, *, is_cut: bool = False) -> list[Piece]:
        return []


class RequiredCallsParser(ArrayParser):
    """An array of calls and nothing else: a call cut short before its name is dropped."""

    def finish(self, *, is_cut: bool = False) -> list[Piece]:
        return [piece for piece in super().finish(is_cut=is_cut) if not isinstance(piece, Content)]
