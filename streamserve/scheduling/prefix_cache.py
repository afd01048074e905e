"""Which block holds the keys and values of which tokens, so that a prompt seen before is not computed again.

Runs on the engine's event loop. Knows no sequences and no reference counts. A block's key is a hash chained over all blocks
before it and rooted in the request's salt (as in automatic prefix caching, Kwon et al., 2023); a hit is believed only when
the tokens agree too.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from hashlib import blake2b

import msgspec

Digest = Callable[[bytes], bytes]


def blake2b_128(data: bytes) -> bytes:
    """The digest in use: cryptographic, so that nobody can write a prompt that collides with another tenant's."""
    return blake2b(data, digest_size=16).digest()


class PrefixBlock(msgspec.Struct, frozen=True, gc=False):
    """What a full block holds: its own tokens (packed), after all those that `key` is chained over, under one salt."""

    key: bytes
    tokens: bytes
    salt: str


class PrefixCache:
    """A map from prefixes, block by block, to the blocks that hold them."""

    def __init__(self, block_size: int, digest: Digest = blake2b_128) -> None:
        self._block_size = block_size
        self._digest = digest
        self._contents: dict[int, PrefixBlock] = {}
        self._block_ids: dict[bytes, int] = {}

    def extend(self, prefix: list[PrefixBlock], token_ids: list[int], num_blocks: int, salt: str) -> None:
        """Describe the first `num_blocks` blocks of `token_ids` in `prefix`, hashing only those it lacks."""
        size = self._block_size
        for index in range(len(prefix), num_blocks):
            parent = prefix[-1].key if prefix else self._digest(salt.encode())
            tokens = array("i", token_ids[index * size : (index + 1) * size]).tobytes()
            prefix.append(PrefixBlock(self._digest(parent + tokens), tokens, salt))

    def match(self, prefix: Iterable[PrefixBlock]) -> list[int]:
        """The blocks that hold the longest cached start of `prefix`, in order."""
        found: list[int] = []
        for block in prefix:
            block_id = self._block_ids.get(block.key)
            if block_id is None or self._contents[block_id] != block:
                break
            found.append(block_id)
        return found

    def insert(self, block: PrefixBlock, block_id: int) -> bool:
        """Remember that `block_id` holds `block`, whose writes have completed; False when another block already does."""
        if block.key in self._block_ids:
            return False
        self._block_ids[block.key] = block_id
        self._contents[block_id] = block
        return True

    def forget(self, block_id: int) -> None:
        """The block is about to be overwritten."""
        del self._block_ids[self._contents.pop(block_id).key]

    def contents(self, block_id: int) -> PrefixBlock | None:
        """What the cache believes a block to hold."""
        return self._contents.get(block_id)

    def check(self, kept: frozenset[int]) -> None:
        """Assert that both maps agree and that exactly the `kept` blocks are in them."""
        assert {block.key: block_id for block_id, block in self._contents.items()} == self._block_ids, "the maps disagree"
        assert self._contents.keys() == kept, "the pool keeps other blocks than the prefix cache knows"


__all__ = ["Digest", "PrefixBlock", "PrefixCache", "blake2b_128"]
