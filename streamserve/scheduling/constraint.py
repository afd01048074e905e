"""What scheduling needs of a grammar: the tokens allowed next, and a way to advance it by a token.

Used on the engine's event loop. Knows nothing of grammars or their library: those live in the text room and are injected.
"""

from __future__ import annotations

from typing import Protocol


class Constraint(Protocol):
    """The language that one sequence's output must belong to, and how far into it the output is."""

    @property
    def spent_s(self) -> float:
        """Processor seconds that its masks have taken so far."""
        ...

    def bitmask(self) -> bytes:
        """The tokens allowed next, as little-endian int32 words: bit t is set when token t may be sampled."""
        ...

    def accept(self, token_id: int) -> None:
        """Advance by one token; raises `ValueError` when the language does not allow it here."""
        ...

    @property
    def is_complete(self) -> bool:
        """True once nothing may follow: the sequence ends with reason "stop"."""
        ...


__all__ = ["Constraint"]
