"""Stop strings: found across tokens, held back only as far as they could still match.

One matcher per sequence. Text goes in as it is decoded and comes out as soon as no stop string can begin in it any more.
Knows no tokens.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Searches a growing text for the first stop string.

    include_in_output  the text keeps the stop string it ends with
    """

    __slots__ = ("_held", "_include", "_stops")

    def __init__(self, stops: Sequence[str], *, include_in_output: bool = False) -> None:
        self._stops = list(dict.fromkeys(stops))
        self._include = include_in_output
        self._held = ""

    def push(self, text: str, *, armed: bool = True) -> tuple[str, str | None]:
        """The text that may be shown now, and the stop string that was found, if any; nothing may follow one.

        Of several, the one complete first wins, and of those the longest, however the text is cut into pushes. Unless
        `armed`, a complete match is shown like any text (the minimum of tokens is not reached).
        """
        text = self._held + text
        if armed and (found := self._find(text)) is not None:
            at, stop = found
            self._held = ""
            return text[: at + len(stop) if self._include else at], stop
        kept = self._possible_start(text)
        self._held = text[kept:]
        return text[:kept], None

    def finish(self) -> str:
        """What was still held back."""
        held, self._held = self._held, ""
        return held

    def _find(self, text: str) -> tuple[int, str] | None:
        hits = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        return min(hits)[1:] if hits else None

    def _possible_start(self, text: str) -> int:
        """Where the earliest stop string may have begun that the text doesn't hold whole."""
        return min((_start_of_prefix(text, stop) for stop in self._stops), default=len(text))


def _start_of_prefix(text: str, stop: str) -> int:
    """Where the longest end of `text` starts that is a beginning, but not all, of `stop`; the text's end when none is."""
    at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while at >= 0 and not stop.startswith(text[at:]):
        at = text.find(stop[0], at + 1)
    return at if at >= 0 else len(text)
