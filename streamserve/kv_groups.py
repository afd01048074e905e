"""How many KV blocks sequences need where layers keep different spans of them: arithmetic on plain numbers.

A worker sizes its cache by it and a scheduler admits by it, so that what was sized for is what is admitted. Knows no layers,
no bytes and no sequences.
"""

from __future__ import annotations

from bisect import bisect_right

import msgspec

_ROUNDING_BLOCKS = 2
"""A window begins and ends inside of blocks, and a block is given back only when another has been filled."""


class KvGroups(msgspec.Struct, frozen=True, array_like=True):
    """The layer groups of a model. Layers of one group share a block table; a block belongs to one group at a time.

    block_size  tokens of a block
    windows     per group: how many tokens its layers see, the newest included; None sees all, and keeps all
    """

    block_size: int
    windows: tuple[int | None, ...] = (None,)

    def blocks_for(self, num_tokens: int, step_tokens: int) -> int:
        """The most blocks that a sequence of `num_tokens` tokens holds at a time, when a step computes up to `step_tokens`."""
        every = -(-num_tokens // self.block_size)
        return sum(every if window is None else min(every, self._span(window + step_tokens)) for window in self.windows)

    def longest(self, num_blocks: int, step_tokens: int, limit: int) -> int:
        """Tokens of the longest sequence, up to `limit`, that never holds more than `num_blocks` blocks."""
        return bisect_right(range(limit + 1), num_blocks, key=lambda tokens: self.blocks_for(tokens, step_tokens)) - 1

    def _span(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size) + _ROUNDING_BLOCKS


__all__ = ["KvGroups"]
