"""The SSE decoder against a straightforward reading of the grammar, for every way of cutting the bytes."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamserve_client import ProtocolError, ServerSentEvent, SSEDecoder

TRICKY = (
    '\ufeffdata: {"text":"秋"}\n\n'
    ": a comment\n\n\n"
    "event: done\r\nid: 7\r\ndata: 天🍂\r\ndata:  two spaces\r\n\r\n"
    "data\rretry: 250\r\r"
    "id: with\0nul\ndata: [DONE]\n\n"
    "data: never finished"
).encode()


def whole(body: bytes) -> list[ServerSentEvent]:
    """The grammar read off the whole body at once."""
    text = body.decode("utf-8", "replace").removeprefix("\ufeff")
    events: list[ServerSentEvent] = []
    data: list[str] = []
    kind = last_id = ""
    for line in re.split(r"\r\n|\n|\r", text)[:-1]:
        if not line:
            if data:
                events.append(ServerSentEvent("\n".join(data), kind, last_id))
            data, kind = [], ""
            continue
        name, _, value = line.partition(":")
        value = value[1:] if value.startswith(" ") else value
        if name == "data":
            data.append(value)
        elif name == "event":
            kind = value
        elif name == "id" and "\0" not in value:
            last_id = value
    return events


def decode(pieces: list[bytes]) -> list[ServerSentEvent]:
    decoder = SSEDecoder()
    return [event for piece in pieces for event in decoder.feed(piece)]


def test_the_tricky_body_holds_what_a_reader_of_the_grammar_finds_in_it() -> None:
    assert decode([TRICKY]) == [
        ServerSentEvent('{"text":"秋"}'),
        ServerSentEvent("天🍂\n two spaces", "done", "7"),
        ServerSentEvent("", "", "7"),
        ServerSentEvent("[DONE]", "", "7"),
    ]


@pytest.mark.parametrize("at", range(len(TRICKY) + 1))
def test_one_cut_anywhere_changes_nothing(at: int) -> None:
    assert decode([TRICKY[:at], TRICKY[at:]]) == whole(TRICKY)


def test_byte_by_byte_changes_nothing() -> None:
    assert decode([bytes([byte]) for byte in TRICKY]) == whole(TRICKY)


LINES = st.one_of(
    st.sampled_from(
        ["", "data:", "data: x", "data:秋天", "event: e", "id: 1", "retry: 5", ": c", "data", "other: 1", " data: y", "\ufeff"]
    ),
    st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12),
)
BODIES = st.lists(st.tuples(LINES, st.sampled_from(["\n", "\r\n", "\r"])), max_size=24).map(
    lambda lines: "".join(line + ending for line, ending in lines).encode()
)


@given(BODIES, st.data())
def test_any_body_in_any_pieces_decodes_as_the_whole_does(body: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=12)))
    pieces = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    assert decode(pieces) == whole(body)


def test_an_event_comes_out_with_the_byte_that_completes_it() -> None:
    decoder = SSEDecoder()
    assert decoder.feed(b"data: a\n") == []
    assert decoder.feed(b"\n") == [ServerSentEvent("a")]
    assert decoder.feed(b"data: b\r\n\r") == [ServerSentEvent("b")]
    assert decoder.feed(b"\ndata: c\n\n") == [ServerSentEvent("c")]


def test_the_reconnection_time_is_kept() -> None:
    decoder = SSEDecoder()
    decoder.feed(b"retry: 250\nretry: soon\n\n")
    assert decoder.retry_ms == 250


def test_an_endless_event_is_refused_before_it_fills_the_memory() -> None:
    decoder = SSEDecoder(max_event_bytes=100)
    decoder.feed(b"data: " + b"x" * 60)
    with pytest.raises(ProtocolError, match="more than 100 bytes"):
        decoder.feed(b"x" * 60)


def test_many_events_in_all_do_not_count_as_one_large_event() -> None:
    decoder = SSEDecoder(max_event_bytes=100)
    assert sum(len(decoder.feed(b"data: " + b"x" * 60 + b"\n\n")) for _ in range(10)) == 10
