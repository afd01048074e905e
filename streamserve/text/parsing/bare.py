"""Tool calls that are the whole answer, as Llama 3 writes them: `{"name": …, "parameters": {…}}`, several separated by `;`."""

from __future__ import annotations

from collections.abc import Collection

from streamserve.text.parsing.calls import Calls, NoCall
from streamserve.text.parsing.pieces import Content, Piece

PYTHON_TAG = "<|python_tag|>"


class BareCallParser:
    """An answer that begins with an object that names a function is calls, any other is content.

    names  as of `Calls`
    """

    def __init__(self, names: Collection[str] | None = None) -> None:
        self._calls = Calls(names)
        self._held = ""
        self._before = ""
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
            text = self._read_call(text, pieces) if self._calls.is_open else self._read_gap(text)
        if text:
            pieces.append(Content(text))
        return pieces

    def finish(self, *, is_cut: bool = False) -> list[Piece]:
        held, self._held = self._held, ""
        if self._calls.is_open:
            try:
                return self._calls.finish(is_cut=is_cut)
            except NoCall as none:
                return [Content(self._before + none.text)]
        return [Content(held)] if held.strip(" \n;") else []

    def _read_call(self, text: str, pieces: list[Piece]) -> str:
        try:
            found, rest = self._calls.push(text)
        except NoCall as none:
            self._is_content = True
            return self._before + none.text
        pieces += found
        return rest

    def _read_gap(self, text: str) -> str:
        """Between calls, or before the first: an object, or what the answer turns out to be instead."""
        begun = text.lstrip(" \n;" if self._calls.count else " \n").removeprefix(PYTHON_TAG).lstrip(" \n")
        if begun.startswith("{"):
            self._before = text[: len(text) - len(begun)]
            self._calls.begin()
            return begun
        if not begun or PYTHON_TAG.startswith(begun):
            self._held = text
            return ""
        self._is_content = True
        return text
