"""What each tenant holds of an engine, what it is entitled to, and whose turn it is.

Runs on the engine's event loop. Knows no steps, no clock and no blocks but their number.

Prompts are computed by deficit round robin on tokens (Shreedhar and Varghese, 1995): each step is a round, in which every
tenant that has prompts to compute is credited with its share of the step, and charged with what the step computes for it,
decodes included. Rows and blocks are divided as in dominant resource fairness (Ghodsi et al., 2011): a tenant that holds less
than its share of both may have what others hold beyond theirs. Nothing is set aside for those who want nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from streamserve.scheduling.queue.policy import PolicyQueue
from streamserve.scheduling.sequence import Sequence
from streamserve.types import Tenant

MIN_TURN = 256
"""Tokens that a turn has at least: with many tenants, few of them have one in each step, and none computes crumbs."""


class Share:
    """One tenant with live sequences.

    tenant       as its last request described it
    waiting      its sequences without a row, in policy order
    num_waiting_tokens  of their prompts
    num_live     all of its sequences
    num_rows     those that own a row
    deficit      tokens that it is owed; negative when it had more than its share
    credit       tokens of its prompts that the step being planned owes it
    spent        tokens that this step computes for it
    was_refused  whether the first that waits could not be admitted, for lack of a row or of blocks
    """

    __slots__ = ("credit", "deficit", "num_live", "num_rows", "num_waiting_tokens", "spent", "tenant", "waiting", "was_refused")

    def __init__(self, tenant: Tenant) -> None:
        self.tenant = tenant
        self.waiting = PolicyQueue()
        self.num_live = self.num_rows = self.num_waiting_tokens = self.spent = 0
        self.deficit = self.credit = 0.0
        self.was_refused = False


class Tenants:
    """The tenants with live sequences.

    max_num_rows, num_blocks  what is divided between them
    step_tokens               the most that a step computes
    """

    def __init__(self, max_num_rows: int, num_blocks: int, step_tokens: int) -> None:
        self._max_num_rows = max_num_rows
        self._num_blocks = num_blocks
        self._step_tokens = step_tokens
        self._shares: dict[str, Share] = {}

    def __len__(self) -> int:
        return len(self._shares)

    def __iter__(self) -> Iterator[Share]:
        return iter(self._shares.values())

    def of(self, sequence: Sequence) -> Share:
        """The share of a live sequence's tenant."""
        return self._shares[sequence.tenant]

    def get(self, tenant: Tenant) -> Share | None:
        """The share of a tenant; None while it has no live sequences."""
        return self._shares.get(tenant.name)

    def enter(self, sequence: Sequence) -> Share:
        """Count a new sequence; returns its tenant's share."""
        share = self._shares.get(sequence.tenant)
        if share is None:
            share = self._shares[sequence.tenant] = Share(sequence.spec.tenant)
        share.tenant = sequence.spec.tenant
        share.num_live += 1
        return share

    def leave(self, sequence: Sequence) -> None:
        """Forget a sequence that has ended."""
        share = self._shares[sequence.tenant]
        share.num_live -= 1
        if not share.num_live:
            del self._shares[sequence.tenant]

    def begin_round(self, num_tokens: int, unfinished: Iterable[Sequence]) -> list[Share]:
        """Credit tenants that have prompts to compute with their shares of a step; returns them in the order of their turns.

        Those that are owed tokens come first, and of them those that have fewer rows than their share.

        num_tokens  that the step computes besides decodes
        unfinished  sequences that run and whose prompts are not computed yet
        """
        under_way = {sequence.tenant for sequence in unfinished} if len(self._shares) > 1 else self._shares.keys()
        turns = [share for name, share in self._shares.items() if share.waiting or name in under_way]
        if len(turns) == 1:
            turns[0].deficit = 0.0
            return turns
        weights = sum(share.tenant.weight for share in turns)
        num_tokens += sum(share.num_rows for share in turns)
        for share in turns:
            share.spent = share.num_rows
            share.credit = share.deficit + num_tokens * share.tenant.weight / weights - share.num_rows
        return sorted(turns, key=self._turn_order)

    def end_round(self, turns: list[Share]) -> None:
        """Carry over what the step owes to each of `turns`, by what it computed for all of them."""
        for share in self._shares.values():
            if share not in turns:
                share.deficit = 0.0
        if len(turns) == 1:
            return
        weights, num_tokens = sum(share.tenant.weight for share in turns), sum(share.spent for share in turns)
        for share in turns:
            owed = share.deficit + num_tokens * share.tenant.weight / weights - share.spent
            share.deficit = min(max(owed, -self._step_tokens), self._step_tokens)

    def row_share(self, share: Share) -> float:
        """Rows that a tenant holds, as a part of those that it is entitled to: at least one."""
        return share.num_rows / max(1.0, self._max_num_rows * self._fraction(share))

    def block_share(self, share: Share, num_blocks: int) -> float:
        """Blocks that a tenant holds, as a part of those that it is entitled to."""
        return num_blocks / (self._num_blocks * self._fraction(share))

    def is_entitled(self, share: Share, num_blocks: int) -> bool:
        """Whether a tenant may have one more row, and `num_blocks` blocks in all, at the cost of those who hold more."""
        rows = max(1.0, self._max_num_rows * self._fraction(share))
        return share.num_rows + 1 <= rows and self.block_share(share, num_blocks) <= 1.0

    def _turn_order(self, share: Share) -> tuple[bool, bool, float]:
        return (share.credit <= 0, self.row_share(share) >= 1.0, -share.credit)

    def _fraction(self, share: Share) -> float:
        return share.tenant.weight / sum(each.tenant.weight for each in self._shares.values())


class WaitingSequences:
    """Every sequence without a row that is not paused, in its tenant's queue.

    num_tokens  of their prompts
    """

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants
        self._count = self.num_tokens = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for share in self._tenants for sequence in share.waiting)

    def add(self, sequence: Sequence) -> None:
        share = self._tenants.of(sequence)
        share.waiting.add(sequence)
        share.num_waiting_tokens += sequence.num_prompt_tokens
        self.num_tokens += sequence.num_prompt_tokens
        self._count += 1

    def remove(self, sequence: Sequence) -> None:
        """Raises `ValueError` when it isn't there."""
        share = self._tenants.of(sequence)
        share.waiting.remove(sequence)
        share.num_waiting_tokens -= sequence.num_prompt_tokens
        self.num_tokens -= sequence.num_prompt_tokens
        self._count -= 1


__all__ = ["MIN_TURN", "Share", "Tenants", "WaitingSequences"]
