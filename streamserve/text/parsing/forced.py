"""Required tool calls without a dialect: a grammar makes all of the answer one function's arguments, or an array of calls."""

from __future__ import annotations

from streamserve.text.parsing.answer import AnswerParser
from streamserve.text.parsing.formats import CallFormat, CallList, ObjectCall
from streamserve.text.parsing.pieces import Content, Piece, ToolCallArguments, ToolCallStart

_ARRAY = CallFormat(
    is_bare=True, lists=(CallList(call=ObjectCall(arguments_key="parameters"), opens="[", separator=",", closes="]"),)
)


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


class RequiredCallsParser:
    """An array of calls and nothing else: a call cut short before its name is dropped."""

    passes_through = False

    def __init__(self) -> None:
        self._parser = AnswerParser.of_calls(_ARRAY)

    def push(self, text: str) -> list[Piece]:
        return _without_content(self._parser.push(text))

    def finish(self, *, is_cut: bool = False) -> list[Piece]:
        return _without_content(self._parser.finish(is_cut=is_cut))


def _without_content(pieces: list[Piece]) -> list[Piece]:
    return [piece for piece in pieces if not isinstance(piece, Content)]
