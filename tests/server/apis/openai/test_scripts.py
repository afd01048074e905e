"""Scripts of completions and chats: the short path of a stream sends what the long one does, over both transports."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamserve.server.apis.openai.answers.events import Chunk
from streamserve.server.apis.openai.answers.logprobs import TokenNames
from streamserve.server.apis.openai.answers.script import (
    ChatScript,
    ChoicePreamble,
    ChunkScript,
    CompletionScript,
    StreamFormat,
)
from streamserve.server.delivery.event_stream import EventEncoder, server_sent
from streamserve.server.telemetry.request_cost import TokenCounts
from streamserve.types import TextDelta

KINDS: list[type[ChunkScript]] = [CompletionScript, ChatScript]
TEXTS = st.lists(st.text(min_size=1), min_size=1, max_size=4)


def new_script(kind: type[ChunkScript], *, model: str = 'a "model"', **options: Any) -> ChunkScript:
    format = StreamFormat(id="id", created=1, model=model, names=TokenNames(), **options)
    return kind(format, [ChoicePreamble()], TokenCounts(3))


def deltas(texts: list[str]) -> list[TextDelta]:
    return [*(TextDelta(text, [1]) for text in texts[:-1]), TextDelta(texts[-1], [1], finish_reason="stop")]


def streamed(kind: type[ChunkScript], texts: list[str], **options: Any) -> bytes:
    """The whole stream, as the direct writer encodes it."""
    script = new_script(kind, **options)
    encoder = EventEncoder(script, 1)
    return b"".join(map(encoder.delta, deltas(texts))) + server_sent(script.end())


def payloads(data: bytes) -> list[Any]:
    return [json.loads(line.removeprefix("data: ")) for line in data.decode().split("\n") if line and "[DONE]" not in line]


@pytest.mark.parametrize("kind", KINDS)
@given(texts=TEXTS)
def test_any_text_arrives_unchanged_and_events_are_lines(kind: type[ChunkScript], texts: list[str]) -> None:
    data = streamed(kind, texts)
    assert data.count(b"\n\n") == data.count(b"\n") / 2 == data.count(b"data: {") + data.count(b"data: [DONE]")
    choices = [event["choices"][0] for event in payloads(data)]
    said = [choice.get("text") or choice.get("delta", {}).get("content", "") for choice in choices]
    assert "".join(said) == "".join(texts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"include_usage": True}, {"token_ids": True}], ids=["plain", "usage", "tokens"])
@given(texts=TEXTS)
def test_both_transports_carry_the_same_json(kind: type[ChunkScript], options: dict[str, Any], texts: list[str]) -> None:
    script = new_script(kind, **options)
    events = [event for delta in deltas(texts) for event in script.delta(delta)] + script.end()
    messages = [json.loads(event.message(number, b'"s"')) for number, event in enumerate(events)]
    assert [message["data"] for message in messages[:-1]] == payloads(streamed(kind, texts, **options))
    assert [message["sequence_number"] for message in messages] == list(range(len(events)))
    assert {message["type"] for message in messages[:-1]} == {f"{kind.kind}.chunk"}
    assert messages[-1] == {
        "type": f"{kind.kind}.done",
        "stream_id": "s",
        "sequence_number": len(events) - 1,
        "response_id": "id",
        "status": "completed",
    }


@pytest.mark.parametrize("kind", KINDS)
@given(texts=TEXTS)
def test_the_plain_path_differs_from_the_full_one_in_nothing_but_what_was_asked_for(
    kind: type[ChunkScript], texts: list[str]
) -> None:
    plain = payloads(streamed(kind, texts))
    full = payloads(streamed(kind, texts, token_ids=True))
    for event in full:
        event.pop("prompt_token_ids", None)
        for choice in event["choices"]:
            choice.pop("token_ids", None)
            choice.pop("prompt_token_ids", None)
    assert plain == full


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"include_usage": True}], ids=["plain", "usage"])
@given(text=st.text(min_size=1))
def test_the_short_path_of_a_stream_sends_the_bytes_of_the_long_one(
    kind: type[ChunkScript], options: dict[str, Any], text: str
) -> None:
    script = new_script(kind, **options)
    encoder = EventEncoder(script, 1)
    first, second = encoder.delta(TextDelta(text, [1])), encoder.delta(TextDelta(text, [1]))
    assert script.text_frame(0) is not None
    assert first.endswith(second)
    [chunk] = script.delta(TextDelta(text, [1]))
    assert isinstance(chunk, Chunk)
    assert chunk.server_sent() == second


@given(st.text())
def test_a_model_name_cannot_break_the_frame(name: str) -> None:
    encoder = EventEncoder(new_script(CompletionScript, model=name), 1)
    encoder.delta(TextDelta("a", [1]))
    [event] = payloads(encoder.delta(TextDelta("b", [1])))
    assert (event["model"], event["choices"][0]["text"]) == (name, "b")


def test_the_chunk_with_the_role_counts_no_token_that_has_not_been_sent() -> None:
    usage = TokenCounts(3)
    format = StreamFormat(id="c", created=1, model="m", names=TokenNames(), include_usage=True, continuous_usage=True)
    script = ChatScript(format, [ChoicePreamble()], usage)
    usage.completion_tokens = 2
    role, content = (json.loads(chunk.json) for chunk in script.delta(TextDelta(index=0, text="ab", token_ids=[97, 98])))
    assert (role["usage"]["completion_tokens"], role["usage"]["total_tokens"]) == (0, 3)
    assert (content["usage"]["completion_tokens"], content["usage"]["total_tokens"]) == (2, 5)
