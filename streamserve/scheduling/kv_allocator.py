"""The KV memory of sequences: blocks and the prefix cache behind four verbs.

Runs on the engine's event loop. Knows no rows, no queue and no policy: it says whether memory can be had, never who must
yield it.
"""

from __future__ import annotations

import sys

from streamserve.scheduling.blocks import BlockPool
from streamserve.scheduling.prefix_cache import Digest, PrefixCache, blake2b_128
from streamserve.scheduling.sequence import Sequence


class KvAllocator:
    """Gives blocks to sequences and takes them back."""

    def __init__(self, num_blocks: int, block_size: int, *, enable_prefix_caching: bool, digest: Digest = blake2b_128) -> None:
        self.block_size = block_size
        self.cache = PrefixCache(block_size, digest)
        self.pool = BlockPool(num_blocks, self.cache.forget)
        self._caches_prefixes = enable_prefix_caching

    @property
    def num_free(self) -> int:
        return self.pool.num_free

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def admit(self, sequence: Sequence, reserve: int) -> bool:
        """Give a sequence blocks for all its tokens, shared ones where the prefix cache has them.

        `reserve` blocks must stay free. All or nothing. On success `num_computed` is what the cache spared it.
        """
        hits = self._cached_blocks(sequence)
        num_fresh = self.blocks_for(len(sequence.token_ids)) - len(hits)
        num_idle_hits = sum(map(self.pool.is_idle, hits))
        if num_fresh + num_idle_hits + reserve > self.pool.num_free:
            return False
        # Hits are claimed before anything is evicted, or the fresh blocks could be the very ones that hit.
        self.pool.share(hits)
        fresh = self.pool.take(num_fresh)
        assert fresh is not None
        sequence.block_ids = hits + fresh
        sequence.num_computed = len(hits) * self.block_size
        sequence.next_full = sequence.num_computed + self.block_size if self._caches_prefixes else sys.maxsize
        return True

    def grow(self, sequence: Sequence) -> int | None:
        """One more block for a running sequence; None when none is free."""
        taken = self.pool.take(1)
        if taken is None:
            return None
        sequence.block_ids += taken
        return taken[0]

    def commit(self, sequence: Sequence, num_tokens: int) -> None:
        """The first `num_tokens` tokens of a resident sequence are in the cache for good: blocks filled since may be shared."""
        if num_tokens < sequence.next_full:
            return
        first, end = sequence.next_full // self.block_size - 1, num_tokens // self.block_size
        self.cache.extend(sequence.prefix, sequence.token_ids, end, sequence.spec.cache_salt)
        for index in range(first, end):
            if self.cache.insert(sequence.prefix[index], sequence.block_ids[index]):
                self.pool.keep(sequence.block_ids[index])
        sequence.next_full = (end + 1) * self.block_size

    def release(self, sequence: Sequence) -> None:
        """Take everything back; what is in the prefix cache stays there until its block is needed."""
        # A step in flight may still write these blocks: safe, because the next owner's writes are queued behind it on the
        # same stream.
        self.pool.release(sequence.block_ids)
        sequence.block_ids = []
        sequence.num_computed = 0

    def _cached_blocks(self, sequence: Sequence) -> list[int]:
        # The last token is always computed, since its logits are needed; logprobs of the prompt need the logits of all of it.
        if not self._caches_prefixes or sequence.wants_prompt_logprobs:
            return []
        usable = (len(sequence.token_ids) - 1) // self.block_size
        self.cache.extend(sequence.prefix, sequence.token_ids, usable, sequence.spec.cache_salt)
        return self.cache.match(sequence.prefix[:usable])


__all__ = ["KvAllocator"]
