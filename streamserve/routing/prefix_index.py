"""Which prefixes were sent to which replica lately: an approximate picture of the replicas' prefix caches.

A table of fixed size for each replica. A key has one slot, and the last key that came to a slot is in it: older prefixes are
forgotten without a list of their ages. There are no locks: a slot is one machine word, and what is read is compared with the
whole key. So the tables may be in memory that several processes share, and each then knows what all of them have routed.
"""

from __future__ import annotations

from array import array

from streamserve.routing.prefix_keys import PrefixKeys

NUM_SLOTS = 1 << 16
"""Keys that a replica's table holds: as many blocks as a large GPU has."""

WORD_BYTES = 8


def index_bytes(num_replicas: int, num_slots: int = NUM_SLOTS) -> int:
    """Bytes that the tables take."""
    return num_replicas * num_slots * WORD_BYTES


class PrefixIndex:
    """The tables of some replicas, which are numbered from 0.

    num_slots  of each table; a power of two
    words      `index_bytes`, zeroed and cast to "Q", that routers in several processes share; by default memory of its own
    """

    def __init__(self, num_replicas: int, *, num_slots: int = NUM_SLOTS, words: memoryview[int] | None = None) -> None:
        if num_slots & (num_slots - 1):
            raise ValueError(f"num_slots {num_slots}: must be a power of two")
        words = words if words is not None else memoryview(bytearray(index_bytes(num_replicas, num_slots))).cast("Q")
        self._mask = num_slots - 1
        self._tables = [words[number * num_slots : (number + 1) * num_slots] for number in range(num_replicas)]

    def cached_tokens(self, replica: int, prefix: PrefixKeys) -> int:
        """Tokens of the longest prefix that was sent to the replica, as far as it is remembered."""
        table, mask = self._tables[replica], self._mask
        # From the longest: it stands for all before it, which may have lost their slots.
        for place in range(len(prefix.keys) - 1, -1, -1):
            key = prefix.keys[place]
            if table[key & mask] == key:
                return prefix.ends[place]
        return 0

    def add(self, replica: int, prefix: PrefixKeys) -> None:
        """Remember that a prompt was sent to the replica."""
        table, mask = self._tables[replica], self._mask
        for key in prefix.keys:
            table[key & mask] = key

    def forget(self, replica: int) -> None:
        """Forget all that was sent to the replica: it has been started anew, or is another."""
        table = self._tables[replica]
        table[:] = memoryview(array("Q", bytes(len(table) * WORD_BYTES)))
