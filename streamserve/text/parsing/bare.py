"""Tool calls that are the whole answer, as Llama 3 writes them: `{"name": …, "parameters": {…}}`, several separated by `;`."""

from __future__ import annotations

from streamserve.text.parsing.calls import Calls
from streamserve.text.parsing.pieces import Content, Piece

PYTHON_TAG = "<|python_tag|>"


class BareCallParser:
    """An answer that begins with an object is calls, any other is content."""

    def __init__(self) -> None:
        self._calls = Calls()
        self._held = ""
        self._is_content = False

    @property
    def passes_through(self) -> bool:
        return self._is_content

    def push(self, text: str) -> list[Piece]:
        if self._is_content:
            return [Content(text)] if text else []
        text, self._held = self._held + text, ""
        pieces: list[Piece] = []
        while text and not self._is_content:
            if self._calls.is_open:
                found, text = self._calls.push(text)
                pieces += found
                self._is_content = any(isinstance(piece, Content) for piece in found)
            else:
                text = self._read_gap(text)
        if text:
            pieces.append(Content(text))
        return pieces

    def finish(self) -> list[Piece]:
        held, self._held = self._held, ""
        if self._calls.is_open:
            return self._calls.finish()
        return [Content(held)] if held.strip(" \n;") else []

    def _read_gap(self, text: str) -> str:
        """Between calls, or before the first: an object, or what the answer turns out to be instead."""
        begun = text.lstrip(" \n;" if self._calls.count else " \n").removeprefix(PYTHON_TAG).lstrip(" \n")
        if begun.startswith("{"):
            self._calls.begin()
            return begun
        if not begun or PYTHON_TAG.startswith(begun):
            self._held = text
            return ""
        self._is_content = True
        return text
