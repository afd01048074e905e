"""Every live sequence, its state, and the transitions between states.

Runs on the engine's event loop. Knows no steps and no clock.

    waiting  has no row; of each tenant the first in policy order is admitted next
    running  owns a row and blocks; has work in every step
    paused   owns a row and blocks, and is the first to be preempted; has no work until it is resumed
    parked   paused without a row: it was paused while it waited, or preempted while it was paused
"""

from __future__ import annotations

from streamserve.scheduling.counters import Counters
from streamserve.scheduling.kv.allocator import KvAllocator
from streamserve.scheduling.limits import SchedulerLimits
from streamserve.scheduling.plan import RowGrowth
from streamserve.scheduling.queue.policy import PolicyQueue
from streamserve.scheduling.queue.tenants import Share, Tenants, WaitingSequences
from streamserve.scheduling.row_allocator import RowAllocator
from streamserve.scheduling.sequence import Sequence
from streamserve.types import FinishReason


class SequenceRegistry:
    """The sequences of one scheduler, by id and by state."""

    def __init__(self, limits: SchedulerLimits, counters: Counters) -> None:
        self.sequences: dict[str, Sequence] = {}
        self.tenants = Tenants(limits.max_num_seqs, limits.num_blocks, limits.max_num_batched_tokens)
        self.waiting = WaitingSequences(self.tenants)
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
        self.tenants.enter(sequence)
        self.waiting.add(sequence)

    def admit(self, sequence: Sequence) -> bool:
        """Give a waiting sequence a row and blocks, if need be those of paused ones; False when they can't be had.

        Blocks for the growth of those that run stay free: one for each and layer group, and the watermark. Alone, it may have
        them all.
        """
        reserve, share = self._reserve(), self.tenants.of(sequence)
        share.was_refused = True
        while not (self.rows.has_free_row and self.kv.admit(sequence, reserve)):
            paused = self.rows.paused.last
            if paused is None or not self._would_fit(sequence, reserve):
                return False
            self._preempt(paused)
        self.waiting.remove(sequence)
        self.rows.join(sequence)
        share.num_rows += 1
        share.was_refused = False
        self._counters.admitted(sequence)
        return True

    def grow(self, sequence: Sequence, num_tokens: int) -> list[RowGrowth] | None:
        """Give a running sequence blocks for its first `num_tokens` tokens, preempting others; None when it yielded itself.

        Call it in policy order while a step is planned: victims come from that order's end, so none is in the plan already.
        """
        while (growths := self.kv.extend(sequence, num_tokens)) is None:
            victim = self._victim(sequence)
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
        self.tenants.leave(sequence)
        del self.sequences[sequence.sequence_id]

    def make_room(self) -> None:
        """Have tenants that hold more than their share yield to those that hold less and lack a row, or were refused blocks.

        Call it before a step is planned: whoever yields must not be in the plan.
        """
        if len(self.tenants) > 1:
            for share in self.tenants:
                lacks_room = share.was_refused or not self.rows.has_free_row
                if lacks_room and (first := share.waiting.first) is not None:
                    self._make_room(first, share)

    def _make_room(self, sequence: Sequence, share: Share) -> None:
        num_blocks = self.kv.blocks_for(len(sequence.token_ids))
        if not self.tenants.is_entitled(share, num_blocks + self._num_blocks(share)):
            return
        while not self.rows.has_free_row or num_blocks + self._reserve() > self.kv.num_free:
            victim = self._beyond_share(is_row_needed=not self.rows.has_free_row)
            if victim is None:
                return
            self._preempt(victim)

    def _beyond_share(self, *, is_row_needed: bool) -> Sequence | None:
        """The last running sequence of the tenant that holds most beyond its share of rows, or of blocks."""
        tenants = self.tenants

        def excess(share: Share) -> float:
            return tenants.row_share(share) if is_row_needed else tenants.block_share(share, self._num_blocks(share))

        greediest = max(tenants, key=excess)
        if excess(greediest) <= 1.0:
            return None
        name = greediest.tenant.name
        return next((sequence for sequence in reversed(self.running) if sequence.tenant == name), None)

    def _victim(self, sequence: Sequence) -> Sequence:
        """Who yields blocks to a running sequence: the last, from it on, of the tenant that holds most for its share."""
        if len(self.tenants) == 1 or self.rows.paused.last is not None:
            return self.rows.victim()
        behind = [each for each in self.running if each.order >= sequence.order]
        shares = {each.tenant: self.tenants.of(each) for each in behind}
        greediest = max(shares.values(), key=lambda share: self.tenants.block_share(share, self._num_blocks(share)))
        return next(each for each in reversed(behind) if each.tenant == greediest.tenant.name)

    def _num_blocks(self, share: Share) -> int:
        """Blocks that a tenant's sequences hold."""
        name, residents = share.tenant.name, (*self.running, *self.rows.paused)
        return sum(len(table.block_ids) for each in residents if each.tenant == name for table in each.tables)

    def _reserve(self) -> int:
        """Blocks that stay free for the growth of those that run."""
        num_growing = len(self.running) * len(self.kv.groups.windows)
        return max(self._watermark, num_growing) if self.running else 0

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
        self.tenants.of(sequence).num_rows -= 1

    def _would_fit(self, sequence: Sequence, reserve: int) -> bool:
        """Would there be blocks if every paused sequence gave up its own?"""
        held = sum(len(table.block_ids) for paused in self.rows.paused for table in paused.tables)
        return self.kv.blocks_for(len(sequence.token_ids)) + reserve <= self.kv.num_free + held


__all__ = ["SequenceRegistry"]
