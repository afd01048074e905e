"""Text that arrives in parts, and the steps that parsers are made of: each waits until what follows is decided.

A parser is a generator that yields where it needs more text. No step looks at where parts end, so an answer reads the same
however it is cut; and none goes back, so reading takes time in proportion to the text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Generator
from functools import cached_property
from typing import TypeVar

T = TypeVar("T")

Reading = Generator[None, None, T]
"""Yields for more text, and returns what has been read."""

BLANKS = " \t\r\n"


class MarkSet:
    """Texts that are looked for together; compiled once."""

    def __init__(self, marks: Collection[str]) -> None:
        self.marks = tuple(sorted(set(marks), key=len, reverse=True))

    def __bool__(self) -> bool:
        return bool(self.marks)

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches any of them, the longest first."""
        return re.compile("|".join(map(re.escape, self.marks)))

    @cached_property
    def beginnings(self) -> frozenset[str]:
        """All that could still become one."""
        return frozenset(mark[:end] for mark in self.marks for end in range(1, len(mark)))

    @cached_property
    def beginning_or_newline(self) -> re.Pattern[str]:
        """Matches a character that could begin one, and a newline."""
        return re.compile("[\n" + "".join({re.escape(mark[0]) for mark in self.marks}) + "]")

    @cached_property
    def _first(self) -> re.Pattern[str]:
        return re.compile("[" + "".join({re.escape(mark[0]) for mark in self.marks}) + "]")

    def possible_start(self, text: str, at: int) -> int:
        """Where a mark may begin that `text` holds only the beginning of; its length when nowhere."""
        at = max(at, len(text) - len(self.marks[0]) + 1)
        while (found := self._first.search(text, at)) is not None:
            if text[found.start() :] in self.beginnings:
                return found.start()
            at = found.end()
        return len(text)


class Source:
    """The text of one answer, as far as it has come and has not been read.

    is_ended  no more text will come
    is_cut    it ended before the model ended it
    """

    def __init__(self) -> None:
        self.is_ended = False
        self.is_cut = False
        self._text = ""
        self._at = 0
        self._record: list[str] | None = None

    @property
    def is_read(self) -> bool:
        """Whether all that has come has been read."""
        return self._at == len(self._text)

    def add(self, text: str) -> None:
        self._text = self._text[self._at :] + text
        self._at = 0

    def end(self, *, is_cut: bool) -> None:
        self.is_ended, self.is_cut = True, is_cut

    def begin_record(self, *texts: str) -> None:
        """Keep what is read from now on, after `texts`, until `take_record` or `drop_record`."""
        self._record = list(texts)

    def take_record(self) -> str:
        text, self._record = "".join(self._record or ()), None
        return text

    def drop_record(self) -> None:
        self._record = None

    def unread(self, text: str) -> None:
        """Put text before what comes next."""
        self._text = text + self._text[self._at :]
        self._at = 0

    def more(self) -> Reading[bool]:
        """Wait; False when no more text will come."""
        if self.is_ended:
            return False
        yield
        return True

    def peek(self) -> Reading[str]:
        """The next character, unread; "" at the end."""
        while self._at == len(self._text):
            if self.is_ended:
                return ""
            yield
        return self._text[self._at]

    def take(self, length: int) -> str:
        """The next characters, as many as are there, up to `length`."""
        return self._consume(self._at + length)

    def take_all(self) -> str:
        """All that has come."""
        return self._consume(len(self._text))

    def run(self, pattern: re.Pattern[str], limit: int | None = None) -> str:
        """The characters that have come and match, up to `limit`; `pattern` matches any number of characters of a class."""
        found = pattern.match(self._text, self._at, len(self._text) if limit is None else self._at + limit)
        return "" if found is None else self._consume(found.end())

    def whole_run(self, pattern: re.Pattern[str], limit: int | None = None) -> Reading[str]:
        """As `run`, with all that will come."""
        pieces: list[str] = []
        while True:
            pieces.append(self.run(pattern, limit))
            limit = None if limit is None else limit - len(pieces[-1])
            if self._at < len(self._text) or limit == 0 or self.is_ended:
                return "".join(pieces)
            yield

    def blanks(self, also: str = "") -> Reading[str]:
        """The white space that follows, with the characters of `also` in it."""
        return (yield from self.whole_run(_BLANKS if not also else re.compile(f"[ \t\r\n{re.escape(also)}]*")))

    def accept(self, marks: MarkSet) -> Reading[str]:
        """The mark that follows, or at the end of the text the beginning of one; "" when there is none, and nothing is read."""
        if not marks:
            return ""
        while True:
            ahead = self._text[self._at : self._at + len(marks.marks[0])]
            if self.is_ended or (ahead and ahead not in marks.beginnings):
                break
            yield
        found = marks.pattern.match(ahead)
        if found is not None:
            return self._consume(self._at + found.end())
        return self._consume(self._at + len(ahead)) if ahead in marks.beginnings else ""

    def sees(self, marks: MarkSet) -> Reading[bool]:
        """Whether one of the marks follows; nothing is read."""
        found = yield from self.accept(marks)
        if found:
            self._at -= len(found)
            if self._record is not None:
                self._record.pop()
        return bool(found)

    def up_to(self, marks: MarkSet) -> tuple[str, str]:
        """The text that has come before the first mark, and that mark; what may begin one is left, with "" for the mark."""
        found = marks.pattern.search(self._text, self._at)
        if found is not None and (found.end() < len(self._text) or self.is_ended or found[0] not in marks.beginnings):
            return self._consume(found.start()), self._consume(found.end())
        end = found.start() if found is not None else len(self._text)
        if found is None and not self.is_ended:
            end = marks.possible_start(self._text, self._at)
        return self._consume(end), ""

    def _consume(self, end: int) -> str:
        text = self._text[self._at : end]
        self._at += len(text)
        if self._record is not None and text:
            self._record.append(text)
        return text


_BLANKS = re.compile(r"[ \t\r\n]*")
