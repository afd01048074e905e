"""The tokens that a constraint allows next."""

from __future__ import annotations

from streamserve.text.grammars.grammar import GrammarConstraint


def allowed(constraint: GrammarConstraint) -> list[int]:
    mask = constraint.bitmask()
    return [token_id for token_id in range(8 * len(mask)) if mask[token_id // 8] >> token_id % 8 & 1]
