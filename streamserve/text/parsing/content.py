"""Answers without tool calls: all text is content."""

from __future__ import annotations

from streamserve.text.parsing.pieces import Content, Piece


class ContentParser:
    """Returns all text as content."""

    passes_through = True

    def push(self, text: str) -> list[Piece]:
        return [Content(text)] if text else []

    def finish(self, *, is_cut: bool = False) -> list[Piece]:
        return []
