"""What one step will do: small, frozen, the only thing that crosses from the scheduler to the workers.

A row is a sequence's home on the device for as long as it runs: its token ids, block tables and sampling parameters stay
there, so a plan carries only what changed since the last one. Ids sampled by a step are scattered into the rows on the device
and are never sent back down.
"""

from __future__ import annotations

import msgspec

from streamserve.types import TokenLogprobs


class RowSampling(msgspec.Struct, frozen=True, array_like=True):
    """A row's sampling parameters, as the sampler needs them; meanings as in `SequenceSpec`.

    logprobs  None, or the number of top alternatives to report beside the sampled token
    min_tokens  generated tokens before which no id of `stop_token_ids` may be sampled
    """

    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    stop_token_ids: list[int] = []
    bad_words_token_ids: list[list[int]] = []
    logit_bias: dict[int, float] = {}
    allowed_token_ids: list[int] | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None


class RowStart(msgspec.Struct, frozen=True, array_like=True):
    """A sequence takes a row: everything the device must know about it.

    Its blocks come as growths of the same plan.

    token_ids          prompt and, after a preemption or a hand-over, the tokens generated so far
    num_prompt_tokens  how many of them are the prompt (penalties and min_tokens count generated tokens only)
    """

    row: int
    token_ids: list[int]
    num_prompt_tokens: int
    sampling: RowSampling


class RowGrowth(msgspec.Struct, frozen=True, array_like=True):
    """A sequence got more blocks: `block_ids` go into its row's block table of one layer group, from index `first` on.

    Entries before the first one ever written are of former owners, and no layer of the group follows them to any effect.
    """

    row: int
    group: int
    first: int
    block_ids: list[int]


class RowWork(msgspec.Struct, frozen=True, array_like=True):
    """Tokens of one row to compute in this step: positions `start` to `start + count`.

    samples          the step samples the row's next token, at position start + count
    allowed_bitmask  little-endian int32 words, bit t of the mask set when token t may be sampled; None when all may
    """

    row: int
    start: int
    count: int
    samples: bool
    allowed_bitmask: bytes | None = None


class Plan(msgspec.Struct, frozen=True, array_like=True):
    """One step. Applied in this order: starts, growths, then the work.

    step   counts up by one
    work   rows with count 1 first (the decode part), then longer ones (prefill chunks); a row appears at most once
    """

    step: int
    starts: list[RowStart]
    growths: list[RowGrowth]
    work: list[RowWork]

    @property
    def num_tokens(self) -> int:
        return sum(work.count for work in self.work)

    @property
    def sampled(self) -> list[RowWork]:
        return [work for work in self.work if work.samples]


class StepResult(msgspec.Struct, frozen=True, array_like=True):
    """What a step produced.

    token_ids        one per entry of `plan.sampled`, in that order
    logprobs         parallel to token_ids, None where the row asked for none; None when no row asked
    prompt_logprobs  for rows that asked and computed prompt positions in this step: row -> one entry per computed position
                     p (start <= p < start + count, p + 1 < num_prompt_tokens) about the prompt token at p + 1
    """

    step: int
    token_ids: list[int]
    logprobs: list[TokenLogprobs | None] | None = None
    prompt_logprobs: dict[int, list[TokenLogprobs]] | None = None
