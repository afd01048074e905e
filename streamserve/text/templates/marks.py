"""Keeps special tokens out of what clients write: marks them before a template is rendered, finds the marks in its output.

A template only concatenates, so nothing in its output tells its own `<|im_end|>` from one in a message. Marked, the client's
is enclosed in two private characters, which templates carry along as they do any text; texts without special tokens are
unchanged, and so is all that a template does with them. Knows texts of special tokens, not their ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from streamserve.errors import InvalidParameter
from streamserve.text.rendered_text import RenderedText, Span
from streamserve.text.stop_strings import StopIndex
from streamserve.text.templates.arguments import CallArguments

START, END = "\ue0f0", "\ue0f1"
"""Of the Basic Multilingual Plane's private use. A client's own are marked, too, under names, and so come out unchanged."""

MAX_CANDIDATES = 4096
"""Places in a conversation where a special token seems to begin: each takes two microseconds, on an event loop."""

_SHORT = 256


class SpecialTexts:
    """The texts that are marked; compiled once for a model.

    special_tokens  texts of all that count; blank ones are ordinary text to templates, too
    """

    def __init__(self, special_tokens: Iterable[str]) -> None:
        tokens = {token for token in special_tokens if token.strip()}
        self.marked = {token: f"{START}{token}{END}" for token in tokens} | {START: f"{START}0{END}", END: f"{START}1{END}"}
        self.literals = {token: token for token in tokens} | {"0": START, "1": END}
        longest_first = sorted(self.marked, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)))
        self.beginnings = _beginnings(longest_first)
        self.first = re.compile("[" + "".join({re.escape(token[0]) for token in longest_first}) + "]")
        self.index = StopIndex(tokens)


class Marks:
    """Marks in the JSON values of one conversation, and in the text rendered from them."""

    def __init__(self, special: SpecialTexts) -> None:
        self._special = special
        self._candidates_left = MAX_CANDIDATES

    def put(self, value: Any) -> Any:
        """A copy with marks around special tokens, in keys too, and at ends of text that could begin one.

        Raises `InvalidParameter` when there are too many.
        """
        if isinstance(value, str):
            return self._put_text(value)
        if isinstance(value, CallArguments):
            return CallArguments(self._put_fields(value), self._put_text(str(value)))
        if isinstance(value, Mapping):
            return self._put_fields(value)
        if isinstance(value, list):
            return [self.put(item) for item in value]
        return value

    def take(self, text: str) -> str:
        """The text without marks; a `RenderedText` when there were any. One that a template cut off is a bound by itself."""
        if START not in text and END not in text:
            return text
        before, *rest = text.split(START)
        read = _Read()
        read.add_text(before)
        for chunk in rest:
            name, is_closed, after = chunk.partition(END)
            literal = self._special.literals.get(name, "") if is_closed else ""
            read.add_literal(literal)
            read.add_text(after if literal else chunk)
        return RenderedText("".join(read.pieces), read.literals)

    def _put_fields(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        return {self._enclosed(key): self.put(item) for key, item in fields.items()}

    def _put_text(self, text: str) -> str:
        special = self._special
        if len(text) < _SHORT and special.first.search(text) is None:
            return text
        end = text[special.index.possible_start(text) :]
        # Words alone are left, so that templates can compare roles and names: what begins a token is punctuation.
        return self._enclosed(text) + ("" if not end or end.isalnum() else END)

    def _enclosed(self, text: str) -> str:
        special = self._special
        if len(text) < _SHORT and special.first.search(text) is None:
            return text
        places = sorted(place for beginning in special.beginnings for place in self._places(text, beginning))
        if not places:
            return text
        pieces: list[str] = []
        at = 0
        for place in places:
            found = special.pattern.match(text, place) if place >= at else None
            if found is not None:
                pieces += (text[at:place], special.marked[found[0]])
                at = found.end()
        return "".join([*pieces, text[at:]])

    def _places(self, text: str, beginning: str) -> Iterator[int]:
        place = text.find(beginning)
        while place >= 0:
            self._candidates_left -= 1
            if self._candidates_left < 0:
                reason = f"hold what looks like special tokens more than {MAX_CANDIDATES} times"
                raise InvalidParameter("messages", f"{reason}; a server with --allow-special-tokens-in-messages takes them")
            yield place
            place = text.find(beginning, place + 1)


class _Read:
    """The text read so far, in pieces."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.literals: list[Span] = []
        self._length = 0

    def add_literal(self, text: str) -> None:
        self.literals.append((self._length, self._length + len(text)))
        self._add(text)

    def add_text(self, text: str) -> None:
        first, *others = text.split(END)
        self._add(first)
        for other in others:
            self.add_literal("")
            self._add(other)

    def _add(self, text: str) -> None:
        self.pieces.append(text)
        self._length += len(text)


def _beginnings(texts: Iterable[str]) -> list[str]:
    """What texts begin with, as few as possible: searching for these is faster than for hundreds of reserved tokens."""
    groups: dict[str, list[str]] = {}
    for text in texts:
        groups.setdefault(text[:2], []).append(text)
    return [_common(min(group), max(group)) for group in groups.values()]


def _common(one: str, other: str) -> str:
    """The longest beginning of both."""
    at = next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other)))
    return one[:at]
