"""The encoder: its fast path says what its slow path says, and both framings carry the same JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamserve.server.apis.openai.frames import (
    LINES,
    SSE,
    ChatFrames,
    ChoicePreamble,
    CompletionFrames,
    Frames,
    Framing,
    StreamFormat,
)
from streamserve.server.apis.openai.logprobs import TokenNames
from streamserve.server.telemetry.request_cost import Usage
from streamserve.types import TextDelta

KINDS: list[type[Frames]] = [CompletionFrames, ChatFrames]
TEXTS = st.lists(st.text(min_size=1), min_size=1, max_size=4)


def encode(kind: type[Frames], texts: list[str], framing: Framing, **options: Any) -> bytes:
    format = StreamFormat(id="id", created=1, model='a "model"', names=TokenNames(), **options)
    frames = kind(format, [ChoicePreamble()], Usage(3), framing)
    deltas = [TextDelta(text, [1]) for text in texts]
    deltas[-1] = TextDelta(texts[-1], [1], finish_reason="stop")
    return b"".join(map(frames.delta, deltas)) + frames.end()


def payloads(data: bytes) -> list[Any]:
    return [json.loads(line.removeprefix("data: ")) for line in data.decode().split("\n") if line and "[DONE]" not in line]


@pytest.mark.parametrize("kind", KINDS)
@given(texts=TEXTS)
def test_any_text_arrives_unchanged_and_frames_are_lines(kind: type[Frames], texts: list[str]) -> None:
    data = encode(kind, texts, SSE)
    assert data.count(b"\n\n") == data.count(b"\n") / 2 == data.count(b"data: {") + data.count(b"data: [DONE]")
    choices = [event["choices"][0] for event in payloads(data)]
    said = [choice.get("text") or choice.get("delta", {}).get("content", "") for choice in choices]
    assert "".join(said) == "".join(texts)


@pytest.mark.parametrize("kind", KINDS)
@given(texts=TEXTS)
def test_both_framings_carry_the_same_json(kind: type[Frames], texts: list[str]) -> None:
    lines = encode(kind, texts, LINES).splitlines()
    assert lines[-1] == b"[DONE]"
    assert [json.loads(line) for line in lines[:-1]] == payloads(encode(kind, texts, SSE))


@pytest.mark.parametrize("kind", KINDS)
@given(texts=TEXTS)
def test_the_plain_path_differs_from_the_full_one_in_nothing_but_what_was_asked_for(
    kind: type[Frames], texts: list[str]
) -> None:
    plain = payloads(encode(kind, texts, SSE))
    full = payloads(encode(kind, texts, SSE, token_ids=True))
    for event in full:
        event.pop("prompt_token_ids", None)
        for choice in event["choices"]:
            choice.pop("token_ids", None)
            choice.pop("prompt_token_ids", None)
    assert plain == full


@given(st.text())
def test_a_model_name_cannot_break_the_template(name: str) -> None:
    format = StreamFormat(id="id", created=1, model=name, names=TokenNames())
    frames = CompletionFrames(format, [ChoicePreamble()], Usage(1))
    frames.delta(TextDelta("a", [1]))
    [event] = payloads(frames.delta(TextDelta("b", [1])))
    assert (event["model"], event["choices"][0]["text"]) == (name, "b")
