"""The pieces of a chat answer; consecutive ones of one kind concatenate."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Content(NamedTuple):
    """Text of the answer itself."""

    text: str


class Reasoning(NamedTuple):
    """Text the model wrote before its answer."""

    text: str


class ToolCallStart(NamedTuple):
    """The model calls tool `name`; `call` counts the calls of one answer from 0.

    id  by which the model refers to the call, where its dialect writes one
    """

    call: int
    name: str
    id: str | None = None


class ToolCallArguments(NamedTuple):
    """More of the JSON text of call `call`'s arguments."""

    call: int
    json: str


Piece = Content | Reasoning | ToolCallStart | ToolCallArguments


class Parser(Protocol):
    """Parses one answer incrementally; a piece once returned is final."""

    @property
    def passes_through(self) -> bool:
        """Whether all further text is content, unchanged: then it need not be parsed."""
        ...

    def push(self, text: str) -> list[Piece]:
        """The pieces that `text` completes; what could still become part of a marker is held back."""
        ...

    def finish(self, *, is_cut: bool = False) -> list[Piece]:
        """The pieces held back until the end of the text; `is_cut` when the model did not end it itself."""
        ...
