"""Blocks of the KV cache: who holds how many references to which, and in which order free ones are reused.

Runs on the engine's event loop. Knows no torch, no sequences, no tokens: a block is a number, a reference count and a mark
that says whether its contents are worth keeping without references. Any layer group may hold any block.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence


class BlockTable:
    """The blocks that a sequence holds in one layer group, in order.

    end        index after the last one
    block_ids  those up to there; what came before has left the group's window and is no longer held
    """

    __slots__ = ("block_ids", "end")

    def __init__(self, end: int, block_ids: list[int]) -> None:
        self.end = end
        self.block_ids = block_ids

    @property
    def first(self) -> int:
        """Index of the first block that is held."""
        return self.end - len(self.block_ids)


class BlockPool:
    """All blocks of one engine, numbered from 0.

    A block is held (referenced), idle (free, its contents kept for the prefix cache) or empty (free, contents worthless). Empty
    blocks are handed out first, then idle ones, least recently used first.
    """

    def __init__(self, num_blocks: int, on_evict: Callable[[int], None]) -> None:
        """`on_evict(block_id)` is called when an idle block is handed out and its contents are lost."""
        self.num_blocks = num_blocks
        self._on_evict = on_evict
        self._references = [0] * num_blocks
        self._empty = list(reversed(range(num_blocks)))
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._kept: set[int] = set()

    @property
    def num_free(self) -> int:
        """Blocks that `take` could hand out now."""
        return len(self._empty) + len(self._idle)

    def take(self, count: int) -> list[int] | None:
        """Claim `count` free blocks, evicting least recently used idle ones; None when that many can't be had.

        All or nothing: on None nothing was evicted. O(count).
        """
        if count > self.num_free:
            return None
        return [self._take_one() for _ in range(count)]

    def share(self, block_ids: Iterable[int]) -> None:
        """Add a reference to each block, be it held or idle."""
        for block_id in block_ids:
            if self._references[block_id] == 0:
                del self._idle[block_id]
            self._references[block_id] += 1

    def release(self, block_ids: Sequence[int]) -> None:
        """Drop a reference to each of a sequence's blocks, last one first.

        In that order the tail of a prefix is evicted before its head: a head is of use without its tail, never the reverse.
        """
        for block_id in reversed(block_ids):
            self._references[block_id] -= 1
            if self._references[block_id] == 0:
                self._set_free(block_id)

    def keep(self, block_id: int) -> None:
        """Mark a held block's contents as worth keeping."""
        self._kept.add(block_id)

    def discard(self, block_id: int) -> None:
        """A block's contents are not worth keeping any longer, whether it is held or not."""
        self._kept.discard(block_id)
        if block_id in self._idle:
            del self._idle[block_id]
            self._empty.append(block_id)

    def is_idle(self, block_id: int) -> bool:
        return block_id in self._idle

    def check(self, expected: dict[int, int]) -> None:
        """Assert that reference counts are `expected` (0 where absent) and that each block is held, idle or empty."""
        for block_id, count in enumerate(self._references):
            assert count == expected.get(block_id, 0), (
                f"block {block_id}: {count} references, {expected.get(block_id, 0)} holders"
            )
        empty = set(self._empty)
        assert len(empty) == len(self._empty), "a block is empty twice"
        assert not empty & self._idle.keys(), "a block is both empty and idle"
        assert not empty & self._kept, "an empty block is marked as kept"
        assert self._idle.keys() <= self._kept, "an idle block is not marked as kept"
        free = empty | self._idle.keys()
        assert free == {b for b, count in enumerate(self._references) if count == 0}, (
            "free blocks are not the unreferenced ones"
        )

    @property
    def kept(self) -> frozenset[int]:
        """Blocks marked with `keep` and not evicted since."""
        return frozenset(self._kept)

    def _take_one(self) -> int:
        if self._empty:
            block_id = self._empty.pop()
        else:
            block_id, _ = self._idle.popitem(last=False)
            self._kept.discard(block_id)
            self._on_evict(block_id)
        self._references[block_id] = 1
        return block_id

    def _set_free(self, block_id: int) -> None:
        if block_id in self._kept:
            self._idle[block_id] = None
        else:
            self._empty.append(block_id)


__all__ = ["BlockPool", "BlockTable"]
