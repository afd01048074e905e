"""The rows of running sequences: their state on the device, and what the host keeps of each.

Runs on the launch thread. A plan's starts, growths and drafts become runs of words, sent with one copy and written by one
kernel; ids that were sampled never come back through here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streamserve.scheduling.plan import Plan, RowGrowth, RowStart
from streamserve.types import GREEDY_TEMPERATURE, Pooling, Sampling
from streamserve.worker.device.base import Device
from streamserve.worker.device.staging import Packing, StagingRing, Words
from streamserve.worker.rows.traits import Traits, effective_top_k, read_traits
from streamserve_kernels import BEHIND_TOKENS, RowLayout, RowTables, apply_row_deltas, make_row_tables

_START_WORDS = 1 << 16


@dataclass(frozen=True, slots=True)
class RankLimits:
    """How much a rank holds: rows, tokens of one sequence, tokens of one block, ids of the vocabulary.

    group_of  per layer: the layer group whose block table it uses
    """

    max_num_seqs: int
    max_model_len: int
    block_size: int
    vocab_size: int
    group_of: tuple[int, ...]

    @property
    def num_groups(self) -> int:
        return max(self.group_of) + 1

    @property
    def max_blocks(self) -> int:
        """Entries of a block table: a multiple of 16 bytes, so that kernels compiled for one group's table take any other's."""
        return -(-self.max_model_len // (4 * self.block_size)) * 4


@dataclass(frozen=True, slots=True)
class PooledRow:
    """A row whose prompt, of so many tokens, is pooled."""

    pooling: Pooling
    num_tokens: int


class Rows:
    """As many rows as sequences may run at a time.

    tables  their state on the device; the padding row has traits too, those of greedy decoding
    scored  rows that report log-probabilities of their prompt
    pooled  rows whose prompt is pooled
    """

    def __init__(self, device: Device, limits: RankLimits) -> None:
        self.tables: RowTables = make_row_tables(
            limits.max_num_seqs,
            limits.max_model_len,
            limits.max_blocks,
            device.torch_device,
            num_groups=limits.num_groups,
        )
        self.limits = limits
        self.scored: set[int] = set()
        self.pooled: dict[int, PooledRow] = {}
        self._ring = StagingRing(device, _START_WORDS)
        self._traits: list[Traits | None] = [None] * limits.max_num_seqs
        self._last_read: tuple[Sampling, Traits] | None = None
        self._traits.append(read_traits(Sampling(seed=0, temperature=0.0), 0, limits.vocab_size))

    def traits(self, row: int) -> Traits:
        """What the host knows about a row that has been started."""
        traits = self._traits[row]
        if traits is None:
            raise LookupError(f"row {row} was never started")
        return traits

    def apply(self, plan: Plan) -> None:
        """Queue the plan's starts, growths and drafts on the device; most steps have none."""
        if not plan.starts and not plan.growths and not plan.drafts:
            return
        layout = self.tables.layout
        deltas = _Deltas()
        for start in plan.starts:
            self._remember(start)
            deltas.add(start.row, 0, _parameter_words(start, self.limits.vocab_size))
            deltas.add(start.row, layout.token_ids, np.asarray(start.token_ids, dtype=np.int32))
        deltas.grow(plan.growths, layout)
        for drafts in plan.drafts:
            deltas.add(drafts.row, BEHIND_TOKENS, np.asarray(drafts.token_ids, dtype=np.int32))
        deltas.send(self._ring, self.tables)

    def _remember(self, start: RowStart) -> None:
        traits = read_traits(start.sampling, start.num_prompt_tokens, self.limits.vocab_size, like=self._last_read)
        self._traits[start.row], self._last_read = traits, (start.sampling, traits)
        if start.sampling.prompt_logprobs is None:
            self.scored.discard(start.row)
        else:
            self.scored.add(start.row)
        if start.pooling is None:
            self.pooled.pop(start.row, None)
        else:
            self.pooled[start.row] = PooledRow(start.pooling, start.num_prompt_tokens)


class _Deltas:
    """Runs of words and the rows they belong to: row, column, place among the words and length of each."""

    def __init__(self) -> None:
        self._segments: list[int] = []
        self._payload = Packing()

    def add(self, row: int, column: int, words: Words) -> None:
        place = self._payload.put(words)
        self._segments += (row, column, place.start, len(words))

    def grow(self, growths: list[RowGrowth], layout: RowLayout) -> None:
        """All growths at once: where rows grow together, an array for each would cost as much as the step."""
        place = self._payload.num_words
        block_ids: list[int] = []
        for growth in growths:
            column = layout.block_table(growth.group) + growth.first
            self._segments += (growth.row, column, place + len(block_ids), len(growth.block_ids))
            block_ids += growth.block_ids
        self._payload.put(block_ids)

    def send(self, ring: StagingRing, tables: RowTables) -> None:
        size = self._payload.num_words
        segments = self._payload.put(self._segments)
        words = ring.send(self._payload)
        apply_row_deltas(tables, words[segments].view(-1, 4), words[:size])


def _parameter_words(start: RowStart, vocab_size: int) -> Words:
    sampling: Sampling = start.sampling
    words = np.zeros(RowLayout.NUM_PARAMETERS, dtype=np.int32)
    words[RowLayout.NUM_PROMPT_TOKENS] = start.num_prompt_tokens
    words[RowLayout.NUM_TOKENS] = len(start.token_ids)
    words[RowLayout.SEED_LOW : RowLayout.SEED_HIGH + 1] = np.array([sampling.seed & (2**64 - 1)], dtype="<u8").view(np.int32)
    words[RowLayout.TOP_K] = effective_top_k(sampling.top_k, vocab_size)
    numbers = words.view(np.float32)
    numbers[RowLayout.TEMPERATURE] = 0.0 if sampling.temperature < GREEDY_TEMPERATURE else sampling.temperature
    numbers[RowLayout.TOP_P] = sampling.top_p
    numbers[RowLayout.MIN_P] = sampling.min_p
    numbers[RowLayout.PRESENCE_PENALTY] = sampling.presence_penalty
    numbers[RowLayout.FREQUENCY_PENALTY] = sampling.frequency_penalty
    numbers[RowLayout.REPETITION_PENALTY] = sampling.repetition_penalty
    return words
