"""What one step will do: small, frozen, the only thing that crosses from the scheduler to the workers.

A row is a sequence's place on the device for as long as it runs: its token ids and their number, block tables and sampling
parameters stay there, so a plan carries only what changed since the last one. Ids sampled by a step are written into the rows
on the device and are never sent back down; a step that samples begins where its row's tokens end, wherever that is.
"""

from __future__ import annotations

import msgspec

from streamserve.types import Pooling, Sampling, TokenLogprobs

NO_TOKEN = -1
"""In place of a token that could not be sampled: the row's logits were not finite, or every token was excluded."""


class RowStart(msgspec.Struct, frozen=True, array_like=True):
    """A sequence takes a row: everything the device must know about it.

    Its blocks come as growths of the same plan.

    token_ids          prompt and, after a preemption or a hand-over, the tokens generated so far
    num_prompt_tokens  how many of them are the prompt (penalties and min_tokens count generated tokens only)
    pooling            how a vector is made of the prompt, and nothing is sampled; None where tokens are
    """

    row: int
    token_ids: list[int]
    num_prompt_tokens: int
    sampling: Sampling
    pooling: Pooling | None = None


class RowGrowth(msgspec.Struct, frozen=True, array_like=True):
    """A sequence got more blocks: `block_ids` go into its row's block table of one layer group, from index `first` on.

    Entries before the first one ever written are of former owners, and no layer of the group follows them to any effect.
    """

    row: int
    group: int
    first: int
    block_ids: list[int]


class RowDrafts(msgspec.Struct, frozen=True, array_like=True):
    """Guesses for the tokens behind the row's last one, which this step computes and checks. Its row was started earlier."""

    row: int
    token_ids: list[int]


class RowWork(msgspec.Struct, frozen=True, array_like=True):
    """Tokens of one row to compute in this step.

    start        position of the first one. Of a row with drafts in flight it is the most it can be: the device knows how many
                 were accepted, and computes the `count` positions that end with the row's last token and its drafts
    num_sampled  how many of the positions are sampled, the last ones: 0 in a prompt that goes on or is pooled, 1 for the row's
                 next token, and 1 more for each draft
    allowed_bitmask  little-endian int32 words, bit t of the mask set when token t may be sampled; None when all may, and where
                     there are drafts
    """

    row: int
    start: int
    count: int
    num_sampled: int
    allowed_bitmask: bytes | None = None


class Plan(msgspec.Struct, frozen=True, array_like=True):
    """One step. Applied in this order: starts, growths and drafts, then the work.

    step   counts up by one
    work   rows with count 1 first (the decode part), then longer ones (drafts, prefill chunks); a row appears at most once
    """

    step: int
    starts: list[RowStart]
    growths: list[RowGrowth]
    work: list[RowWork]
    drafts: list[RowDrafts] = []

    @property
    def num_tokens(self) -> int:
        return sum(work.count for work in self.work)

    @property
    def sampled(self) -> list[RowWork]:
        """The work that samples."""
        return [work for work in self.work if work.num_sampled]


class StepResult(msgspec.Struct, frozen=True, array_like=True):
    """What a step produced.

    token_ids        for each entry of `plan.sampled`, in that order, the tokens its row got: 1 to `num_sampled`, the drafts
                     that were accepted and the token sampled behind them; the last one may be `NO_TOKEN`, and then the row's
                     later steps compute garbage
    logprobs         parallel to token_ids, None where the row requests none; None when no row requests any
    prompt_logprobs  for rows that request them and computed prompt positions in this step: row -> one entry per position
                     p (start <= p < start + count, p + 1 < num_prompt_tokens) about the prompt token at p + 1
    failed_rows      rows whose tokens the device lacked the memory to compute; what they got is nothing to go by, and what
                     later steps compute for them is garbage
    most_tokens      the tokens that fit a step, once one that computed more has run out of memory
    embeddings       row -> what pooling made of a prompt whose last token was computed in this step, float32
    """

    step: int
    token_ids: list[list[int]]
    logprobs: list[list[TokenLogprobs] | None] | None = None
    prompt_logprobs: dict[int, list[TokenLogprobs]] | None = None
    failed_rows: list[int] = []
    most_tokens: int | None = None
    embeddings: dict[int, bytes] | None = None

    @property
    def is_divided(self) -> bool:
        """Whether the step did not fit the device's memory whole."""
        return self.most_tokens is not None or bool(self.failed_rows)
