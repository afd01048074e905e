"""One stream of tokens being generated, as the scheduler sees it.

Runs on the engine's event loop. Plain state without behaviour that needs others: who may run, and on which blocks, is
decided elsewhere.
"""

from __future__ import annotations

import msgspec

from streamserve.scheduling.constraint import Constraint
from streamserve.scheduling.kv.blocks import BlockTable
from streamserve.scheduling.kv.prefix_cache import PrefixBlock
from streamserve.scheduling.plan import NO_TOKEN
from streamserve.scheduling.reasoning import ReasoningLimit
from streamserve.scheduling.token_masks import only
from streamserve.types import FinishReason, Sampling, SequenceSpec, Tenant, TokenLogprobs

NO_ROW = -1

Order = tuple[int, int]


class Request:
    """Sequences that came together.

    patience_s  seconds that their client waits for an answer; None where it does not say
    sequences   those that live
    begun_at    when one of them got its first row; None while all wait for theirs
    """

    __slots__ = ("arrived_at", "begun_at", "patience_s", "sequences", "tenant")

    def __init__(self, tenant: Tenant, arrived_at: float, patience_s: float | None = None) -> None:
        self.tenant = tenant
        self.arrived_at = arrived_at
        self.patience_s = patience_s
        self.begun_at: float | None = None
        self.sequences: list[Sequence] = []

    @property
    def has_begun(self) -> bool:
        return self.begun_at is not None

    @property
    def waits(self) -> bool:
        """Whether its sequences live, and none of them has had a row."""
        return self.begun_at is None and bool(self.sequences)


class Sequence:
    """A sequence between admission and its end.

    tenant         the name of the one it belongs to
    order          position under the policy: lower runs first, higher is preempted first; unique
    deadline       time at which it ends with reason "time", or None
    request        that it came with
    queue_s        seconds it waited for its first row; None while it does
    ending_ids     its stop tokens and `NO_TOKEN`: what may end it besides its length and its constraint
    limit          token count (prompt included) at which it ends with reason "length"
    token_ids      prompt and generated tokens known to the host, that is committed ones
    num_known      the same, plus the tokens in flight, which exist on the device only; with drafts in flight, the most it can
                   be
    num_computed   tokens whose keys and values are in the cache or being written by a step in flight, counted likewise
    num_drafted    drafts in flight, some of which may be rejected
    drafts         guesses for the tokens behind those known, for the next step to check
    only_reports_ids  whether it runs, and the delta of its next token is nothing but its id unless that ends it
    reasoning      ends its reasoning at a budget; None without one, and once no reasoning can follow
    is_special     its decodes need a closer look: it has a constraint, limited reasoning, drafts, or drafts in flight; or it
                   is pooled, and has none
    row            the row it owns, or NO_ROW
    tables         the blocks it holds, in a table for each layer group; none without a row
    reach          tokens that it has blocks for in every table
    prefix         descriptions of its full blocks, as far as they were needed
    next_full      committed tokens at which another block is full: it may enter the prefix cache, and others may go back
    last_step      the last step that worked on it
    """

    __slots__ = (
        "constraint",
        "deadline",
        "drafts",
        "ending_ids",
        "finish_reason",
        "has_reported",
        "is_paused",
        "is_special",
        "last_step",
        "limit",
        "min_length",
        "next_full",
        "num_cached_tokens",
        "num_computed",
        "num_drafted",
        "num_known",
        "num_preemptions",
        "num_prompt_tokens",
        "only_reports_ids",
        "order",
        "prefix",
        "prompt_logprobs",
        "queue_s",
        "reach",
        "reasoning",
        "request",
        "row",
        "sequence_id",
        "spec",
        "tables",
        "tenant",
        "token_ids",
    )

    def __init__(
        self,
        spec: SequenceSpec,
        order: Order,
        deadline: float | None,
        constraint: Constraint | None,
        request: Request,
    ) -> None:
        self.spec = spec
        self.sequence_id = spec.sequence_id
        self.tenant = spec.tenant.name
        self.order = order
        self.deadline = deadline
        self.request = request
        self.queue_s: float | None = None
        self.constraint = constraint
        self.token_ids = [*spec.prompt_token_ids, *spec.generated_token_ids]
        self.num_prompt_tokens = len(spec.prompt_token_ids)
        self.limit = self.num_prompt_tokens + spec.max_tokens
        self.min_length = self.num_prompt_tokens + spec.sampling.min_tokens
        self.ending_ids = frozenset((*spec.sampling.stop_token_ids, NO_TOKEN))
        self.num_known = len(self.token_ids)
        self.num_computed = 0
        self.num_drafted = 0
        self.drafts: list[int] = []
        self.reasoning: ReasoningLimit | None = None
        self.is_special = constraint is not None or spec.pooling is not None
        self.row = NO_ROW
        self.tables: list[BlockTable] = []
        self.reach = 0
        self.prefix: list[PrefixBlock] = []
        self.next_full = 0
        self.last_step = -1
        self.is_paused = False
        self.finish_reason: FinishReason | None = None
        self.num_cached_tokens: int | None = None
        self.num_preemptions = 0
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None if spec.sampling.prompt_logprobs is None else [None]
        self.has_reported = False
        self.only_reports_ids = False
        if spec.reasoning_budget is not None:
            self._limit_reasoning(spec.reasoning_budget)

    def finish(self, reason: FinishReason) -> None:
        """End it; tokens in flight are dropped."""
        self.finish_reason = reason
        self.only_reports_ids = False

    @property
    def is_resident(self) -> bool:
        """True while it owns a row and blocks."""
        return self.row != NO_ROW

    @property
    def has_progressed(self) -> bool:
        """Whether a token of it has been committed here."""
        return len(self.token_ids) > self.num_prompt_tokens + len(self.spec.generated_token_ids)

    @property
    def num_in_flight(self) -> int:
        """Tokens sampled on the device and not committed yet; with drafts among them, the most there can be."""
        return self.num_known - len(self.token_ids)

    @property
    def awaits_commit(self) -> bool:
        """Whether its next step must wait for a commit, which tells what its constraint allows, its exact length or its end."""
        if self.spec.pooling is not None:
            return self.num_computed == self.num_known
        if self.constraint is not None:
            return self.num_in_flight > 0
        if self.reasoning is not None and self.reasoning.awaits_commit(self.num_in_flight):
            return True
        return self.num_drafted > 0 and len(self.token_ids) < self.min_length

    def bitmask(self) -> bytes | None:
        """The tokens that the step being planned may sample; None when it may sample all."""
        mask = None if self.constraint is None else self.constraint.bitmask()
        forced = None if self.reasoning is None else self.reasoning.plan()
        return mask if forced is None else only(forced, mask)

    def follow_reasoning(self, token_id: int) -> None:
        """Take in a committed token of a sequence whose reasoning is limited."""
        assert self.reasoning is not None
        self.reasoning.accept(token_id)
        self._drop_spent_limit()

    def end_reasoning(self) -> None:
        """End its reasoning with the next token; nothing where it has none, or none left."""
        if self.reasoning is not None:
            self.reasoning.end()
        else:
            self._limit_reasoning(0)

    def _limit_reasoning(self, budget: int) -> None:
        if self.spec.reasoning is not None:
            self.reasoning = ReasoningLimit(self.spec.reasoning, budget, self.token_ids[self.num_prompt_tokens :])
            self.drafts = []
            self.only_reports_ids = False
            self._drop_spent_limit()

    def _drop_spent_limit(self) -> None:
        if self.reasoning is not None and self.reasoning.is_over:
            self.reasoning = None
        self._update_special()

    def offer_drafts(self, token_ids: list[int]) -> None:
        """Have the next step check these guesses; ignored with a constraint or a limit, which allow one token at a time."""
        if not self._is_confined:
            self.drafts = token_ids
            self._update_special()

    def take_drafts(self, most: int) -> list[int]:
        """Up to `most` drafts for the step being planned; the others are dropped, since they follow other tokens after it."""
        taken, self.drafts = self.drafts[: max(0, most)], []
        self._update_special()
        return taken

    def plan_drafts(self, num_drafts: int) -> None:
        """A step computes and checks these drafts: its tokens are as many as there can be."""
        self.num_drafted += num_drafts
        self.num_computed += 1 + num_drafts
        self.num_known += 1 + num_drafts
        self.is_special = True

    def settle_drafts(self, num_drafts: int, num_accepted: int) -> None:
        """A step with drafts was committed: take back what was counted for those that were rejected."""
        num_rejected = num_drafts - num_accepted
        self.num_drafted -= num_drafts
        self.num_known -= num_rejected
        if self.is_resident:
            self.num_computed -= num_rejected
        self._update_special()

    def _update_special(self) -> None:
        self.is_special = self._is_confined or self.num_drafted > 0 or bool(self.drafts)

    @property
    def _is_confined(self) -> bool:
        """Whether it may not run ahead with any token."""
        return self.constraint is not None or self.reasoning is not None or self.spec.pooling is not None

    @property
    def needs_whole_prompt(self) -> bool:
        """Whether all of its prompt must be computed, cached or not: its logprobs need all logits, a mean all states."""
        pooling = self.spec.pooling
        return self.wants_prompt_logprobs or (pooling is not None and pooling.kind == "mean")

    @property
    def wants_prompt_logprobs(self) -> bool:
        """True until the logprobs of every prompt token have come."""
        return self.prompt_logprobs is not None and len(self.prompt_logprobs) < self.num_prompt_tokens

    def add_prompt_logprobs(self, start: int, entries: list[TokenLogprobs]) -> None:
        """Take in what a step found out about the prompt tokens after position `start`.

        A prompt that was preempted is computed again, so some of it may be known already.
        """
        assert self.prompt_logprobs is not None
        self.prompt_logprobs += entries[len(self.prompt_logprobs) - (start + 1) :]

    def row_sampling(self) -> Sampling:
        """The sampling parameters as its row takes them: logprobs of the prompt only while some are missing."""
        sampling = self.spec.sampling
        if sampling.prompt_logprobs is None or self.wants_prompt_logprobs:
            return sampling
        return msgspec.structs.replace(sampling, prompt_logprobs=None)


__all__ = ["NO_ROW", "Order", "Request", "Sequence"]
