"""What sequences share crosses the engine socket once, and is shared on the other side too."""

from __future__ import annotations

import pytest

from streamserve.engine.ipc import frames
from streamserve.engine.ipc.packing import PackedSequence, PackedSequences, pack
from streamserve.process.framing import encode
from streamserve.types import Pooling, ReasoningMarks, SequenceSpec, StructuredOutputs
from tests.engine.conftest import MakeSpec

SCHEMA = StructuredOutputs(json={"type": "object", "description": "x" * 10_000})
REASONING = ReasoningMarks(opens=[[1]], closes=[[2], [3, 4]], answers=[[2]], ending=[[3], [4, 5]], has_begun=True)
ALLOWED = list(range(50_000))
BIAS = dict.fromkeys(range(50000), 1.5)


def outputs(make_spec: MakeSpec, prompt: list[int], count: int) -> list[SequenceSpec]:
    """`count` sequences as one prompt's outputs are: each with an id and a seed of its own, the rest in common."""
    common = {"allowed_token_ids": ALLOWED, "logit_bias": BIAS, "structured_outputs": SCHEMA, "cache_salt": "s" * 10_000}
    return [make_spec(prompt, generated_token_ids=[index], **common) for index in range(count)]


def across(specs: list[SequenceSpec]) -> tuple[int, list[SequenceSpec]]:
    """The bytes of a frame with these sequences, and what comes out of it."""
    frame = encode(frames.OpenSequences(1, pack(specs)))
    (command,) = frames.command_decoder().feed(frame)
    assert isinstance(command, frames.OpenSequences)
    return len(frame), command.sequences.unpack()


def test_sequences_come_out_as_they_went_in(make_spec: MakeSpec) -> None:
    specs = [
        *outputs(make_spec, [1, 2, 300], 2),
        make_spec([1, 2, 300], temperature=0.5, stop_token_ids=[3], priority=-2, max_time_s=1.5, seed=2**63 - 1),
        make_spec([1, 2, 300], reasoning=REASONING, reasoning_budget=7),
        make_spec([1, 2, 300], pooling=Pooling("mean", normalize=False, dimensions=3)),
        make_spec([1, 2, 300], temperature=0.5, stop_token_ids=[4], bad_words_token_ids=[[1, 2]]),
    ]
    assert across(specs)[1] == specs


def test_many_outputs_of_many_prompts_take_hardly_more_bytes_than_one(make_spec: MakeSpec) -> None:
    """600 000 allowed ids with n=128 made a frame of 77 MB: the server cut the connection to its own engine."""
    prompts = [[7] * 10_000, [8] * 10_000]
    few, _ = across([spec for prompt in prompts for spec in outputs(make_spec, prompt, 1)])
    many, received = across([spec for prompt in prompts for spec in outputs(make_spec, prompt, 128)])
    assert many < few + 256 * 60
    assert len({id(spec.prompt_token_ids) for spec in received}) == 2
    for name in ("allowed_token_ids", "logit_bias"):
        assert len({id(getattr(spec.sampling, name)) for spec in received}) == 1


def test_ids_are_counted_as_often_as_they_cross(make_spec: MakeSpec) -> None:
    specs = outputs(make_spec, [7] * 10, 128)
    assert pack(specs).num_ids == 10 + 128 + len(ALLOWED) + 3 * len(BIAS)


def test_a_place_that_does_not_exist_is_an_index_error() -> None:
    sequence = PackedSequence("a", 0, 1, 0, 0, 0, None, 5, [], 0, None, None, None, False, None, None)
    with pytest.raises(IndexError):
        PackedSequences([sequence], [[1]], [], [""], [], [], []).unpack()
