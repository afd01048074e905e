"""The budget of one sequence's reasoning: how far it has got, and the tokens that end it once the budget is spent.

Runs on the engine's event loop. Follows committed tokens; whatever it forces is a mask of the step that samples it, so that the
token is sampled, scattered and reported like any other.
"""

from __future__ import annotations

from collections.abc import Iterable

from streamserve.types import ReasoningMarks

_LEADING_TOKENS = 2
"""Tokens, blanks as a rule, that an answer may have before the mark that begins its reasoning."""


class ReasoningLimit:
    """Follows the tokens of one sequence and ends its reasoning after `budget` of them.

    generated  tokens that the sequence has already
    is_over    whether no reasoning can follow, so that nothing is left to limit
    """

    __slots__ = ("_budget", "_count", "_is_reasoning", "_kept", "_longest", "_marks", "_num_seen", "_place", "_tail", "is_over")

    def __init__(self, marks: ReasoningMarks, budget: int, generated: Iterable[int] = ()) -> None:
        self._marks = marks
        self._budget = budget
        self._count = 0
        self._is_reasoning = marks.has_begun
        self._longest = max(len(mark) for each in (marks.opens, marks.closes, marks.answers) for mark in each)
        self._kept = max(self._longest, len(marks.ending))
        self._num_seen = 0
        self._tail: list[int] = []
        # Of the next token of `ending`; None while none is forced.
        self._place: int | None = None
        self.is_over = False
        for token_id in generated:
            self._follow(token_id)

    def plan(self) -> list[int] | None:
        """Ids of which the token that is now planned must be one; None when it may be any. Nothing may be in flight."""
        if self._place is None and self._is_spent:
            self._place = self._num_spelled()
        return None if self._place is None else self._marks.ending[self._place]

    def awaits_commit(self, num_in_flight: int) -> bool:
        """Whether what comes behind tokens in flight depends on them: the budget may be spent, or the ending under way."""
        if not num_in_flight:
            return False
        if self._place is not None:
            return True
        # Where reasoning has not begun, one of those in flight would be the mark that begins it.
        most = num_in_flight if self._is_reasoning else num_in_flight - 1
        return self._count + most >= self._budget

    def accept(self, token_id: int) -> None:
        """Follow one committed token."""
        self._follow(token_id)
        if self._place is not None:
            self._place += 1
            if self._place == len(self._marks.ending):
                self._place = None

    def end(self) -> None:
        """End the reasoning with the next token that is planned, and whatever may begin later in the answer."""
        self._budget = 0

    def _follow(self, token_id: int) -> None:
        marks, tail = self._marks, self._tail
        tail.append(token_id)
        del tail[: -self._kept]
        self._num_seen += 1
        if self._is_reasoning:
            self._count += 1
            if mark := self._at_end(marks.closes):
                self._is_reasoning = False
                self._count -= len(mark)
        elif mark := self._at_end(marks.opens):
            self._is_reasoning = self._may_begin_before(self._num_seen - len(mark))
        if self._at_end(marks.answers) or not (self._is_reasoning or self._may_begin_before(self._num_seen - self._longest)):
            self.is_over = True

    def _may_begin_before(self, place: int) -> bool:
        """Whether a mark that begins `place` tokens into the answer can begin reasoning."""
        return self._marks.anywhere or place <= _LEADING_TOKENS

    @property
    def _is_spent(self) -> bool:
        return self._is_reasoning and not self.is_over and self._count >= self._budget

    def _num_spelled(self) -> int:
        """How many tokens of the ending the reasoning ends with, as the first of a mark of several tokens."""
        tail, ending = self._tail, self._marks.ending
        for length in range(min(len(ending) - 1, self._count, len(tail)), 0, -1):
            if all(token_id in ids for token_id, ids in zip(tail[-length:], ending, strict=False)):
                return length
        return 0

    def _at_end(self, spellings: list[list[int]]) -> list[int] | None:
        """The mark that the tokens so far end with."""
        last = self._tail[-1]
        return next((ids for ids in spellings if ids[-1] == last and self._tail[-len(ids) :] == ids), None)


__all__ = ["ReasoningLimit"]
