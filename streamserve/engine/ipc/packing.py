"""Sequences as they cross the engine socket: prompts, parameters and constraints that several of them share cross once.

Pure functions. Without them the outputs of one request would repeat its prompt and its lists of tokens, 128 times and more.
What is shared is known by identity, and comes out shared again.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

import msgspec

from streamserve.types import Pooling, ReasoningMarks, Sampling, SequenceSpec, StructuredOutputs, Tenant

T = TypeVar("T")


class PackedSequence(msgspec.Struct, frozen=True, array_like=True):
    """A `SequenceSpec` less its shared parts, which are places in the lists of its `PackedSequences`."""

    sequence_id: str
    seed: int
    prompt: int
    sampling: int
    cache_salt: int
    tenant: int
    structured_outputs: int | None
    max_tokens: int
    generated_token_ids: list[int]
    priority: int
    max_time_s: float | None
    reasoning: int | None
    reasoning_budget: int | None
    reports_progress: bool
    patience_s: float | None
    pooling: Pooling | None


class PackedSequences(msgspec.Struct, frozen=True, array_like=True):
    """Sequences that are admitted together.

    samplings  without their seeds
    """

    sequences: list[PackedSequence]
    prompts: list[list[int]]
    samplings: list[Sampling]
    cache_salts: list[str]
    tenants: list[Tenant]
    structured_outputs: list[StructuredOutputs]
    reasonings: list[ReasoningMarks]

    @property
    def num_ids(self) -> int:
        """Token ids that cross, at most five bytes each; the rest takes about as many bytes as in its request."""
        prompts = sum(map(len, self.prompts)) + sum(len(sequence.generated_token_ids) for sequence in self.sequences)
        return prompts + sum(map(_num_ids, self.samplings))

    def unpack(self) -> list[SequenceSpec]:
        """The sequences. Raises `IndexError` when a place is not on its list."""
        return [
            SequenceSpec(
                sequence_id=sequence.sequence_id,
                prompt_token_ids=self.prompts[sequence.prompt],
                max_tokens=sequence.max_tokens,
                sampling=msgspec.structs.replace(self.samplings[sequence.sampling], seed=sequence.seed),
                generated_token_ids=sequence.generated_token_ids,
                structured_outputs=None
                if sequence.structured_outputs is None
                else self.structured_outputs[sequence.structured_outputs],
                priority=sequence.priority,
                cache_salt=self.cache_salts[sequence.cache_salt],
                tenant=self.tenants[sequence.tenant],
                max_time_s=sequence.max_time_s,
                reasoning=None if sequence.reasoning is None else self.reasonings[sequence.reasoning],
                reasoning_budget=sequence.reasoning_budget,
                reports_progress=sequence.reports_progress,
                patience_s=sequence.patience_s,
                pooling=sequence.pooling,
            )
            for sequence in self.sequences
        ]


def pack(specs: list[SequenceSpec]) -> PackedSequences:
    """The sequences with each shared part listed once; O(1) for each of them, whatever their lists hold."""
    prompts, samplings = _Listing[list[int]](), _Listing[Sampling]()
    cache_salts, tenants, structured_outputs = _Listing[str](), _Listing[Tenant](), _Listing[StructuredOutputs]()
    reasonings = _Listing[ReasoningMarks]()
    sequences = [
        PackedSequence(
            sequence_id=spec.sequence_id,
            seed=spec.sampling.seed,
            prompt=prompts.place(id(spec.prompt_token_ids), spec.prompt_token_ids),
            sampling=samplings.place(_key(shared := msgspec.structs.replace(spec.sampling, seed=0)), shared),
            cache_salt=cache_salts.place(spec.cache_salt, spec.cache_salt),
            tenant=tenants.place(spec.tenant, spec.tenant),
            structured_outputs=None
            if spec.structured_outputs is None
            else structured_outputs.place(id(spec.structured_outputs), spec.structured_outputs),
            max_tokens=spec.max_tokens,
            generated_token_ids=spec.generated_token_ids,
            priority=spec.priority,
            max_time_s=spec.max_time_s,
            reasoning=None if spec.reasoning is None else reasonings.place(id(spec.reasoning), spec.reasoning),
            reasoning_budget=spec.reasoning_budget,
            reports_progress=spec.reports_progress,
            patience_s=spec.patience_s,
            pooling=spec.pooling,
        )
        for spec in specs
    ]
    return PackedSequences(
        sequences,
        prompts.items,
        samplings.items,
        cache_salts.items,
        tenants.items,
        structured_outputs.items,
        reasonings.items,
    )


class _Listing(Generic[T]):
    """Items in the order they came, each key once."""

    def __init__(self) -> None:
        self.items: list[T] = []
        self._places: dict[Hashable, int] = {}

    def place(self, key: Hashable, item: T) -> int:
        place = self._places.setdefault(key, len(self.items))
        if place == len(self.items):
            self.items.append(item)
        return place


def _key(sampling: Sampling) -> Hashable:
    """Equal for samplings of equal numbers and the same lists."""
    values = msgspec.structs.astuple(sampling)
    return tuple((id(value) if value else None) if isinstance(value, list | dict) else value for value in values)


def _num_ids(sampling: Sampling) -> int:
    bad_words = sum(map(len, sampling.bad_words_token_ids))
    # A bias takes the room of two more.
    return len(sampling.stop_token_ids) + len(sampling.allowed_token_ids or ()) + bad_words + 3 * len(sampling.logit_bias)
