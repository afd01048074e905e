"""Every live sequence, its state, and the transitions between states.

Runs on the engine's event loop. Knows no steps and no clock.

    waiting  has no row; the first in policy order is admitted next
    running  owns a row and blocks; has work in every step
    paused   owns a row and blocks, and is the first to be preempted; has no work until it is resumed
    parked   paused without a row: it was paused while it waited, or preempted while it was paused
"""

from __future__ import annotations

from streamserve.scheduling.counters import Counters
from streamserve.scheduling.kv_allocator import KvAllocator
from streamserve.scheduling.limits import SchedulerLimits
from streamserve.scheduling.plan import RowGrowth
from streamserve.scheduling.policy import PolicyQueue
from streamserve.scheduling.row_allocator import RowAllocator
from streamserve.scheduling.sequence import Sequence
from streamserve.types import FinishReason


class SequenceRegistry:
    """The sequences of one scheduler, by id and by state."""

    def __init__(self, limits: SchedulerLimits, counters: Counters) -> None:
        self.sequences: dict[str, Sequence] = {}
        self.waiting = PolicyQueue()
        self.parked: dict[str, Sequence] = {}
        self.rows = RowAllocator(limits.max_num_seqs)
        self.kv = KvAllocator(
            limits.num_blocks,
            limits.groups,
            limits.max_num_batched_tokens,
            enable_prefix_caching=limits.enable_prefix_caching,
        )
        self._watermark = limits.watermark
        self._counters = counters

    @property
    def running(self) -> PolicyQueue:
        return self.rows.running

    @property
    def num_paused(self) -> int:
        return len(self.rows.paused) + len(self.parked)

    def enter(self, sequence: Sequence) -> None:
        """Add a new sequence, which waits to be admitted."""
        self.sequences[sequence.sequence_id] = sequence
        self.waiting.add(sequence)

    def admit(self, sequence: Sequence) -> bool:
        """Give a waiting sequence a row and blocks, if need be those of paused ones; False when they can't be had.

        Blocks for the growth of those that run stay free: one for each and layer group, and the watermark. Alone, it may have
        them all.
        """
        num_growing = len(self.running) * len(self.kv.groups.windows)
        reserve = max(self._watermark, num_growing) if self.running else 0
        while not (self.rows.has_free_row and self.kv.admit(sequence, reserve)):
            paused = self.rows.paused.last
            if paused is None or not self._would_fit(sequence, reserve):
                return False
            self._preempt(paused)
        self.waiting.remove(sequence)
        self.rows.join(sequence)
        self._counters.admitted(sequence)
        return True

    def grow(self, sequence: Sequence, num_tokens: int) -> list[RowGrowth] | None:
        """Give a running sequence blocks for its first `num_tokens` tokens, preempting others; None when it yielded itself.

        Call it in policy order while a step is planned: victims come from that order's end, so none is in the plan already.
        """
        while (growths := self.kv.extend(sequence, num_tokens)) is None:
            victim = self.rows.victim()
            self._preempt(victim)
            if victim is sequence:
                return None
        return growths

    def grow_prompt(self, sequence: Sequence, num_tokens: int, later: list[Sequence]) -> list[RowGrowth]:
        """Give a sequence blocks for a chunk that ends at `num_tokens`, or for as much of it as can be had.

        later  sequences that yield theirs if need be, the last one first; none of them is in the plan
        """
        while (growths := self.kv.extend(sequence, num_tokens)) is None:
            victim = self.rows.paused.last or next((each for each in reversed(later) if each.is_resident), None)
            if victim is None:
                return self.kv.extend(sequence, self.kv.reachable(sequence)) or []
            self._preempt(victim)
        return growths

    def pause(self, sequence: Sequence) -> None:
        """Let it run no further. It keeps its row and blocks until others need them. Idempotent."""
        if sequence.is_paused:
            return
        if sequence.is_resident:
            self.rows.pause(sequence)
        else:
            self.waiting.remove(sequence)
            self.parked[sequence.sequence_id] = sequence
        sequence.is_paused = True

    def resume(self, sequence: Sequence) -> None:
        """Undo `pause`. Idempotent."""
        if not sequence.is_paused:
            return
        sequence.is_paused = False
        if sequence.is_resident:
            self.rows.resume(sequence)
        else:
            del self.parked[sequence.sequence_id]
            self.waiting.add(sequence)

    def end(self, sequence: Sequence, reason: FinishReason) -> None:
        """Remove a sequence in whatever state; its row and blocks are free at once."""
        if sequence.is_resident:
            self._vacate(sequence)
        elif sequence.is_paused:
            del self.parked[sequence.sequence_id]
        else:
            self.waiting.remove(sequence)
        sequence.finish(reason)
        self._counters.ended(sequence)
        del self.sequences[sequence.sequence_id]

    def _preempt(self, sequence: Sequence) -> None:
        """Take a resident's row and blocks; it is computed anew later. Its tokens in flight will still be appended."""
        self._vacate(sequence)
        if sequence.is_paused:
            self.parked[sequence.sequence_id] = sequence
        else:
            self.waiting.add(sequence)
        self._counters.preempted(sequence)

    def _vacate(self, sequence: Sequence) -> None:
        self.kv.release(sequence)
        self.rows.leave(sequence)

    def _would_fit(self, sequence: Sequence, reserve: int) -> bool:
        """Would there be blocks if every paused sequence gave up its own?"""
        held = sum(len(table.block_ids) for paused in self.rows.paused for table in paused.tables)
        return self.kv.blocks_for(len(sequence.token_ids)) + reserve <= self.kv.num_free + held


__all__ = ["SequenceRegistry"]
