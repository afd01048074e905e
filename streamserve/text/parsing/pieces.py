"""The pieces that a chat answer's text falls into; those of one kind concatenate."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Content(NamedTuple):
    """Text for the reader."""

    text: str


class Reasoning(NamedTuple):
    """Text the model wrote before its answer."""

    text: str


class ToolCallStart(NamedTuple):
    """The model calls tool `name`; `call` counts the calls of one answer from 0."""

    call: int
    name: str


class ToolCallArguments(NamedTuple):
    """More of the JSON text of call `call`'s arguments."""

    call: int
    json: str


Piece = Content | Reasoning | ToolCallStart | ToolCallArguments


class Parser(Protocol):
    """Reads one answer as it comes. What was shown is never taken back."""

    @property
    def passes_through(self) -> bool:
        """Whether all that is still to come is content, just as it is: then it need not be read."""
        ...

    def push(self, text: str) -> list[Piece]:
        """The pieces that `text` completes; what could still become part of a marker is held back."""
        ...

    def finish(self) -> list[Piece]:
        """What was held back, once no more text comes."""
        ...
