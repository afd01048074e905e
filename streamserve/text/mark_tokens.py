"""The marks of a dialect's reasoning as token ids, for the engine, which knows no text.

Runs where requests are prepared. A mark that is one token of the vocabulary, as nearly all are, has one spelling; one that is
plain text has several, since tokens may reach over its ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from streamserve.text.parsing.dialects.dialect import Dialect
from streamserve.text.parsing.formats import ChannelFormat, ReasoningFormat
from streamserve.text.tokenizers.tokenizer import Tokenizer
from streamserve.types import ReasoningMarks

_BEFORE = ("", " ", "\n", "\n\n")
_BEHIND = ("", " ", "\n", "\n\n")
"""What may stand beside a mark of plain text, and be part of its first or last token."""


class MarkTokens:
    """Spells the marks of one model's dialects. What was spelled is kept."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._kept: dict[tuple[ReasoningFormat | ChannelFormat, bool, bool], ReasoningMarks] = {}

    def reasoning(self, dialect: Dialect, thinks: bool | None, *, may_call: bool) -> ReasoningMarks | None:
        """How an answer's reasoning is told and ended; None where it has none.

        thinks    as `Dialect.thinks`: whether it has begun
        may_call  whether the answer may hold calls
        """
        format = dialect.channels or (None if thinks is None else dialect.reasoning)
        if format is None:
            return None
        key = (format, bool(thinks), may_call)
        marks = self._kept.get(key)
        if marks is None:
            if isinstance(format, ChannelFormat):
                marks = self._of_channels(format, may_call=may_call)
            else:
                marks = self._of_format(format, has_begun=bool(thinks))
            self._kept[key] = marks
        return marks

    def _of_format(self, format: ReasoningFormat, *, has_begun: bool) -> ReasoningMarks:
        closes = self._spellings((*format.closes, *format.ended_by))
        return ReasoningMarks(
            opens=self._spellings(format.opens),
            closes=closes,
            answers=closes,
            ending=[[token_id] for token_id in self._encode(format.closes[0])],
            has_begun=has_begun,
        )

    def _of_channels(self, format: ChannelFormat, *, may_call: bool) -> ReasoningMarks:
        """Another message follows the one that is ended: of the last channel, or a call, and of no reasoning."""
        header = format.ends[0] + format.begins + format.role + format.channel
        final, calls = self._encode(format.final), self._encode(format.calls)
        ending = [[token_id] for token_id in self._encode(header)]
        if may_call:
            ending.append(sorted({final[0], calls[0]}))
        else:
            ending += [[token_id] for token_id in (*final, *self._encode(format.body))]
        return ReasoningMarks(
            opens=self._spellings([format.channel + format.reasoning + format.body]),
            closes=self._spellings((*format.ends, format.begins, format.channel)),
            answers=[self._encode(format.channel + format.final)],
            ending=ending,
            anywhere=True,
        )

    def _spellings(self, marks: Iterable[str]) -> list[list[int]]:
        return [list(ids) for ids in dict.fromkeys(ids for mark in marks for ids in self._spellings_of(mark))]

    def _spellings_of(self, mark: str) -> Iterator[tuple[int, ...]]:
        alone = self._encode(mark)
        if len(alone) == 1:
            yield (alone[0],)
            return
        for before in _BEFORE:
            for behind in _BEHIND:
                yield self._part(self._encode(before + mark + behind), mark.encode()) or tuple(alone)

    def _part(self, token_ids: list[int], mark: bytes) -> tuple[int, ...]:
        """Those of the tokens that hold a part of the mark; none where their bytes don't hold it."""
        pieces = [self._tokenizer.token_bytes(token_id) for token_id in token_ids]
        first = b"".join(pieces).find(mark)
        end, place = first + len(mark), 0
        held = []
        for token_id, piece in zip(token_ids, pieces, strict=True):
            if first >= 0 and place < end and place + len(piece) > first:
                held.append(token_id)
            place += len(piece)
        return tuple(held)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)


__all__ = ["MarkTokens"]
