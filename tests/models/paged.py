"""Runs a model over a paged cache the way a worker does, small and by hand: scattered blocks, chunks, mixed batches.

Neighbouring layers have different block tables, as those of different layer groups have.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor

from streamserve.models.architectures.base import CausalModel
from streamserve.models.inputs import StepInputs

BLOCK_SIZE = 16
NUM_GROUPS = 2


class PagedRun:
    """Sequences over one cache; each `step` gives some of them tokens and returns the logits of all of those."""

    def __init__(self, model: CausalModel, *, num_blocks: int = 128, kv_dtype: torch.dtype | None = None) -> None:
        """kv_dtype  of the cache; None for the model's"""
        dtype = kv_dtype or next(model.parameters()).dtype
        garbage = min(1e4, torch.finfo(dtype).max)
        shapes = [(num_blocks, 2, state.kv_heads, BLOCK_SIZE, state.head_dim) for state in model.arch.layer_states]
        # Garbage in every slot that nothing was written to: attending to one shows.
        self.kv_caches = [torch.full(shape, garbage, dtype=dtype) for shape in shapes]
        self.model = model
        self._free = list(range(num_blocks))
        random.Random(0).shuffle(self._free)
        self._blocks: dict[str, list[list[int]]] = {}
        self._lengths: dict[str, int] = {}

    def step(self, work: dict[str, list[int]]) -> dict[str, Tensor]:
        """Compute tokens of several sequences; returns each one's logits, [tokens, vocab]."""
        return self._run(work, self.model.logits)

    def states(self, work: dict[str, list[int]]) -> dict[str, Tensor]:
        """As `step`; returns each one's states behind the last norm, [tokens, state_size]."""
        return self._run(work, self.model.states)

    def _run(self, work: dict[str, list[int]], head: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        ordered = sorted(work, key=lambda name: len(work[name]) > 1)
        inputs = self._inputs(ordered, work)
        with torch.inference_mode():
            values = head(self.model(inputs, self.kv_caches))
        return dict(zip(ordered, values.split([len(work[name]) for name in ordered]), strict=True))

    def fork(self, name: str, source: str, length: int) -> None:
        """Let a new sequence begin with the first tokens of another, whose whole blocks it shares."""
        assert length % BLOCK_SIZE == 0
        self._blocks[name] = [blocks[: length // BLOCK_SIZE] for blocks in self._blocks[source]]
        self._lengths[name] = length

    def greedy(self, name: str, prompt: list[int], count: int) -> list[int]:
        """The next `count` tokens after a prompt, one step each."""
        tokens, new = [], prompt
        for _ in range(count):
            new = [int(self.step({name: new})[name][-1].argmax())]
            tokens += new
        return tokens

    def _inputs(self, ordered: list[str], work: dict[str, list[int]]) -> StepInputs:
        positions: list[int] = []
        slots: list[list[int]] = [[] for _ in range(NUM_GROUPS)]
        starts = [0]
        for name in ordered:
            places = range(self._lengths.get(name, 0), self._lengths.get(name, 0) + len(work[name]))
            self._grow(name, places.stop)
            positions += places
            for group, blocks in enumerate(self._blocks[name]):
                slots[group] += [blocks[place // BLOCK_SIZE] * BLOCK_SIZE + place % BLOCK_SIZE for place in places]
            starts.append(starts[-1] + len(places))
        lengths = [self._lengths[name] for name in ordered]
        width = -(-max(lengths) // BLOCK_SIZE) + 1
        # Entries past a sequence's blocks are never read: an impossible block shows when they are.
        tables = [
            [blocks + [1 << 20] * (width - len(blocks)) for blocks in of_group]
            for of_group in zip(*(self._blocks[name] for name in ordered), strict=True)
        ]
        slots_of, tables_of = [torch.tensor(each) for each in slots], [torch.tensor(each, dtype=torch.int32) for each in tables]
        group_of = [layer % NUM_GROUPS for layer in range(len(self.kv_caches))]
        return StepInputs(
            token_ids=torch.tensor([token for name in ordered for token in work[name]]),
            positions=torch.tensor(positions),
            slot_mapping=[slots_of[group] for group in group_of],
            block_tables=[tables_of[group] for group in group_of],
            seq_lens=torch.tensor(lengths, dtype=torch.int32),
            query_start=torch.tensor(starts, dtype=torch.int32),
            num_decodes=sum(len(work[name]) == 1 for name in ordered),
            max_seq_len=max(lengths),
        )

    def _grow(self, name: str, length: int) -> None:
        for blocks in self._blocks.setdefault(name, [[] for _ in range(NUM_GROUPS)]):
            while len(blocks) * BLOCK_SIZE < length:
                blocks.append(self._free.pop())
        self._lengths[name] = length
