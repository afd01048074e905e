"""Whether the queue takes another request, and how long those in it may wait.

Runs on the engine's event loop. Reads no clock: the time is an argument. Plans nothing: it is told what enters and leaves.

All API workers' requests come through here, so a key's limits hold exactly, however many workers there are.
"""

from __future__ import annotations

import math
from collections import deque

from streamserve.errors import InvalidParameter, QueueFull, QueueTimeout, RateLimited
from streamserve.scheduling.limits import SchedulerLimits
from streamserve.scheduling.queue.declared_waits import DeclaredWaits, longest_wait_s
from streamserve.scheduling.queue.queue_time import DrainRate, Patience
from streamserve.scheduling.queue.tenants import Share
from streamserve.scheduling.queue.token_bucket import TokenBucket
from streamserve.scheduling.sequence import Request, Sequence
from streamserve.scheduling.sequence_registry import SequenceRegistry
from streamserve.types import ErrorInfo, Quotas, SequenceSpec, Tenant

LEAST_RETRY_S, MOST_RETRY_S = 1.0, 120.0
"""Of what a refusal says: sooner is useless, and later is a guess."""


class Ledger:
    """What one tenant has used of late.

    num_requests  that live
    arrivals      requests that may still wait for their first row, the oldest first
    """

    def __init__(self) -> None:
        self.requests, self.tokens = TokenBucket(), TokenBucket()
        self.patience = Patience()
        self.num_requests = 0
        self.arrivals: deque[Request] = deque()


class Intake:
    """Takes and refuses requests for one scheduler, and finds those that have waited too long.

    num_departures  sequences that have left the queue or ended so far: while it stays the same, a refusal that holds until
                    there is room holds
    """

    def __init__(self, limits: SchedulerLimits, registry: SequenceRegistry) -> None:
        self._limits = limits
        self._registry = registry
        self._drain = DrainRate()
        self._ledgers: dict[str, Ledger] = {}
        self._declared = DeclaredWaits()
        self._now = 0.0
        self.num_departures = 0

    def require_room(self, specs: list[SequenceSpec], now: float) -> None:
        """Raise `RateLimited` where the tenant of a request has used what it may, `QueueFull` where the queue can't take it.

        Also `InvalidParameter` for a request that the queue never could.
        """
        tenant = specs[0].tenant
        self._require_places(specs, tenant)
        if not _is_continuation(specs):
            self._require_allowance(specs, tenant, now)
            self._require_short_wait(tenant, specs[0].patience_s, now)

    def quotas(self, tenant: Tenant, now: float) -> Quotas | None:
        """What a tenant may still use in this minute; None for one that has no limits."""
        if tenant.requests_per_minute is None and tenant.tokens_per_minute is None:
            return None
        ledger = self._ledger(tenant)
        return Quotas(
            ledger.requests.quota(tenant.requests_per_minute, now), ledger.tokens.quota(tenant.tokens_per_minute, now)
        )

    def enter(self, request: Request, now: float) -> None:
        """Count a request whose sequences have just begun to wait."""
        ledger = self._ledger(request.tenant)
        ledger.num_requests += 1
        if len(self._registry.waiting) == len(request.sequences):
            self._drain.resume(now)
        specs = [sequence.spec for sequence in request.sequences]
        if _is_continuation(specs):
            request.begun_at = now
        else:
            ledger.requests.take(1)
            ledger.tokens.take(_num_prompt_tokens(specs))
            ledger.arrivals.append(request)
            self._declared.add(request)

    def begin(self, sequence: Sequence, now: float) -> None:
        """Count a sequence that has got its first row."""
        if not sequence.request.has_begun:
            sequence.request.begun_at = now

    def wait_s(self, share: Share, place: int) -> float | None:
        """Seconds until a place in a tenant's queue has its turn, at the rate at which the queue drains; None while unknown."""
        return self._drain.wait_s(self._num_in_turn(share, place)) if self._drain.is_known else None

    def drained(self, num_sequences: int, now: float) -> None:
        """So many sequences have left the queue in a step that found somebody waiting."""
        self._drain.observe(now, num_sequences)
        self.num_departures += num_sequences

    def leave(self, sequence: Sequence, left_at: float | None = None) -> None:
        """Count a sequence that has ended.

        left_at  when its client gave it up, if that is why
        """
        self.num_departures += 1
        request = sequence.request
        ledger = self._ledger(request.tenant)
        ledger.tokens.take(len(sequence.token_ids) - sequence.num_prompt_tokens - len(sequence.spec.generated_token_ids))
        request.sequences.remove(sequence)
        if request.sequences:
            return
        ledger.num_requests -= 1
        if sequence.finish_reason in ("stop", "length"):
            ledger.patience.answered(self._now)
        elif left_at is not None and (request.begun_at or left_at) - request.arrived_at > (left_at - request.arrived_at) / 2:
            # What it waited for was a row, for most of the time.
            ledger.patience.gave_up(left_at, left_at - request.arrived_at)

    def take_overdue(self, now: float) -> list[tuple[Request, ErrorInfo]]:
        """Requests that have waited too long for their first row, and what to tell their clients; none of them twice."""
        self._now = now
        overdue: list[tuple[Request, ErrorInfo]] = []
        if not self._registry.waiting:
            return overdue
        for ledger in self._live_ledgers():
            limit_s = self._limit_s(ledger, now)
            while (request := _oldest(ledger)) is not None and request.arrived_at + limit_s <= now:
                ledger.arrivals.popleft()
                overdue.append((request, self._timed_out(request, now)))
        while (request := self._declared.pop_overdue(now)) is not None:
            if all(request is not other for other, _ in overdue):
                overdue.append((request, self._timed_out(request, now)))
        return overdue

    def next_overdue(self, now: float) -> float | None:
        """When `take_overdue` will next have something to return, as far as that is known."""
        times = [
            request.arrived_at + self._limit_s(ledger, now)
            for ledger in self._live_ledgers()
            if (request := _oldest(ledger)) is not None
        ]
        earliest = min([*times, self._declared.next()])
        return None if earliest == math.inf else earliest

    def _require_places(self, specs: list[SequenceSpec], tenant: Tenant) -> None:
        """Bound the sequences that wait and their tokens, of all tenants and of this one."""
        waiting, share = self._registry.waiting, self._registry.tenants.get(tenant)
        num_tokens = sum(len(spec.prompt_token_ids) for spec in specs)
        own_sequences, own_tokens = (0, 0) if share is None else (len(share.waiting), share.num_waiting_tokens)
        free_rows = self._registry.rows.num_free_rows
        most, most_tokens, part = self._limits.max_queue, self._limits.max_queue_tokens, tenant.max_queue_share
        if num_tokens > most_tokens * part:
            raise InvalidParameter("prompt", "the prompts of all choices have more tokens than may ever wait here")
        room = free_rows + min(most - len(waiting), max(1, int(most * part)) - own_sequences)
        if len(specs) > room:
            raise QueueFull(
                f"{len(waiting)} sequences wait already",
                retry_after_s=self._retry_after_s(len(specs) - room),
                holds_s=_holding(room < 1),
            )
        token_room = min(most_tokens - waiting.num_tokens, most_tokens * part - own_tokens)
        if num_tokens > token_room:
            raise QueueFull(
                f"prompts of {waiting.num_tokens} tokens wait already",
                retry_after_s=self._retry_after_s(len(specs)),
                holds_s=_holding(token_room < 1),
            )

    def _require_allowance(self, specs: list[SequenceSpec], tenant: Tenant, now: float) -> None:
        """Hold the tenant to what it may do at a time, and in a minute."""
        ledger = self._ledger(tenant)
        if tenant.max_concurrency is not None and ledger.num_requests >= tenant.max_concurrency:
            raise RateLimited(
                f"this key may have {tenant.max_concurrency} requests at a time: wait until one of them has ended",
                retry_after_s=LEAST_RETRY_S,
                holds_s=math.inf,
            )
        for what, bucket, amount, limit in (
            ("requests", ledger.requests, 1, tenant.requests_per_minute),
            ("tokens", ledger.tokens, _num_prompt_tokens(specs), tenant.tokens_per_minute),
        ):
            wait_s = bucket.wait_s(amount, limit, now)
            if wait_s > 0:
                raise RateLimited(
                    f"this key may use {limit:g} {what} a minute",
                    retry_after_s=wait_s,
                    holds_s=bucket.wait_s(1, limit, now),
                )

    def _require_short_wait(self, tenant: Tenant, patience_s: float | None, now: float) -> None:
        """Refuse what would wait for longer than it may."""
        tenant_limit_s = self._limit_s(self._ledger(tenant), now)
        limit_s = min(tenant_limit_s, longest_wait_s(patience_s))
        if limit_s == math.inf:
            return
        wait_s = self._drain.wait_s(self._num_ahead(tenant))
        if wait_s > limit_s:
            raise QueueFull(
                f"requests wait for {wait_s:.1f} s now, and are to wait for {limit_s:.1f} s at most",
                retry_after_s=_bounded(wait_s - limit_s),
                holds_s=_holding(wait_s > tenant_limit_s),
            )

    def _num_ahead(self, tenant: Tenant) -> float:
        """Sequences that leave the queue before the next one of a tenant, were it queued now."""
        share = self._registry.tenants.get(tenant)
        if share is None or not share.waiting:
            return 0.0
        return max(0.0, self._num_in_turn(share, len(share.waiting)) - self._registry.rows.num_free_rows)

    def _num_in_turn(self, share: Share, place: int) -> float:
        """Sequences that leave the queue until a place in a tenant's own has had its turn."""
        weights = sum(each.tenant.weight for each in self._registry.tenants if each.waiting)
        return min(place * weights / share.tenant.weight, len(self._registry.waiting))

    def _limit_s(self, ledger: Ledger, now: float) -> float:
        """Seconds that a tenant's requests may wait; infinite where they may for as long as it takes."""
        configured = self._limits.max_queue_time_s
        return min(ledger.patience.limit_s(now), math.inf if configured is None else configured)

    def _timed_out(self, request: Request, now: float) -> ErrorInfo:
        waited_s = now - request.arrived_at
        return ErrorInfo(
            QueueTimeout.code,
            f"the request waited for {waited_s:.1f} s and had not begun: the server has more to do than it can",
            self._retry_after_s(len(self._registry.waiting)),
        )

    def _retry_after_s(self, num_sequences: int) -> float:
        """Seconds until so many have left the queue, at the rate at which they do."""
        return _bounded(self._drain.wait_s(num_sequences))

    def _live_ledgers(self) -> list[Ledger]:
        """Those of tenants with live sequences: others, of which there may be many, have nothing that waits."""
        return [self._ledger(share.tenant) for share in self._registry.tenants]

    def _ledger(self, tenant: Tenant) -> Ledger:
        ledger = self._ledgers.get(tenant.name)
        if ledger is None:
            ledger = self._ledgers[tenant.name] = Ledger()
        return ledger


def _num_prompt_tokens(specs: list[SequenceSpec]) -> int:
    """Tokens of the prompts of a request, each counted once however many outputs it has."""
    prompts = {id(spec.prompt_token_ids): len(spec.prompt_token_ids) for spec in specs}
    return sum(prompts.values())


def _is_continuation(specs: list[SequenceSpec]) -> bool:
    """Whether a request began elsewhere: what its tenant may use was counted there, and its client reads on."""
    return any(spec.generated_token_ids for spec in specs)


def _oldest(ledger: Ledger) -> Request | None:
    """The oldest request that waits for its first row."""
    arrivals = ledger.arrivals
    while arrivals and not arrivals[0].waits:
        arrivals.popleft()
    return arrivals[0] if arrivals else None


def _holding(is_general: bool) -> float:
    """How long a refusal holds for all requests of its tenant, given whether it does so at all: until there is room."""
    return math.inf if is_general else 0.0


def _bounded(seconds: float) -> float:
    return min(max(seconds, LEAST_RETRY_S), MOST_RETRY_S)


__all__ = ["Intake"]
