"""Which sequence owns which row: those that run and those that are paused.

Runs on the engine's event loop. Knows no blocks and no steps.

A row is free as soon as its owner leaves, even with a step of the former owner in flight: starts are applied in stream
order, so whatever that step scatters into the row has landed before the next owner's start overwrites it, and no later step
works for the former owner. On the host, a step's results go to the sequences recorded in it, never to whoever owns the row
by then.
"""

from __future__ import annotations

from streamserve.scheduling.queue.policy import PolicyQueue
from streamserve.scheduling.sequence import NO_ROW, Sequence


class RowAllocator:
    """Gives rows to sequences and takes them back; lists their owners in policy order."""

    def __init__(self, num_rows: int) -> None:
        self.running = PolicyQueue()
        self.paused = PolicyQueue()
        self._num_rows = num_rows
        self._free_rows = list(reversed(range(num_rows)))

    @property
    def has_free_row(self) -> bool:
        return bool(self._free_rows)

    @property
    def num_free_rows(self) -> int:
        return len(self._free_rows)

    def join(self, sequence: Sequence) -> None:
        """Give a sequence a free row and let it run."""
        sequence.row = self._free_rows.pop()
        self.running.add(sequence)

    def leave(self, sequence: Sequence) -> None:
        """Take its row back."""
        self._queue_of(sequence).remove(sequence)
        self._free_rows.append(sequence.row)
        sequence.row = NO_ROW

    def pause(self, sequence: Sequence) -> None:
        """Keep its row, but don't run it."""
        self.running.remove(sequence)
        self.paused.add(sequence)

    def resume(self, sequence: Sequence) -> None:
        self.paused.remove(sequence)
        self.running.add(sequence)

    def victim(self) -> Sequence:
        """The owner to preempt first: a paused sequence before a running one, then the last in policy order."""
        victim = self.paused.last or self.running.last
        assert victim is not None, "no row is held"
        return victim

    def check(self) -> None:
        """Assert that rows are owned once and that owners and free rows are all there are."""
        owned = [sequence.row for queue in (self.running, self.paused) for sequence in queue]
        assert sorted(owned + self._free_rows) == list(range(self._num_rows)), "a row is lost or owned twice"
        assert not any(sequence.is_paused for sequence in self.running), "a paused sequence runs"
        assert all(sequence.is_paused for sequence in self.paused), "a running sequence is kept as paused"

    def _queue_of(self, sequence: Sequence) -> PolicyQueue:
        return self.paused if sequence.is_paused else self.running


__all__ = ["RowAllocator"]
