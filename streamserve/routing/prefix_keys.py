"""Keys of a prompt's prefixes: two prompts share a key exactly as far as they share their first tokens and their salt.

Pure functions; they take milliseconds for a prompt of a million tokens. Routers compare keys in place of prompts.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from hashlib import blake2b

import msgspec

KEYS_PER_STRIDE = 256
"""Keys after which the distance between two of them doubles, so that the longest prompts have some thousands."""


class PrefixKeys(msgspec.Struct, frozen=True):
    """Keys of a prompt's prefixes, from the shortest to the longest.

    num_tokens  of the whole prompt
    keys        64 bits each, never 0; a key stands for all tokens before its end
    ends        how many tokens each key stands for
    """

    num_tokens: int
    keys: list[int] = []
    ends: list[int] = []


def prefix_keys(token_ids: Sequence[int], *, block_size: int = 16, salt: str = "") -> PrefixKeys:
    """The keys of a prompt.

    token_ids   int32 each; where there is no tokenizer, the bytes of a text
    block_size  tokens of a KV block, all of which or none are reused: no key ends inside one
    salt        of the prefix cache: prompts with different salts share nothing
    """
    tokens = memoryview(array("i", token_ids))
    digest = blake2b(blake2b(salt.encode(), digest_size=16).digest(), digest_size=8)
    keys: list[int] = []
    ends = list(_ends(len(tokens), block_size))
    start = 0
    for end in ends:
        digest.update(tokens[start:end])
        keys.append(int.from_bytes(digest.copy().digest(), "little") or 1)
        start = end
    return PrefixKeys(len(tokens), keys, ends)


def _ends(num_tokens: int, block_size: int) -> Iterator[int]:
    """Where prefixes end: after each block at first, then after every second, every fourth and so on."""
    end, stride = block_size, block_size
    while end <= num_tokens:
        for _ in range(KEYS_PER_STRIDE):
            if end > num_tokens:
                return
            yield end
            end += stride
        stride *= 2
