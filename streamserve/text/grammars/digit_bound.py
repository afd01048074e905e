"""Ends a JSON number that a model would write digits of without end, as white space is ended by its pattern.

Grammars of JSON allow any number of digits in a number and in some formats of strings, and a small model that likes a digit
repeats it until its budget is spent. A run may have `MAX_DIGITS`; then the language's other continuations are all that is
allowed. Runs between steps on the engine's event loop; constant work per token.
"""

from __future__ import annotations

from collections.abc import Sequence

MAX_DIGITS = 64
"""More than any 128-bit integer or shortest float takes."""

_DIGITS = b"0123456789"


class DigitTable:
    """The digits in each token of a vocabulary.

    tokens  the bytes of every id
    """

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self.trailing = [len(token) - len(token.rstrip(_DIGITS)) for token in tokens]
        self.is_all = [bool(token) and count == len(token) for token, count in zip(tokens, self.trailing, strict=True)]
        self.others = _mask(len(tokens), [at for at, token in enumerate(tokens) if not token[:1].isdigit()])
        self.quotes = _mask(len(tokens), [at for at, token in enumerate(tokens) if token == b'"'])


class DigitBound:
    """The digits that one sequence has written last."""

    def __init__(self, table: DigitTable) -> None:
        self._table = table
        self._run = 0

    def accept(self, token_id: int) -> None:
        """Count the digits of one more token."""
        table = self._table
        self._run = table.trailing[token_id] + (self._run if table.is_all[token_id] else 0)

    def bounded(self, mask: bytes) -> bytes:
        """`mask` without digits when the run is long; unchanged where only digits may follow, or in a string that may end."""
        if self._run < MAX_DIGITS:
            return mask
        allowed = int.from_bytes(mask, "little")
        others = allowed & self._table.others
        return mask if not others or allowed & self._table.quotes else others.to_bytes(len(mask), "little")


def _mask(size: int, token_ids: Sequence[int]) -> int:
    bits = bytearray(-(-size // 8))
    for token_id in token_ids:
        bits[token_id // 8] |= 1 << token_id % 8
    return int.from_bytes(bits, "little")
