"""One step between plan and commit: the plan that goes to the workers, and the sequences its results belong to.

Runs on the engine's event loop.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from streamserve.scheduling.mask_turns import MaskTurns
from streamserve.scheduling.plan import Plan, RowDrafts, RowGrowth, RowStart, RowWork
from streamserve.scheduling.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Step:
    """A planned step.

    sampled  owner of each entry of `plan.sampled`, in that order
    drafted  (index in `sampled`, number of drafts) of those with drafts
    chunks   sequences whose prefill continues after this step, with their computed tokens at its end
    scored   row -> (owner, first position) where logprobs of prompt tokens are awaited
    pooled   row -> owner where the vector of a whole prompt is awaited
    """

    plan: Plan
    sampled: list[Sequence]
    drafted: list[tuple[int, int]]
    chunks: list[tuple[Sequence, int]]
    scored: dict[int, tuple[Sequence, int]]
    pooled: dict[int, Sequence]

    def owners(self, rows: Collection[int]) -> list[Sequence]:
        """Those whose work it does in these rows; of prompts under way, those that still have their row."""
        sampled = (sequence for work, sequence in zip(self.plan.sampled, self.sampled, strict=True) if work.row in rows)
        # One that gave its row back can't have another before this step is committed.
        return [*sampled, *(sequence for sequence, _ in self.chunks if sequence.row in rows)]


class StepBuilder:
    """A step while it is being planned.

    `decodes` and `decoding` are parallel to each other except that a prefill chunk of one token may be among the former only.
    """

    __slots__ = (
        "budget",
        "chunks",
        "decodes",
        "decoding",
        "draft_budget",
        "drafted",
        "drafts",
        "growths",
        "index",
        "masks",
        "pooled",
        "prefilling",
        "prefills",
        "scored",
        "scoring_budget",
        "starts",
        "turn_budget",
    )

    def __init__(self, index: int, budget: int, masks: MaskTurns) -> None:
        """budget  tokens that the step may compute
        masks   whose masks may be computed

        The attributes `scoring_budget`, `draft_budget` and `turn_budget` are the shares of it that may have prompt logprobs, be
        drafts, and be the prompts of the tenant whose turn it is.
        """
        self.index = index
        self.masks = masks
        self.draft_budget = 0
        self.budget = self.scoring_budget = self.turn_budget = budget
        self.starts: list[RowStart] = []
        self.growths: list[RowGrowth] = []
        self.drafts: list[RowDrafts] = []
        self.decodes: list[RowWork] = []
        self.decoding: list[Sequence] = []
        self.prefills: list[RowWork] = []
        self.prefilling: list[Sequence] = []
        self.drafted: list[tuple[int, int]] = []
        self.chunks: list[tuple[Sequence, int]] = []
        self.scored: dict[int, tuple[Sequence, int]] = {}
        self.pooled: dict[int, Sequence] = {}

    def start(self, sequence: Sequence) -> None:
        """The sequence takes its row. Everything is copied: the plan must not change under a rank that reads it."""
        self.starts.append(
            RowStart(
                row=sequence.row,
                token_ids=list(sequence.token_ids),
                num_prompt_tokens=sequence.num_prompt_tokens,
                sampling=sequence.row_sampling(),
                pooling=sequence.spec.pooling,
            )
        )
        self.growths += [
            RowGrowth(sequence.row, group, table.first, list(table.block_ids)) for group, table in enumerate(sequence.tables)
        ]

    def allowance(self, sequence: Sequence) -> int:
        """How many more of its tokens the step may compute."""
        left = sequence.num_known - sequence.num_computed
        if not self.masks.has_time(sequence):
            # All but the one behind which its first token comes.
            left -= 1
        room = min(self.room, self.scoring_budget) if sequence.wants_prompt_logprobs else self.room
        return min(room, left)

    @property
    def room(self) -> int:
        """How many more tokens the tenant whose turn it is may have computed."""
        return min(self.budget, self.turn_budget)

    def work(self, sequence: Sequence, count: int) -> None:
        """Compute the sequence's next `count` tokens, and sample, or pool, when those are all it has."""
        start = sequence.num_computed
        end = start + count
        is_pooled = sequence.spec.pooling is not None
        samples = end == sequence.num_known and not is_pooled
        bitmask = self.masks.mask(sequence) if samples and sequence.is_special else None
        works, owners = (self.decodes, self.decoding) if count == 1 else (self.prefills, self.prefilling)
        works.append(RowWork(sequence.row, start, count, int(samples), bitmask))
        if sequence.wants_prompt_logprobs:
            self.scored[sequence.row] = (sequence, start)
            self.scoring_budget -= count
        if samples:
            owners.append(sequence)
            sequence.num_known += 1
        else:
            self.chunks.append((sequence, end))
            if is_pooled and end == sequence.num_known:
                self.pooled[sequence.row] = sequence
        sequence.num_computed = end
        sequence.last_step = self.index
        self.budget -= count
        self.turn_budget -= count

    def check(self, sequence: Sequence, token_ids: list[int]) -> None:
        """Compute the sequence's last token and these drafts behind it, and sample behind each."""
        start, num_drafts = sequence.num_computed, len(token_ids)
        self.drafts.append(RowDrafts(sequence.row, token_ids))
        self.drafted.append((len(self.prefilling), num_drafts))
        self.prefills.append(RowWork(sequence.row, start, 1 + num_drafts, 1 + num_drafts))
        self.prefilling.append(sequence)
        sequence.plan_drafts(num_drafts)
        sequence.last_step = self.index
        self.draft_budget -= num_drafts

    @property
    def num_tokens(self) -> int:
        """Tokens that the step computes."""
        return len(self.decodes) + sum(work.count for work in self.prefills)

    def finish(self) -> Step | None:
        """The step, or None when there is nothing to compute."""
        work = self.decodes + self.prefills
        if not work:
            return None
        plan = Plan(self.index, self.starts, self.growths, work, self.drafts)
        if self.drafted:
            self.drafted = [(len(self.decoding) + index, num_drafts) for index, num_drafts in self.drafted]
        return Step(plan, self.decoding + self.prefilling, self.drafted, self.chunks, self.scored, self.pooled)


__all__ = ["Step", "StepBuilder"]
