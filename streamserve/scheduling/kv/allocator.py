"""The KV memory of sequences: blocks and the prefix cache behind four verbs.

Runs on the engine's event loop. Knows no rows, no queue and no policy: it says whether memory can be had, never who must
yield it.

A sequence has a block table for each layer group. Where layers see all tokens it gets blocks for its whole prompt when it is
admitted; where they see a window, for as much as a step computes, and what has left the window goes back while it runs.
"""

from __future__ import annotations

import sys

from streamserve.kv_groups import KvGroups
from streamserve.scheduling.kv.blocks import BlockPool, BlockTable
from streamserve.scheduling.kv.prefix_cache import Digest, PrefixCache, blake2b_128
from streamserve.scheduling.plan import RowGrowth
from streamserve.scheduling.sequence import Sequence


class KvAllocator:
    """Gives blocks to sequences and takes them back."""

    def __init__(
        self,
        num_blocks: int,
        groups: KvGroups,
        step_tokens: int,
        *,
        enable_prefix_caching: bool,
        digest: Digest = blake2b_128,
    ) -> None:
        """step_tokens  the most tokens that a step computes"""
        self.groups = groups
        self._block_size = groups.block_size
        self.cache = PrefixCache(groups, digest)
        self.pool = BlockPool(num_blocks, self.cache.forget)
        self._step_tokens = step_tokens
        self._num_windowed = sum(window is not None for window in groups.windows)
        self._caches_prefixes = enable_prefix_caching

    @property
    def num_free(self) -> int:
        return self.pool.num_free

    def blocks_for(self, num_tokens: int) -> int:
        """The most blocks that a sequence of `num_tokens` tokens holds at a time."""
        return self.groups.blocks_for(num_tokens, self._step_tokens)

    def admit(self, sequence: Sequence, reserve: int) -> bool:
        """Give a sequence the blocks that it begins with, shared ones where the prefix cache has them.

        `reserve` blocks must stay free. All or nothing. On success `num_computed` is what the cache spared it.
        """
        tables = self._cached_blocks(sequence)
        hits = [block_id for table in tables for block_id in table.block_ids]
        num_cached = tables[0].end * self._block_size
        lacking = self._lacking(tables, len(sequence.token_ids), num_cached + self._step_tokens)
        num_idle_hits = sum(map(self.pool.is_idle, hits))
        if sum(lacking) + num_idle_hits + reserve > self.pool.num_free:
            return False
        # Hits are claimed before anything is evicted, or the fresh blocks could be the very ones that hit.
        self.pool.share(hits)
        for table, count in zip(tables, lacking, strict=True):
            fresh = self.pool.take(count)
            assert fresh is not None, "blocks were counted and are not there"
            table.block_ids += fresh
            table.end += count
        sequence.tables = tables
        sequence.reach = min(table.end for table in tables) * self._block_size
        sequence.num_computed = num_cached
        does_nothing = not self._caches_prefixes and not self._num_windowed
        sequence.next_full = sys.maxsize if does_nothing else num_cached + self._block_size
        return True

    def extend(self, sequence: Sequence, num_tokens: int) -> list[RowGrowth] | None:
        """Blocks for the first `num_tokens` tokens of a resident sequence, where it lacks some; None when they can't be had."""
        if num_tokens <= sequence.reach:
            return []
        first, end = sequence.reach // self._block_size, -(-num_tokens // self._block_size)
        growths: list[RowGrowth] = []
        for group, table in enumerate(sequence.tables):
            # A table that ends further on has blocks for the whole prompt, of which `num_tokens` is a part.
            if table.end == first:
                block_ids = self.pool.take(end - first)
                if block_ids is None:
                    self._take_back(sequence, growths)
                    return None
                table.block_ids += block_ids
                table.end = end
                growths.append(RowGrowth(sequence.row, group, first, block_ids))
        sequence.reach = end * self._block_size
        return growths

    def reachable(self, sequence: Sequence) -> int:
        """How many of its first tokens a resident sequence could have blocks for now, while it computes its prompt."""
        more = self.pool.num_free // self._num_windowed if self._num_windowed else 0
        return sequence.reach + more * self._block_size

    def commit(self, sequence: Sequence, num_tokens: int) -> None:
        """The first `num_tokens` tokens of a resident sequence are in the cache for good.

        Blocks filled since may be shared, and those that no later token sees go back.
        """
        if num_tokens < sequence.next_full:
            return
        first, end = sequence.next_full // self._block_size - 1, num_tokens // self._block_size
        if self._caches_prefixes:
            self.cache.extend(sequence.prefix, sequence.token_ids, end, sequence.spec.cache_salt)
            for group, table in enumerate(sequence.tables):
                for index in range(first, end):
                    block_id = table.block_ids[index - table.end]
                    if self.cache.insert(group, sequence.prefix[index], block_id):
                        self.pool.keep(block_id)
        if self._num_windowed:
            self._give_back(sequence, num_tokens)
        sequence.next_full = (end + 1) * self._block_size

    def uncache(self, sequence: Sequence) -> None:
        """Take what a sequence has computed, or shared, out of the prefix cache: whoever shared NaN would fail, too.

        Where a token's keys are NaN, so may be those of the tokens before it that were computed in the same step.
        """
        for group in range(len(self.groups.windows)):
            for block in sequence.prefix:
                block_id = self.cache.holder(group, block)
                if block_id is not None:
                    self.cache.forget(block_id)
                    self.pool.discard(block_id)

    def release(self, sequence: Sequence) -> None:
        """Take everything back; what is in the prefix cache stays there until its block is needed."""
        # A step in flight may still write these blocks: safe, because the next owner's writes are queued behind it on the
        # same stream.
        for table in sequence.tables:
            self.pool.release(table.block_ids)
        sequence.tables = []
        sequence.reach = 0
        sequence.num_computed = 0

    def _take_back(self, sequence: Sequence, growths: list[RowGrowth]) -> None:
        for growth in growths:
            table = sequence.tables[growth.group]
            self.pool.release(growth.block_ids)
            del table.block_ids[-len(growth.block_ids) :]
            table.end = growth.first

    def _lacking(self, tables: list[BlockTable], num_tokens: int, num_soon: int) -> list[int]:
        """How many blocks each table lacks for `num_tokens` tokens; with a window, for the first `num_soon` of them."""
        size = self._block_size
        every, soon = -(-num_tokens // size), -(-min(num_tokens, num_soon) // size)
        ends = (every if window is None else soon for window in self.groups.windows)
        return [end - table.end for end, table in zip(ends, tables, strict=True)]

    def _give_back(self, sequence: Sequence, num_tokens: int) -> None:
        """Let go of blocks that no token from position `num_tokens` on sees."""
        # A step in flight computes such later tokens only. It may load these blocks with others of a tile, and ignores them.
        for window, table in zip(self.groups.windows, sequence.tables, strict=True):
            if window is not None:
                count = (num_tokens - window + 1) // self._block_size - table.first
                if count > 0:
                    self.pool.release(table.block_ids[:count])
                    del table.block_ids[:count]

    def _cached_blocks(self, sequence: Sequence) -> list[BlockTable]:
        """A table for each group, with what the prefix cache has."""
        # The last token is always computed, since its logits are needed.
        if not self._caches_prefixes or sequence.needs_whole_prompt:
            return [BlockTable(0, []) for _ in self.groups.windows]
        usable = (len(sequence.token_ids) - 1) // self._block_size
        self.cache.extend(sequence.prefix, sequence.token_ids, usable, sequence.spec.cache_salt)
        return self.cache.match(sequence.prefix[:usable])


__all__ = ["KvAllocator"]
