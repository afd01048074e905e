"""What a vocabulary's entries mean in bytes.

A tokenizer's decoder is a chain of string rewrites. For the two families that generate text, that chain is a map from one
token to its bytes, so decoding is concatenation: byte-level BPE (GPT-2's alphabet of printable characters, one per byte)
and sentencepiece (`▁` for a space, `<0xE4>` for a byte, and perhaps one space dropped from the very start). Any other chain
is opaque: only whole sequences can be decoded. Pure functions, no tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_WORD_START = "▁"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class TokenCodec:
    """How one token becomes bytes.

    to_bytes          the bytes of a vocabulary entry
    stripped_spaces   spaces dropped from the start of a whole text (sentencepiece's dummy prefix)
    """

    to_bytes: Callable[[str], bytes]
    stripped_spaces: int = 0


def codec_for(decoder: dict[str, Any] | None) -> TokenCodec | None:
    """The codec equal to a `tokenizer.json` decoder section; None when it is opaque."""
    if decoder is None:
        return None
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return TokenCodec(byte_level_bytes)
    if kinds[:3] == ["Replace", "ByteFallback", "Fuse"] and _replaces_word_start(steps[0]):
        if len(steps) == 3:
            return TokenCodec(sentencepiece_bytes)
        if kinds[3:] == ["Strip"] and steps[3]["content"] == " " and steps[3]["stop"] == 0:
            return TokenCodec(sentencepiece_bytes, stripped_spaces=steps[3]["start"])
    return None


def byte_level_bytes(token: str) -> bytes:
    """Bytes of a byte-level BPE entry; one with characters outside the alphabet (an added token) stands for itself."""
    try:
        return bytes(map(_BYTE_OF.__getitem__, token))
    except KeyError:
        return token.encode("utf-8")


def sentencepiece_bytes(token: str) -> bytes:
    """Bytes of a sentencepiece entry."""
    byte = _BYTE_TOKEN.fullmatch(token)
    if byte is not None:
        return bytes([int(byte[1], 16)])
    return token.replace(_WORD_START, " ").encode("utf-8")


def _replaces_word_start(step: dict[str, Any]) -> bool:
    return (step["pattern"], step["content"]) == ({"String": _WORD_START}, " ")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet (Radford et al., 2019): printable Latin-1 bytes are themselves, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
