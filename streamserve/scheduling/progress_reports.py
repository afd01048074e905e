"""Progress of sequences before their first token, for those that ask: their place in the queue, then their prompt.

Runs on the engine's event loop; the time is an argument. A step without such sequences pays for a comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from streamserve.scheduling.queue.tenants import Share
from streamserve.scheduling.sequence import Sequence
from streamserve.types import TokenDelta
from streamserve.types.progress import PrefillProgress, QueueProgress

INTERVAL_S = 1.0
"""Seconds between two reports of a place that changes."""

FIRST_S = 0.05
"""Seconds after which a sequence that still waits has its first report."""

Reports = list[tuple[str, TokenDelta]]
_NONE: Reports = []


class ProgressReports:
    """Reports of sequences that have `reports_progress`.

    tenants  in whose queues they wait
    wait_s   tells how long a place in a tenant's queue is likely to wait
    """

    def __init__(self, tenants: Iterable[Share], wait_s: Callable[[Share, int], float | None]) -> None:
        self._tenants = tenants
        self._wait_s = wait_s
        self._places: dict[str, int] = {}
        self._due_at = self._all_due_at = math.inf

    def entered(self, sequence: Sequence, now: float) -> None:
        """A sequence has begun to wait."""
        if _asks(sequence):
            self._places[sequence.sequence_id] = 0
            self._due_at = min(self._due_at, now + FIRST_S)

    def of_queue(self, now: float) -> Reports:
        """The places of those that still wait, where they are new or have changed for a while."""
        if now < self._due_at:
            return _NONE
        is_all_due = now >= self._all_due_at or self._all_due_at == math.inf
        before, self._places = self._places, {}
        reports: Reports = []
        for share in self._tenants:
            for place, sequence in enumerate(share.waiting, start=1):
                reported = before.get(sequence.sequence_id)
                if reported is None:
                    continue
                if reported == 0 or (is_all_due and reported != place):
                    wait_s = self._wait_s(share, place)
                    progress = QueueProgress(place, None if wait_s is None else round(wait_s, 1))
                    reports.append((sequence.sequence_id, TokenDelta([], progress=progress)))
                    reported = place
                self._places[sequence.sequence_id] = reported
        if is_all_due:
            self._all_due_at = now + INTERVAL_S
        if not self._places:
            self._all_due_at = math.inf
        self._due_at = self._all_due_at
        return reports

    def admitted(self, sequence: Sequence, now: float) -> Reports:
        """A sequence has its row, and what the prefix cache holds of its prompt."""
        if not _asks(sequence):
            return _NONE
        self._places.pop(sequence.sequence_id, None)
        return self.computed(sequence, sequence.num_computed, now)

    def computed(self, sequence: Sequence, num_tokens: int, now: float) -> Reports:
        """A step has computed a prompt up to `num_tokens`, and not to its end."""
        if not _asks(sequence):
            return _NONE
        return [(sequence.sequence_id, TokenDelta([], progress=_prefill_progress(sequence, num_tokens, now)))]


def last_prefill_progress(sequence: Sequence, now: float) -> PrefillProgress | None:
    """What the first token's delta says of the prompt; None where nobody asks."""
    return _prefill_progress(sequence, sequence.num_prompt_tokens, now) if _asks(sequence) else None


def _prefill_progress(sequence: Sequence, num_tokens: int, now: float) -> PrefillProgress:
    total = sequence.num_prompt_tokens
    time_ms = round((now - _began_at(sequence)) * 1e3, 3)
    return PrefillProgress(total, sequence.num_cached_tokens or 0, min(num_tokens, total), time_ms)


def _asks(sequence: Sequence) -> bool:
    """Whether its progress is to be reported: not once it has tokens, of an earlier engine either."""
    spec = sequence.spec
    return spec.reports_progress and not sequence.has_reported and not spec.generated_token_ids


def _began_at(sequence: Sequence) -> float:
    """When a sequence had its first row."""
    return sequence.request.arrived_at + (sequence.queue_s or 0.0)


__all__ = ["ProgressReports", "last_prefill_progress"]
