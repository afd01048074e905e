"""A replica's KV cache as the simulation sees it: tokens held by sequences, and prefixes kept for later prompts.

No clock and no sequences. A prefix is a key of `streamserve.routing.prefix_keys`, which stands for the tokens since the key
before it; prefixes that no sequence holds are evicted, the one used longest ago first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from streamserve.routing.prefix_keys import PrefixKeys


class KvCache:
    """Counts tokens.

    capacity  tokens that there is room for
    num_held  tokens that sequences hold, each prefix counted once
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.num_held = 0
        self._num_kept = 0
        self._holders: dict[int, int] = {}
        self._tokens: dict[int, int] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        """Tokens that can be taken, those of prefixes that no sequence holds included."""
        return self.capacity - self.num_held

    def cached(self, prefix: PrefixKeys) -> int:
        """How many of the prefix's keys are here, from the first on."""
        return next((place for place, key in enumerate(prefix.keys) if key not in self._tokens), len(prefix.keys))

    def held(self, prefix: PrefixKeys, num_keys: int) -> int:
        """Tokens of the first keys that sequences hold: another one that holds them takes no room for those."""
        return sum(tokens for key, tokens in _first(prefix, num_keys) if key in self._holders)

    def hold(self, prefix: PrefixKeys, num_keys: int) -> None:
        """Keep the first keys of a prefix from being evicted until they are released; those that are missing are stored."""
        for key, tokens in _first(prefix, num_keys):
            if key not in self._tokens:
                self._tokens[key] = tokens
                self.num_held += tokens
            elif not self._holders.get(key):
                del self._kept[key]
                self._num_kept -= tokens
                self.num_held += tokens
            self._holders[key] = self._holders.get(key, 0) + 1
        self._evict()

    def release(self, prefix: PrefixKeys, num_keys: int) -> None:
        """Let the first keys of a prefix be evicted, the longest prefix first."""
        for key, tokens in reversed(list(_first(prefix, num_keys))):
            self._holders[key] -= 1
            if not self._holders[key]:
                del self._holders[key]
                self._kept[key] = None
                self._num_kept += tokens
                self.num_held -= tokens
        self._evict()

    def take(self, tokens: int) -> None:
        """Hold tokens that are part of no prefix; a negative number gives them back."""
        self.num_held += tokens
        self._evict()

    def _evict(self) -> None:
        while self._num_kept and self.num_held + self._num_kept > self.capacity:
            key, _ = self._kept.popitem(last=False)
            self._num_kept -= self._tokens.pop(key)


def _first(prefix: PrefixKeys, num_keys: int) -> Iterator[tuple[int, int]]:
    """The first keys, each with the tokens that it adds to the one before."""
    before = 0
    for key, end in zip(prefix.keys[:num_keys], prefix.ends[:num_keys], strict=True):
        yield key, end - before
        before = end
