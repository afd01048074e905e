"""Frames on the engine socket, however they are cut, and errors that come back as themselves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamserve.engine.error_info import describe, restore
from streamserve.engine.ipc import frames
from streamserve.engine.ipc.packing import pack
from streamserve.errors import (
    ContextLengthExceeded,
    EngineDead,
    InvalidParameter,
    ModelNotSupported,
    QueueFull,
    SlowConsumer,
    StreamserveError,
    UnsupportedParameter,
)
from streamserve.process.framing import MAX_FRAME_BYTES, ProtocolViolation, encode
from streamserve.types import Sampling, SequenceSpec, StructuredOutputs, TokenDelta, TokenLogprobs

SPEC = SequenceSpec(
    sequence_id="秋",
    prompt_token_ids=[1, 2, 3],
    max_tokens=5,
    sampling=Sampling(seed=2**62, logit_bias={7: -1.5}),
    structured_outputs=StructuredOutputs(json={"type": "object"}),
)
COMMANDS: list[frames.Command] = [
    frames.OpenSequences(1, pack([SPEC, SPEC])),
    frames.PauseSequence("a"),
    frames.ResumeSequence("a"),
    frames.AbortSequence("a", 1.5),
    frames.ReadStats(2),
]


@given(cuts=st.lists(st.integers(1, 40), max_size=50))
def test_messages_survive_any_cut_of_the_bytes(cuts: list[int]) -> None:
    data = b"".join(encode(command) for command in COMMANDS)
    decoder = frames.command_decoder()
    received: list[frames.Command] = []
    for cut in [*cuts, len(data)]:
        received += decoder.feed(data[:cut])
        data = data[cut:]
    assert received == COMMANDS


@given(data=st.binary(max_size=200))
def test_nonsense_is_a_violation_or_silence(data: bytes) -> None:
    try:
        for message in frames.command_decoder().feed(data):
            assert isinstance(message, frames.Command)
    except ProtocolViolation:
        return


def test_a_frame_announced_too_long_is_refused_before_it_comes() -> None:
    with pytest.raises(ProtocolViolation):
        list(frames.command_decoder().feed((MAX_FRAME_BYTES + 1).to_bytes(4, "big")))


def test_deltas_cross_whole() -> None:
    logprobs = [TokenLogprobs(5, -0.1, 1, [(5, -0.1), (6, -2.0)])]
    delta = TokenDelta([5], logprobs, [None, *logprobs], "stop", 5, 16, describe(EngineDead("gone")))
    reply = frames.Deltas([("a", delta), ("b", TokenDelta([1]))])
    assert list(frames.reply_decoder().feed(encode(reply))) == [reply]


@pytest.mark.parametrize(
    "error",
    [
        InvalidParameter("seed", "must be below 2**63"),
        UnsupportedParameter("best_of", "not built"),
        ContextLengthExceeded("too long"),
        EngineDead("gone"),
        SlowConsumer("slow"),
        ModelNotSupported("what model"),
        StreamserveError("something"),
    ],
)
def test_an_error_comes_back_as_itself(error: StreamserveError) -> None:
    back = restore(describe(error), param=error.param)
    assert (type(back), back.message, str(back), back.param) == (type(error), error.message, str(error), error.param)


def test_a_full_queue_keeps_its_delay() -> None:
    back = restore(describe(QueueFull("full", retry_after_s=7.0)))
    assert isinstance(back, QueueFull)
    assert back.retry_after_s == 7.0


def test_an_accident_is_an_internal_error_without_its_text() -> None:
    info = describe(RuntimeError("the prompt was: secret"))
    assert info.code == "internal_error"
    assert "secret" not in info.message
