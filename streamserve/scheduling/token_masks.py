"""Masks of the tokens that may come next, as plans carry them: little-endian words, bit t set for token t."""

from __future__ import annotations

from collections.abc import Iterable


def bits(token_ids: Iterable[int]) -> int:
    """The integer with these bits set."""
    ids = list(token_ids)
    mask = bytearray(max(ids, default=0) // 8 + 1)
    for token_id in ids:
        mask[token_id // 8] |= 1 << token_id % 8
    return int.from_bytes(mask, "little")


def only(token_ids: Iterable[int], mask: bytes | None = None) -> bytes:
    """A mask of these tokens, of those among them that `mask` allows where there is one; whole words of 32 bits."""
    allowed = bits(token_ids)
    if mask is not None:
        allowed &= int.from_bytes(mask, "little")
    return allowed.to_bytes(4 * (allowed.bit_length() // 32 + 1), "little")


__all__ = ["bits", "only"]
