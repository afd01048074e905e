"""A prompt's text in which some special tokens are only text: what a template wrote, told from what a client wrote."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Span = tuple[int, int]


class RenderedText(str):
    """A text, and the parts of it in which special tokens are plain text.

    literals  start and end of each part in order; an empty one keeps a special token from being read across its place

    What operations on it return are plain strings, in which every special token counts.
    """

    literals: tuple[Span, ...]

    def __new__(cls, text: str, literals: Iterable[Span]) -> RenderedText:
        made = super().__new__(cls, text)
        made.literals = tuple((start, end) for start, end in literals)
        return made

    def pieces(self) -> Iterator[tuple[str, bool]]:
        """The text cut at the bounds of literals, and of each piece whether it is one."""
        at = 0
        for start, end in self.literals:
            yield self[at:start], False
            yield self[start:end], True
            at = end
        yield self[at:], False
