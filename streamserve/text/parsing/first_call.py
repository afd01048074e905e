"""For requests without parallel tool calls: drops every call after the first."""

from __future__ import annotations

from streamserve.text.parsing.pieces import Parser, Piece, ToolCallArguments, ToolCallStart


class FirstCallParser:
    """Returns the pieces of `parser`, without calls after the first."""

    passes_through = False

    def __init__(self, parser: Parser) -> None:
        self._parser = parser

    def push(self, text: str) -> list[Piece]:
        return _without_further_calls(self._parser.push(text))

    def finish(self, *, is_cut: bool = False) -> list[Piece]:
        return _without_further_calls(self._parser.finish(is_cut=is_cut))


def _without_further_calls(pieces: list[Piece]) -> list[Piece]:
    return [piece for piece in pieces if not (isinstance(piece, ToolCallStart | ToolCallArguments) and piece.call > 0)]
