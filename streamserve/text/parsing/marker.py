"""Finds a marker in growing text, holding back no more than its possible beginning."""

from __future__ import annotations


def split_at(text: str, marker: str) -> tuple[str, str, bool]:
    """The text before `marker`, the rest, and whether the marker was found.

    Found: the rest is what follows the marker. Not found: the rest is the longest end of `text` that could begin one.
    """
    at = text.find(marker)
    if at >= 0:
        return text[:at], text[at + len(marker) :], True
    kept = _possible_start(text, marker)
    return text[:kept], text[kept:], False


def _possible_start(text: str, marker: str) -> int:
    at = text.find(marker[0], max(0, len(text) - len(marker) + 1))
    while at >= 0:
        if marker.startswith(text[at:]):
            return at
        at = text.find(marker[0], at + 1)
    return len(text)
