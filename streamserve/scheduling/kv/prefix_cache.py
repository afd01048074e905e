"""Which block holds the keys and values of which tokens, so that a prompt seen before is not computed again.

Runs on the engine's event loop. Knows no sequences and no reference counts. A block's key is a hash chained over all blocks
before it and rooted in the request's salt (as in automatic prefix caching, Kwon et al., 2023); a hit is believed only when
the tokens agree too. Each layer group has blocks of its own: a prefix is a hit as far as every group has what it still needs.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b

import msgspec

from streamserve.kv_groups import KvGroups
from streamserve.scheduling.kv.blocks import BlockTable

Digest = Callable[[bytes], bytes]


def blake2b_128(data: bytes) -> bytes:
    """The digest in use: cryptographic, so that no prompt can be made to collide with another tenant's."""
    return blake2b(data, digest_size=16).digest()


class PrefixBlock(msgspec.Struct, frozen=True, gc=False):
    """What a full block holds: its own tokens (packed), after all those that `key` is chained over, under one salt."""

    key: bytes
    tokens: bytes
    salt: str


class PrefixCache:
    """A map from prefixes, block by block, to the blocks that hold them in each layer group."""

    def __init__(self, groups: KvGroups, digest: Digest = blake2b_128) -> None:
        self._groups = groups
        self._digest = digest
        self._contents: dict[int, tuple[int, PrefixBlock]] = {}
        self._block_ids: list[dict[bytes, int]] = [{} for _ in groups.windows]

    def extend(self, prefix: list[PrefixBlock], token_ids: list[int], num_blocks: int, salt: str) -> None:
        """Describe the first `num_blocks` blocks of `token_ids` in `prefix`, hashing only those it lacks."""
        size = self._groups.block_size
        for index in range(len(prefix), num_blocks):
            parent = prefix[-1].key if prefix else self._digest(salt.encode())
            tokens = array("i", token_ids[index * size : (index + 1) * size]).tobytes()
            prefix.append(PrefixBlock(self._digest(parent + tokens), tokens, salt))

    def match(self, prefix: Sequence[PrefixBlock]) -> list[BlockTable]:
        """What each group needs of the longest cached start of `prefix`: all of it, or what a window on the next token reaches.

        All tables end at the same index, that of the first block to compute.
        """
        starts = [self._cached_start(group, prefix) if window is None else None for group, window in self._each_group()]
        end = min((len(start) for start in starts if start is not None), default=len(prefix))
        before = -1
        while end != before:
            before = end
            for group, window in self._each_group():
                if window is not None:
                    end = self._end_before_gap(group, prefix, self._first_seen(window, end), end)
        return [
            BlockTable(end, start[:end]) if start is not None else self._window(group, prefix, window, end)
            for (group, window), start in zip(self._each_group(), starts, strict=True)
        ]

    def insert(self, group: int, block: PrefixBlock, block_id: int) -> bool:
        """Remember that `block_id` holds `block` of a group, its writes completed; False when another block already does."""
        block_ids = self._block_ids[group]
        if block.key in block_ids:
            return False
        block_ids[block.key] = block_id
        self._contents[block_id] = group, block
        return True

    def holder(self, group: int, block: PrefixBlock) -> int | None:
        """The block that holds `block` of a group, if there is one."""
        return self._block_ids[group].get(block.key)

    def forget(self, block_id: int) -> None:
        """The block is about to be overwritten, or must not be shared."""
        group, block = self._contents.pop(block_id)
        del self._block_ids[group][block.key]

    def contents(self, block_id: int) -> tuple[int, PrefixBlock] | None:
        """The layer group whose keys and values the cache believes a block to hold, and the tokens they are of."""
        return self._contents.get(block_id)

    def check(self, kept: frozenset[int]) -> None:
        """Assert that the maps agree and that exactly the `kept` blocks are in them."""
        of_groups = {(group, key): block_id for group, ids in enumerate(self._block_ids) for key, block_id in ids.items()}
        assert {(group, block.key): block_id for block_id, (group, block) in self._contents.items()} == of_groups, (
            "the maps disagree"
        )
        assert self._contents.keys() == kept, "the pool keeps other blocks than the prefix cache knows"

    def _each_group(self) -> Iterable[tuple[int, int | None]]:
        return enumerate(self._groups.windows)

    def _cached_start(self, group: int, prefix: Sequence[PrefixBlock]) -> list[int]:
        """The blocks of this group that hold the longest cached start of `prefix`, in order."""
        found: list[int] = []
        block_ids, contents = self._block_ids[group], self._contents
        for block in prefix:
            block_id = block_ids.get(block.key)
            if block_id is None or contents[block_id][1] != block:
                break
            found.append(block_id)
        return found

    def _end_before_gap(self, group: int, prefix: Sequence[PrefixBlock], first: int, end: int) -> int:
        """`end` when this group holds the blocks from index `first` to there, else the index of the last that it lacks.

        A hit that ends between the gap and `end` would reach over the gap too.
        """
        block_ids, contents = self._block_ids[group], self._contents
        for index in range(end - 1, first - 1, -1):
            block_id = block_ids.get(prefix[index].key)
            if block_id is None or contents[block_id][1] != prefix[index]:
                return index
        return end

    def _window(self, group: int, prefix: Sequence[PrefixBlock], window: int | None, end: int) -> BlockTable:
        first = self._first_seen(window, end)
        return BlockTable(end, [self._block_ids[group][block.key] for block in prefix[first:end]])

    def _first_seen(self, window: int | None, end: int) -> int:
        """Index of the first block that the first token after `end` blocks sees."""
        size = self._groups.block_size
        return 0 if window is None else max(0, end * size - window + 1) // size


__all__ = ["Digest", "PrefixBlock", "PrefixCache", "blake2b_128"]
