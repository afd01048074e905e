"""The tool calls of one answer: numbers them and turns their objects into pieces."""

from __future__ import annotations

import json
from collections.abc import Collection

from streamserve.text.parsing.call_object import CallObject, MalformedCall
from streamserve.text.parsing.pieces import Piece, ToolCallArguments, ToolCallStart

_NO_ARGUMENTS = "{}"


class NoCall(Exception):
    """What was begun as a call is none.

    text  all that was read of it, to be read in another way
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class Calls:
    """The calls read so far, and the one being read.

    names  the functions that may be called: an object that names another is no call; None for whatever is named
    """

    def __init__(self, names: Collection[str] | None = None) -> None:
        self._names = names
        self._count = 0
        self._open: CallObject | None = None
        self._is_announced = False
        self._raw: list[str] = []
        self._arguments: list[str] = []

    @property
    def is_open(self) -> bool:
        return self._open is not None

    @property
    def count(self) -> int:
        return self._count

    def begin(self) -> None:
        """Begin a call; its object follows."""
        self._open, self._is_announced, self._raw, self._arguments = CallObject(), False, [], []

    def push(self, text: str) -> tuple[list[Piece], str]:
        """Pieces of the open call, and the text after its end, be it a premature one. Raises `NoCall`."""
        assert self._open is not None
        if not self._is_announced:
            self._raw.append(text)
        try:
            rest = self._open.push(text)
        except MalformedCall as error:
            if not self._is_call():
                raise self._no_call() from None
            return [*self._grown(self._open), *self._ended()], error.rest
        if self._open.name is not None and not self._is_call():
            raise self._no_call()
        pieces = self._grown(self._open)
        if self._open.is_complete:
            pieces += self._ended()
        return pieces, rest

    def finish(self, *, is_cut: bool) -> list[Piece]:
        """End inside a call. Raises `NoCall` when its name has not been read.

        is_cut  the text ends before the model ended it: then the call stays incomplete, too
        """
        if self._open is None:
            return []
        if not self._is_announced:
            raise self._no_call()
        if not is_cut:
            return self._ended()
        self._close()
        return []

    def _is_call(self) -> bool:
        name = None if self._open is None else self._open.name
        return name is not None and (self._names is None or name in self._names)

    def _grown(self, call: CallObject) -> list[Piece]:
        pieces: list[Piece] = []
        if call.name is not None and not self._is_announced:
            self._is_announced = True
            pieces.append(ToolCallStart(self._count, call.name))
        return pieces + self._more_arguments(call.take_arguments())

    def _ended(self) -> list[Piece]:
        """The rest of a call that has ended, with the brackets that it lacks, and an object where it has no arguments."""
        assert self._open is not None
        missing = self._open.missing
        pieces = self._more_arguments(missing if missing and _is_json("".join(self._arguments) + missing) else "")
        if not self._arguments and not self._open.is_inside_arguments:
            pieces = self._more_arguments(_NO_ARGUMENTS)
        self._close()
        return pieces

    def _more_arguments(self, text: str) -> list[Piece]:
        if not text:
            return []
        self._arguments.append(text)
        return [ToolCallArguments(self._count, text)]

    def _close(self) -> None:
        self._count += 1
        self._open = None

    def _no_call(self) -> NoCall:
        self._open = None
        return NoCall("".join(self._raw))


def _is_json(text: str) -> bool:
    try:
        json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return False
    return True
