"""Stop strings: found across tokens, held back only as far as they could still match.

One matcher per sequence, over an index per request: the cost of a token grows neither with the number of stop strings nor with
the text held back. Text is released as soon as no stop string can begin in it any more. Knows nothing of tokens.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable


class StopIndex:
    """The stop strings of one request, indexed by their beginnings. Immutable."""

    __slots__ = ("_firsts", "_lengths", "_ordered", "_texts")

    def __init__(self, stops: Iterable[str]) -> None:
        self._texts = frozenset(stops)
        self._ordered = sorted(self._texts)
        self._lengths = sorted({len(stop) for stop in self._texts}, reverse=True)
        self._firsts = frozenset(stop[0] for stop in self._texts)

    def __bool__(self) -> bool:
        return bool(self._texts)

    def find(self, text: str, start: int) -> tuple[int, str] | None:
        """Of the stop strings that end behind `start`: where the one complete first begins, and of those the longest."""
        first: tuple[int, int, str] | None = None
        for length in self._lengths:
            last = (len(text) if first is None else first[0]) - length
            for at in range(max(0, start + 1 - length), last + 1):
                found = text[at : at + length] if text[at] in self._firsts else ""
                if found in self._texts and (first is None or at + length < first[0]):
                    first = (at + length, at, found)
                    break
        return None if first is None else first[1:]

    def possible_start(self, text: str) -> int:
        """Where the longest end of `text` starts that is a beginning, but not all, of a stop string; else the text's end."""
        longest = self._lengths[0] if self._lengths else 1
        for at in range(max(0, len(text) - longest + 1), len(text)):
            if text[at] in self._firsts and self._begins(text[at:]):
                return at
        return len(text)

    def _begins(self, text: str) -> bool:
        """Whether a longer stop string begins with `text`: then the next one in order does."""
        at = bisect_right(self._ordered, text)
        return at < len(self._ordered) and self._ordered[at].startswith(text)


class StopStrings:
    """Searches a growing text for the first stop string.

    include_in_output  keep the stop string at the end of the text
    """

    __slots__ = ("_held", "_include", "_index")

    def __init__(self, index: StopIndex, *, include_in_output: bool = False) -> None:
        self._index = index
        self._include = include_in_output
        self._held = ""

    def push(self, text: str, *, armed: bool = True) -> tuple[str, str | None]:
        """The text that may be shown now, and the stop string that was found, if any; nothing may follow one.

        Of several, the one complete first wins, and of those the longest, however the text is cut into pushes. Unless
        `armed`, a complete match is shown like any text (the minimum of tokens is not reached).
        """
        num_held = len(self._held)
        text = self._held + text
        if armed and (found := self._index.find(text, num_held)) is not None:
            at, stop = found
            self._held = ""
            return text[: at + len(stop) if self._include else at], stop
        kept = self._index.possible_start(text)
        self._held = text[kept:]
        return text[:kept], None

    def finish(self) -> str:
        """The text still held back."""
        held, self._held = self._held, ""
        return held
